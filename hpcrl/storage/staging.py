"""A folder of the node, in which a file lies until the shared file system has it."""

from __future__ import annotations

import hashlib
import os
import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hpcrl.storage.durable import write_durably


class Staging:
    """Files on their way to one shared folder; only one process at a time may use it.

    Args:
        local: a folder of the node, which must exist; variables in it, such as $TMPDIR, are looked up.
        shared: the folder that the files are for.
    """

    def __init__(self, local: Path, shared: Path) -> None:
        self._local = Path(os.path.expandvars(local))
        # Other runs may use the folder too.
        self._prefix = f"hpcrl-{hashlib.sha256(os.fsencode(shared.resolve())).hexdigest()[:16]}-"

    def write_durably(self, path: Path, write: Callable[[Path], object]) -> None:
        """As `hpcrl.storage.durable.write_durably`; the file is whole and durable in the local folder first.

        Where the local folder refuses it (full, missing, read-only) it is written straight to `path`, with a warning.

        Raises:
            OSError: `path` can't be written; nothing of the file is left here or there.
        """
        staged = self._local / (self._prefix + path.name)
        try:
            self.clear()
            write_durably(staged, write)
        except OSError as error:
            message = f"{path} is written directly, since the local folder does not take it: {error}"
            warnings.warn(message, RuntimeWarning, stacklevel=3)
            write_durably(path, write)
            return
        try:
            write_durably(path, lambda temporary: shutil.copyfile(staged, temporary))
        finally:
            # What stays is removed before the next.
            with suppress(OSError):
                staged.unlink()

    def clear(self) -> None:
        """Remove what a kill left of this run; OSError where the folder can't be read or written."""
        for pattern in (f"{self._prefix}*", f".{self._prefix}*"):
            for leftover in self._local.glob(pattern):
                leftover.unlink()
