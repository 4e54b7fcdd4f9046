"""Whether runs can be kept in a folder: made, locked, replaced in one step, read back; nothing is left behind."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hpcrl.doctor.finding import Finding, Level
from hpcrl.errors import CheckpointError
from hpcrl.storage.durable import write_durably
from hpcrl.storage.hdf5 import h5py, read_arrays, write_arrays

_MB = 1 << 20
_LEAST_FREE = 64 * _MB
_SCARCE = 1024 * _MB
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class FolderFacts(NamedTuple):
    """What became of each step in a folder; empty texts where it worked.

    Attributes:
        path: of the folder, absolute.
        writing, locking, replacing, checksums: what went wrong when a file was made in it, locked, put in another's
            place durably, and written and read as a checkpoint.
        can_lock: the file system knows locks.
        free_bytes, free_files: that this user may still take; None where that couldn't be asked.
        hdf5: version of the library.
    """

    path: str
    writing: str = ""
    locking: str = ""
    can_lock: bool = True
    replacing: str = ""
    checksums: str = ""
    free_bytes: int | None = None
    free_files: int | None = None
    hdf5: str = ""


class Probe(NamedTuple):
    """What a folder is like.

    Attributes:
        marker: a file in it whose content is its own path, for other nodes to look for; None where none can be made.
    """

    facts: FolderFacts
    marker: Path | None


@contextmanager
def probing(path: Path) -> Iterator[Probe]:
    """Makes `path` where needed and tries everything in a folder of its own below; removes all that it made. Local."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 (a link stays what it is called)
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    folder: Path | None = None
    facts, marker = FolderFacts(str(path), hdf5=h5py.version.hdf5_version), None
    try:
        try:
            path.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=f".hpcrl-doctor-{socket.gethostname()}-", dir=path))
            # The ranks of other nodes may be other users there, as with containers.
            folder.chmod(0o755)
            facts = _try_everything(folder, facts)
            marker = folder / "seen-by-all"
            marker.write_text(str(marker))
        except OSError as error:
            facts, marker = facts._replace(writing=_reason(error)), None
        yield Probe(facts, marker)
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        _remove(made)


def judge_folder(facts: FolderFacts) -> Finding:
    """Writing, locks, replacing and space."""
    name, path = "run dir", facts.path
    elsewhere = "Give a folder that you may write to with --run-dir, here and to hpcrl train."
    if facts.writing:
        return Finding(Level.WRONG, name, f"{path} can't be written: {facts.writing}", elsewhere)
    if facts.replacing:
        return Finding(Level.WRONG, name, f"{path} can't replace a file durably: {facts.replacing}", elsewhere)
    if facts.free_bytes is not None and facts.free_bytes < _LEAST_FREE:
        says = f"{path} has {facts.free_bytes / _MB:,.0f} MB free, too little for checkpoints"
        return Finding(Level.WRONG, name, says, elsewhere)
    if facts.free_files == 0:
        return Finding(Level.WRONG, name, f"{path} has no room for another file (no free inode)", elsewhere)
    if facts.locking and facts.can_lock:
        return Finding(Level.WRONG, name, f"a file in {path} can't be locked: {facts.locking}", elsewhere)
    space = "" if facts.free_bytes is None else f", {facts.free_bytes / (1 << 30):,.1f} GB free"
    if not facts.can_lock:
        says = f"{path} can be written{space}, but knows no locks: nothing keeps a second run out of a run's folder"
        return Finding(Level.NOTE, name, says, "Give every job a --run-dir of its own.")
    says = f"{path} can be written, locked and durably replaced{space}"
    if facts.free_bytes is not None and facts.free_bytes < _SCARCE:
        return Finding(Level.NOTE, name, says, "Long runs may fill it: give a roomier --run-dir.")
    return Finding(Level.OK, name, says)


def judge_hdf5(facts: FolderFacts, locking: str | None) -> Finding:
    """The HDF5 library, and whether what it writes comes back; `locking` is the user's HDF5_USE_FILE_LOCKING."""
    setting = f"HDF5_USE_FILE_LOCKING={'BEST_EFFORT by hpcrl' if locking is None else locking}"
    if facts.writing or facts.replacing:
        return Finding(Level.NOTE, "hdf5", f"HDF5 {facts.hdf5}, not tried: there is no folder to write to ({setting})")
    if facts.checksums:
        says = f"HDF5 {facts.hdf5} does not read back what it wrote: {facts.checksums} ({setting})"
        return Finding(Level.WRONG, "hdf5", says, "Type export HDF5_USE_FILE_LOCKING=FALSE, or give another --run-dir.")
    return Finding(Level.OK, "hdf5", f"HDF5 {facts.hdf5} reads back what it wrote, with checksums ({setting})")


def _try_everything(folder: Path, facts: FolderFacts) -> FolderFacts:
    locking = _complaint(lambda: _lock(folder / "lock"))
    space = os.statvfs(folder)
    return facts._replace(
        locking=_reason(locking),
        can_lock=getattr(locking, "errno", None) not in _NO_LOCKS_HERE,
        replacing=_reason(_complaint(lambda: _replace(folder / "file"))),
        checksums=_reason(_complaint(lambda: _write_and_read(folder / "arrays.h5"))),
        free_bytes=space.f_bavail * space.f_frsize,
        # A file system that doesn't count says that it has none in all.
        free_files=space.f_favail if space.f_files else None,
    )


def _complaint(step: Callable[[], None]) -> Exception | None:
    try:
        step()
    except (OSError, ValueError, CheckpointError) as error:
        return error
    return None


def _lock(path: Path) -> None:
    with path.open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _replace(path: Path) -> None:
    for content in (b"old", b"new"):
        write_durably(path, lambda temporary, content=content: temporary.write_bytes(content))  # type: ignore[misc]
    if path.read_bytes() != b"new":
        raise ValueError("the old file is still there")


def _write_and_read(path: Path) -> None:
    numbers = np.arange(4096, dtype=np.float32)
    write_arrays(path, {"numbers": numbers}, {"by": sys.executable})
    arrays, _ = read_arrays(path)
    if not np.array_equal(arrays["numbers"], numbers):
        raise ValueError("other numbers came back")


def _reason(error: Exception | None) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    return "" if error is None else " ".join(str(error).split()).rstrip(".")


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # Somebody else uses it by now, or it was never made.
            folder.rmdir()
