"""Sums gradients over the learners, and guards what MPI would sum wrongly without a word."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

from hpcrl.activity import Phase
from hpcrl.cluster.mpi import MPI, Comm
from hpcrl.cluster.waiting import Waiter
from hpcrl.errors import RankError, ShapeError

_BUCKET_BYTES = 25_000_000


def sum_gradients(comm: Comm, buffer: Tensor, waiter: Waiter) -> None:
    """Replace `buffer` by its sum over the ranks, in one message below 25 MB. Collective over `comm`.

    Args:
        comm: the learners.
        buffer: float32 [N] on the host, contiguous, detached: gradients and the sums that travel with them.

    Raises:
        ShapeError: MPI reads plain memory; another dtype or stride would be reduced wrongly and silently.
    """
    array = _plain_memory(buffer)
    if comm.size == 1:
        return
    step = _BUCKET_BYTES // array.itemsize
    with waiter.activity.during(Phase.REDUCING):
        requests = [comm.Iallreduce(MPI.IN_PLACE, array[start : start + step]) for start in range(0, array.size, step)]
        for request in requests:
            waiter.request(request, Phase.REDUCING)


def check_in_sync(comm: Comm, weights: Tensor, update: int, waiter: Waiter, who: str = "learner") -> None:
    """Compare the weights of the learners (or of whoever should have the same), bit for bit. Collective over `comm`.

    Args:
        comm: the learners.
        weights: float32 [N].
        update: number of the update, for the message.
        waiter: waits politely.
        who: what the ranks of `comm` are, for the message.

    Raises:
        RankError: weights that differ; names the ranks of `comm` that don't have the first one's.
    """
    mine = np.array([zlib.crc32(_plain_memory(weights).tobytes())], np.int64)
    checksums = np.empty(comm.size, np.int64)
    waiter.request(comm.Iallgather(mine, checksums), Phase.REDUCING)
    if (differing := np.flatnonzero(checksums != checksums[0])).size:
        names = ", ".join(str(learner) for learner in differing)
        raise RankError(f"after update {update} the weights of {who} {names} differ from those of {who} 0")


def _plain_memory(tensor: Tensor) -> np.ndarray:
    if tensor.dtype != torch.float32:
        raise ShapeError(f"only float32 is reduced through MPI, got {tensor.dtype}")
    if not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ShapeError(f"a reduction needs contiguous host memory, got strides {tensor.stride()} on {tensor.device}")
    if tensor.requires_grad and not tensor.is_leaf:
        raise ShapeError("a reduction needs a detached tensor, got one that is part of a graph")
    return tensor.detach().numpy()
