"""The MPI library that mpi4py finds, loaded but not initialised."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import mpi4py

mpi4py.rc.initialize = False
mpi4py.rc.finalize = True

from mpi4py import MPI  # noqa: E402  (with the settings above)

__all__ = ["MPI", "cuda_aware", "is_linked_with", "library", "library_path"]


def library() -> str:
    """Name and version of the MPI library, one line. Local; MPI need not be initialised."""
    first = MPI.Get_library_version().split("\n")[0].split(",")[0]
    return " ".join(first.replace("Version:", "").replace("\0", "").split())


def is_linked_with(name: str) -> bool:
    """Whether this process has loaded lib`name`; false where the system doesn't tell. Local."""
    try:
        return f"/lib{name}.so" in Path("/proc/self/maps").read_text()
    except OSError:
        return False


def library_path() -> Path | None:
    """The file of the MPI library that this process has loaded; None where the system doesn't tell. Local."""
    try:
        files = {line.split(maxsplit=5)[-1].strip() for line in Path("/proc/self/maps").read_text().splitlines()}
    except OSError:
        return None
    found = sorted(file for file in files if re.fullmatch(r"lib(mpi|mpich|mpi_\w+)\.(so|dylib)[.\d]*", Path(file).name))
    return Path(found[0]) if found else None


def cuda_aware() -> bool | None:
    """Whether messages may come from a GPU's memory; None where the library doesn't tell. Local."""
    if (path := library_path()) is None:
        return None
    try:
        return bool(ctypes.CDLL(str(path)).MPIX_Query_cuda_support())
    except (OSError, AttributeError):
        return None
