"""Collectives for set-up, reports and checkpoints: objects, not on the hot path, with polite waits."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hpcrl.activity import Phase
from hpcrl.cluster.mpi import MPI, Comm
from hpcrl.cluster.waiting import Waiter
from hpcrl.errors import HpcrlError

T = TypeVar("T")


def broadcast(comm: Comm, value: T, waiter: Waiter, root: int = 0) -> T:
    """The root's `value` on every rank. Collective over `comm`."""
    payload = np.frombuffer(pickle.dumps(value) if comm.rank == root else b"", np.uint8)
    size = np.array([payload.size], np.int64)
    waiter.request(comm.Ibcast(size, root))
    buffer = payload.copy() if comm.rank == root else np.empty(size[0], np.uint8)
    waiter.request(comm.Ibcast(buffer, root))
    return value if comm.rank == root else pickle.loads(buffer.tobytes())


def gather(comm: Comm, value: T, waiter: Waiter, root: int = 0) -> list[T]:
    """Every rank's `value`, in rank order, on the root; [] elsewhere. Collective over `comm`."""
    payload = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = np.zeros(comm.size, np.int64)
    waiter.request(comm.Igather(np.array([payload.size], np.int64), sizes if comm.rank == root else None, root))
    received: Any = None
    if comm.rank == root:
        buffer = np.empty(sizes.sum(), np.uint8)
        received = [buffer, sizes, np.concatenate([[0], np.cumsum(sizes)[:-1]]), MPI.BYTE]
    waiter.request(comm.Igatherv([payload, MPI.BYTE], received, root))
    if comm.rank != root:
        return []
    return [pickle.loads(piece.tobytes()) for piece in np.split(buffer, np.cumsum(sizes)[:-1])]


def sum_over(comm: Comm, numbers: NDArray, waiter: Waiter) -> NDArray:
    """Elementwise sum over the ranks, on every rank; dtype and shape as given. Collective over `comm`."""
    if comm.size == 1:
        return numbers
    total = np.empty_like(numbers)
    with waiter.activity.during(Phase.REDUCING):
        waiter.request(comm.Iallreduce(np.ascontiguousarray(numbers), total), Phase.REDUCING)
    return total


def gather_numbers(
    comm: Comm, numbers: NDArray[np.int64], waiter: Waiter, phase: Phase = Phase.REDUCING
) -> NDArray[np.int64]:
    """Every rank's int64 [n] as rows, in rank order, on every rank: int64 [size, n]. Collective over `comm`."""
    table = np.empty((comm.size, numbers.size), np.int64)
    if comm.size == 1:
        table[0] = numbers
        return table
    with waiter.activity.during(phase):
        waiter.request(comm.Iallgather(np.ascontiguousarray(numbers, np.int64), table), phase)
    return table


def on_root(comm: Comm, function: Callable[[], T], waiter: Waiter) -> T:
    """What `function` returns on rank 0, on every rank; an HpcrlError that it raises there is raised everywhere.

    Collective over `comm`.
    """
    result: Any = None
    error: HpcrlError | None = None
    if comm.rank == 0:
        try:
            result = function()
        except HpcrlError as raised:
            error = raised
    if failure := broadcast(comm, error, waiter):
        failure.on_all_ranks = True
        raise failure
    return broadcast(comm, result, waiter)
