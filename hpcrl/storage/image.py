"""A file as HDF5 writes it, through which an error of the disk reaches us and not HDF5."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


class Image:
    """A new file for h5py that keeps an error to itself until it is asked for.

    HDF5 keeps a file open for ever whose writing failed; so it is told that all went well.

    Args:
        path: of the file, which is made, or emptied.

    Raises:
        OSError: the file can't be made.
    """

    def __init__(self, path: Path) -> None:
        self._error: OSError | None = None
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        self._position = 0

    def check(self) -> None:
        """Raise the first OSError that there was; from it on nothing was written."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    # What h5py asks of a file.

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Where the next access is, in bytes from the start."""
        size = os.fstat(self._descriptor).st_size
        self._position = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: size}[whence] + offset
        return self._position

    def tell(self) -> int:
        """Where the next access is, in bytes from the start."""
        return self._position

    def read(self, size: int) -> bytes:
        """Up to `size` bytes."""
        data = bytearray(size)
        return bytes(data[: self.readinto(data)])

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, as far as there is anything; how many bytes that were."""
        data = os.pread(self._descriptor, len(buffer), self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        if self._error is None:
            return len(data)
        # Behind what the disk refused there is nothing, which HDF5 would not take for an answer.
        buffer[len(data) :] = bytes(len(buffer) - len(data))
        return len(buffer)

    def write(self, data: Any) -> int:
        """Write all of some bytes; nothing any more after an error."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view) and self._error is None:
            try:
                done += os.pwrite(self._descriptor, view[done:], self._position + done)
            except OSError as error:
                self._error = error
        self._position += len(view)
        return len(view)

    def truncate(self, size: int) -> int:
        """Cut the file off, or fill it up with zeros."""
        try:
            os.ftruncate(self._descriptor, size)
        except OSError as error:
            self._error = self._error or error
        return size

    def flush(self) -> None:
        """The kernel has it all."""
