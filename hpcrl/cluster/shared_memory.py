"""Memory that the ranks of one node share, through an MPI window, with fences for plain loads and stores."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcrl.cluster.mpi import MPI, Comm
from hpcrl.errors import TransportError
from hpcrl.unroll import aligned_zeros

CACHE_LINE = 64
_SHARED_MEMORY_FOLDER = "/dev/shm"


class SharedSegments:
    """One window over `comm`, in which every rank owns a segment and sees all. Collective over `comm` to make.

    Args:
        comm: ranks of one node.
        nbytes: size of this rank's own segment.

    Raises:
        TransportError: the node's shared-memory file system has less space than all segments need.
    """

    def __init__(self, comm: Comm, nbytes: int) -> None:
        total = comm.allreduce(_rounded(nbytes))
        missing = _missing_space(total) if comm.rank == 0 else None
        if message := comm.bcast(missing):
            raise TransportError(message)
        self._window = MPI.Win.Allocate_shared(_rounded(nbytes), 1, comm=comm)
        self._window.Lock_all()
        self.segment(comm.rank)[:] = 0
        self.fence()
        comm.Barrier()

    def segment(self, rank: int) -> NDArray[np.uint8]:
        """The segment of a rank of the communicator: uint8 [its size], aligned to a cache line."""
        memory: Any = self._window.Shared_query(rank)[0]
        return np.frombuffer(memory, np.uint8)

    def fence(self) -> None:
        """Order this rank's loads and stores before it against those after it. Local."""
        self._window.Sync()

    def free(self) -> None:
        """Give the memory back. Collective over the communicator."""
        self._window.Unlock_all()
        self._window.Free()


class OwnSegment:
    """The same for a rank that has no company on its node: memory of its own, and nobody to be in order for. Local."""

    def __init__(self, nbytes: int) -> None:
        self._memory = aligned_zeros(nbytes)

    def segment(self, rank: int) -> NDArray[np.uint8]:
        """The memory; `rank` is 0."""
        return self._memory

    def fence(self) -> None:
        """Nothing to order. Local."""

    def free(self) -> None:
        """Nothing to give back. Local."""


def _rounded(nbytes: int) -> int:
    # A page a rank keeps segments from sharing cache lines, wherever the library begins them.
    return -(-max(nbytes, 1) // 4096) * 4096


def _missing_space(total: int) -> str | None:
    if not Path(_SHARED_MEMORY_FOLDER).is_dir():
        return None
    status = os.statvfs(_SHARED_MEMORY_FOLDER)
    free = status.f_bavail * status.f_frsize
    if free >= total + total // 16:
        return None
    return (
        f"unrolls and weights need {total / 1e6:.1f} MB of shared memory but {_SHARED_MEMORY_FOLDER} has "
        f"{free / 1e6:.1f} MB free: enlarge it, or use fewer environments or shorter unrolls"
    )


def counters(memory: NDArray[np.uint8], count: int) -> list[NDArray[np.int64]]:
    """`count` int64 [1] counters at the start of `memory`, each in a cache line of its own."""
    lines = memory[: count * CACHE_LINE].view(np.int64).reshape(count, CACHE_LINE // 8)
    return [lines[index, :1] for index in range(count)]
