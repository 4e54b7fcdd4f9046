"""Sums one flat vector over the learners, in chunks that may start before the whole vector is there.

Every way of summing cuts a vector at the same places and starts its chunks in the same order, the last one first, so
that learners whose vectors lie in different memory fit together, and the result does not depend on timing.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from hpcrl.activity import Phase
from hpcrl.cluster.mpi import MPI, Comm, Request
from hpcrl.cluster.waiting import Waiter
from hpcrl.errors import RankError, ShapeError

#: Bytes of a chunk. Measured with all chunks of a sum under way at once (2 cores, 2 and 3 ranks, 2 to 25 MB): 0.9 to
#: 1.05 of the time of one message; chunks of 128 KiB up to 1.4, and only two of any size under way up to 3.
CHUNK_BYTES = 2**20
_ITEM_BYTES = 4
_CACHE_LINE = 16
#: How long a sum through MPI looks for its end without a pause: so long, and a second for so many bytes.
_EAGER_S = 2e-4
_EAGER_BYTES_PER_S = 1e9


class SumError(RankError):
    """A sum that failed, is wrong or late, though no rank is known to be dead or stuck."""


def chunks(size: int, chunk_bytes: int = CHUNK_BYTES) -> list[slice]:
    """Where a vector of `size` float32 is cut, a function of these numbers alone. Local.

    Returns:
        Nearly equal parts of at most `chunk_bytes` (a multiple of 64), at cache lines, from the last to the first: in
        the order in which backward fills them. None for an empty vector.
    """
    if size == 0:
        return []
    number = -(-size * _ITEM_BYTES // chunk_bytes)
    step = -(-size // (number * _CACHE_LINE)) * _CACHE_LINE
    return [slice(start, min(start + step, size)) for start in reversed(range(0, size, step))]


def check_vector(vector: Tensor, device_type: str = "cpu") -> None:
    """Refuse what would be summed wrongly and silently. Local.

    Raises:
        ShapeError: a vector that is not float32 [N], contiguous, detached, in the memory of such a device.
    """
    if vector.dtype != torch.float32:
        raise ShapeError(f"only float32 is reduced, got {vector.dtype}")
    if not vector.is_contiguous() or vector.device.type != device_type:
        memory = "host" if device_type == "cpu" else device_type
        raise ShapeError(
            f"a reduction needs contiguous {memory} memory, got strides {vector.stride()} on {vector.device}"
        )
    if vector.requires_grad and not vector.is_leaf:
        raise ShapeError("a reduction needs a detached tensor, got one that is part of a graph")


class Reduction(ABC):
    """Replaces a vector by its sum over the learners; the result is the same on all of them.

    `sum` does all at once. Or `begin`, then `filled` as often as there is news, then `finish`: between the first and
    the last the learners send each other nothing else.

    Args:
        comm: the learners.
        waiter: waits politely.

    Attributes:
        name: for people.
        device_type: where vectors lie, as torch names it.
        overlaps: it is worth the trouble to call `filled` before `finish`.
        chunk_bytes: how long a chunk may be; the same on all learners.
    """

    name = ""
    device_type = "cpu"
    overlaps = False
    chunk_bytes = CHUNK_BYTES

    def __init__(self, comm: Comm, waiter: Waiter) -> None:
        self._comm, self._waiter = comm, waiter
        self._given = self._vector = torch.empty(0)
        self._parts: list[slice] = []
        self._left: list[slice] = []

    def sum(self, vector: Tensor) -> None:
        """Replace `vector` by its sum. Collective over the learners.

        Args:
            vector: float32 [N], N the same on all learners; contiguous, detached, on a device of `device_type`.

        Raises:
            ShapeError: another vector.
            RankError: a learner that died or is stuck, or a sum that failed.
        """
        self.begin(vector)
        self.finish()

    def begin(self, vector: Tensor) -> None:
        """Begin a sum of what will be in `vector`, see `sum`. Local."""
        # Most sums are of one vector again and again, and what is done here is waited for by all.
        if vector is not self._given:
            check_vector(vector, self.device_type)
            self._given, self._vector = vector, vector.detach().view(-1)
            self._parts = chunks(vector.numel(), self.chunk_bytes) if self._comm.size > 1 else []
        self._left = self._parts.copy()

    def filled(self, start: int) -> None:
        """All from element `start` to the end is there and stays: start the chunks that it holds.

        Returns at once. On the CPU for the main thread; for a device also for the thread that runs its backward, as
        long as the main thread waits for that one. Not all learners need call it: what is left is started by `finish`.
        """
        while self._left and self._left[0].start >= start:
            self._start(self._left.pop(0))

    def finish(self) -> None:
        """Start what is left and wait for all. Collective over the learners; RankError as for `sum`."""
        if self._comm.size == 1:
            return
        with self._waiter.activity.during(Phase.REDUCING):
            self.filled(0)
            self._complete()

    def close(self) -> None:
        """Give back what the sums needed; there are no more. Local, returns soon whatever became of the others."""
        self._given = self._vector = torch.empty(0)
        self._parts, self._left = [], []

    def _ends_soon(self, look: Callable[[], bool]) -> bool:
        """Whether `look` says so within the time of a sum for which nobody is late.

        MPI adds only while somebody looks, and the shortest sleep takes longer than many a sum. With sleeps from the
        start sums over 2 ranks on 2 cores took 5.4 (4 KB), 3.5 (64 KB), 1.5 (1 MB), 2.6 (4 MB), 1.6 (16 MB) and 0.96
        (64 MB) times as long, over 3 ranks 1.9, 1.7, 2.9, 1.4, 1.1 and 1.0. A core is left to others only where ranks
        share it: once something else runs there, be it of the lowest priority, it comes back after milliseconds.

        Args:
            look: whether chunks are complete; returns at once.
        """
        # Every look moves MPI on, so there is nothing else in this loop.
        now, is_crowded = time.perf_counter, self._waiter.is_crowded
        end = now() + _EAGER_S + self._vector.nbytes / _EAGER_BYTES_PER_S
        while not look():
            if now() > end:
                return False
            if is_crowded:
                os.sched_yield()
        return True

    @abstractmethod
    def _start(self, part: slice) -> None:
        """Start the sum of one chunk; returns at once."""

    @abstractmethod
    def _complete(self) -> None:
        """Wait politely until all chunks that were started hold their sums."""


class NoReduction(Reduction):
    """The vector of the only learner is its sum.

    Args:
        device_type: where it lies.
    """

    name = "nothing"

    def __init__(self, comm: Comm, waiter: Waiter, device_type: str) -> None:
        super().__init__(comm, waiter)
        assert comm.size == 1, "several learners sum their vectors"
        self.device_type = device_type

    def _start(self, part: slice) -> None:
        """There is nobody else."""

    def _complete(self) -> None:
        """There is nobody else."""


class HostReduction(Reduction):
    """Sums vectors in host memory, through MPI.

    Overlapping does not pay on the CPU, as MPI moves on only when the main thread looks, and adding takes the cores
    that backward needs: with chunks started in hooks, backward and sum of a network of 1.7 million parameters took
    1.03, 0.95 and 1.00 of the time (8, 32 and 128 images a rank, 2 ranks on 2 cores). `benchmarks.allreduce` measures
    it, and the sums against plain MPI.
    """

    name = "MPI"

    def __init__(self, comm: Comm, waiter: Waiter) -> None:
        super().__init__(comm, waiter)
        self._array = self._vector.numpy()
        self._requests: list[Request] = []

    def begin(self, vector: Tensor) -> None:
        is_new = vector is not self._given
        super().begin(vector)
        if is_new:
            self._array = self._vector.numpy()

    def _start(self, part: slice) -> None:
        self._requests.append(self._comm.Iallreduce(MPI.IN_PLACE, self._array[part]))

    def _complete(self) -> None:
        requests, self._requests = self._requests, []
        for request in requests:
            if not self._ends_soon(request.Test):
                self._waiter.request(request, Phase.REDUCING)
