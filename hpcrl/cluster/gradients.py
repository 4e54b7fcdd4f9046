"""Compares the weights of ranks that should have the same."""

from __future__ import annotations

import zlib

import numpy as np
from torch import Tensor

from hpcrl.activity import Phase
from hpcrl.cluster.mpi import Comm
from hpcrl.cluster.reductions import check_vector
from hpcrl.cluster.waiting import Waiter
from hpcrl.errors import RankError


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
    check_vector(tensor)
    return tensor.detach().numpy()
