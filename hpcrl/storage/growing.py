"""An HDF5 file whose datasets grow along their first axis, a chunk at a time, and that counts once it is whole."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t
from numpy.typing import NDArray

from hpcrl.storage.chunks import MAX_CHUNK_BYTES, Compression, Pipeline
from hpcrl.storage.durable import make_durable
from hpcrl.storage.hdf5 import Attribute, write_array, write_attribute
from hpcrl.storage.image import Image

#: A chunk is about so large before it is compressed, and has so many rows at most.
_CHUNK_BYTES, _CHUNK_ROWS = 1 << 18, 1024
#: Columns whose rows have so many bytes lie in chunks of their own: what is similar lies closer together.
_WIDE_BYTES = 1 << 10


class Series:
    """A dataset that grows: rows of [columns, ...], written in whole chunks.

    Args:
        file: where it lies.
        name: in there.
        row_shape: of one row; the first axis are the columns, where it has any.
        dtype: bool, integer or float.
        compression: of its chunks.
    """

    def __init__(
        self, file: h5py.File, name: str, row_shape: tuple[int, ...], dtype: np.dtype, compression: Compression
    ) -> None:
        self._pipeline = Pipeline(dtype.itemsize, compression)
        is_large = math.prod(row_shape) * dtype.itemsize > MAX_CHUNK_BYTES
        self._is_wide = len(row_shape) > 1 and (is_large or math.prod(row_shape[1:]) * dtype.itemsize >= _WIDE_BYTES)
        together = (1, *row_shape[1:]) if self._is_wide else row_shape
        row_bytes = max(1, math.prod(together) * dtype.itemsize)
        num_rows = min(max(1, _CHUNK_BYTES // row_bytes), _CHUNK_ROWS)
        self._chunk = (num_rows, *together)
        self._buffer = np.zeros((num_rows, *row_shape), dtype)
        self._held = self._written = self.stored_bytes = 0
        plist = h5p.create(h5p.DATASET_CREATE)
        # HDF5 knows no chunk of no elements, and none is ever written then.
        plist.set_chunk(tuple(max(1, size) for size in self._chunk))
        self._pipeline.declare(plist)
        space = h5s.create_simple((0, *row_shape), (h5s.UNLIMITED, *row_shape))
        parent, _, leaf = name.rpartition("/")
        group = file.require_group(parent or "/")
        self._dataset: Any = h5d.create(group.id, leaf.encode(), h5t.py_create(dtype, logical=True), space, plist)

    @property
    def num_rows(self) -> int:
        """Rows so far."""
        return self._written + self._held

    def extend(self, rows: NDArray) -> None:
        """Add rows [n, columns, ...]."""
        first = 0
        while first < len(rows):
            taken = min(len(self._buffer) - self._held, len(rows) - first)
            self._buffer[self._held : self._held + taken] = rows[first : first + taken]
            self._held += taken
            first += taken
            if self._held == len(self._buffer):
                self._flush()

    def finish(self) -> None:
        """Write what is held back."""
        if self._held:
            self._buffer[self._held :] = 0
            self._flush()

    def _flush(self) -> None:
        """Write the buffer as chunks, of which the last row that counts may lie before its end."""
        end = self._written + self._held
        self._dataset.set_extent((end, *self._buffer.shape[1:]))
        for column, piece in self._pieces():
            stored, mask = self._pipeline.encode(np.ascontiguousarray(piece))
            offset = (self._written, column, *(0 for _ in self._buffer.shape[2:]))
            self._dataset.write_direct_chunk(offset[: self._buffer.ndim], stored, mask)
            self.stored_bytes += len(stored)
        self._written, self._held = end, 0

    def _pieces(self) -> list[tuple[int, NDArray]]:
        """The buffer cut into chunks, each with its first column."""
        if not self._is_wide:
            return [(0, self._buffer)] if self._buffer.size else []
        return [(column, self._buffer[:, column : column + 1]) for column in range(self._buffer.shape[1])]


class GrowingFile:
    """Lies under a hidden name until it is whole; a kill before leaves only that.

    Args:
        path: its name once it is whole; the folder must exist.
        compression: of its series.

    Raises:
        OSError: the disk is full, read-only or broken; on any call, and nothing of the file is left once `discard` was
            called.
    """

    def __init__(self, path: Path, compression: Compression) -> None:
        self.path = path
        self._compression: Compression = compression
        self._temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
        self._image = Image(self._temporary)
        # As for checkpoints: from version 1.10 of the format on, HDF5 checksums its own structures too.
        self._file = h5py.File(self._image, "w", libver=("v110", "v110"))
        self._series: list[Series] = []

    @property
    def stored_bytes(self) -> int:
        """Bytes of all chunks so far."""
        return sum(series.stored_bytes for series in self._series)

    def series(self, name: str, row_shape: tuple[int, ...], dtype: np.dtype) -> Series:
        """A new dataset that grows."""
        series = Series(self._file, name, row_shape, dtype, self._compression)
        self._series.append(series)
        return series

    def check(self) -> None:
        """Raise what the disk refused since the last call; HDF5 itself does not survive an error."""
        self._image.check()

    def commit(self, arrays: Mapping[str, NDArray], attributes: Mapping[str, Attribute]) -> None:
        """Write all that is held back and these, and give the file its name, durably."""
        for series in self._series:
            series.finish()
        for name, array in arrays.items():
            write_array(self._file, name, array)
        for name, value in attributes.items():
            write_attribute(self._file, name, value)
        self._close()
        self.check()
        make_durable(self._temporary, self.path)

    def discard(self) -> None:
        """Leave nothing behind."""
        self._close()
        self._temporary.unlink(missing_ok=True)

    def _close(self) -> None:
        self._file.close()
        self._image.close()
