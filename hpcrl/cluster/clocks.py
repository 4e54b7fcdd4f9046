"""How far the monotonic clocks of the nodes are apart: each node counts from a start of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from hpcrl.cluster.mpi import Comm
from hpcrl.cluster.waiting import Waiter

_TAG = 14
_ROUNDS = 30


def clock_offsets(
    comm: Comm, node_of: Sequence[int], waiter: Waiter, clock: Callable[[], int] = time.monotonic_ns
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What to add to every rank's clock to have rank 0's. Collective over `comm`.

    The first rank of each node answers rank 0 some times; the quickest answer counts. A node has one clock.

    Args:
        node_of: node of every rank.
        clock: nanoseconds of this rank.

    Returns:
        On rank 0 the offsets and the bounds of their errors, int64 [size] each, in nanoseconds; zeros elsewhere.
    """
    offsets, errors = np.zeros((2, comm.size), np.int64)
    for node in sorted(set(node_of) - {node_of[0]}):
        first = node_of.index(node)
        if comm.rank == first:
            _answer(comm, waiter, clock)
        elif comm.rank == 0:
            here = np.array(node_of) == node
            offsets[here], errors[here] = _ask(comm, first, waiter, clock)
    return offsets, errors


def _ask(comm: Comm, other: int, waiter: Waiter, clock: Callable[[], int]) -> tuple[int, int]:
    """Offset of another rank's clock, and the most that it can be wrong by: half of what question and answer took."""
    sent, received = np.zeros((2, 1), np.int64)
    quickest, offset = 2**63, 0
    for _ in range(_ROUNDS):
        begin = clock()
        question = comm.Isend(sent, other, _TAG)
        waiter.request(comm.Irecv(received, other, _TAG))
        took = clock() - begin
        waiter.request(question)
        if took < quickest:
            quickest, offset = took, begin + took // 2 - int(received[0])
    return offset, quickest // 2


def _answer(comm: Comm, waiter: Waiter, clock: Callable[[], int]) -> None:
    sent, received = np.zeros((2, 1), np.int64)
    for _ in range(_ROUNDS):
        waiter.request(comm.Irecv(received, 0, _TAG))
        sent[0] = clock()
        waiter.request(comm.Isend(sent, 0, _TAG))
