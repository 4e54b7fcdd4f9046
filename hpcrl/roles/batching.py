"""Stacks the unrolls of several actors into one batch, in memory that is used again and again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from hpcrl.algorithms.batch import Batch
from hpcrl.metrics import EPISODE
from hpcrl.unroll import Unroll, UnrollSpec

_STACKED = ("observation", "action", "reward", "behaviour_log_prob", "terminated", "truncated", "valid")


class Batcher:
    """A batch of B columns, B the sum over the given unrolls, and the tensors over it.

    Args:
        specs: of the unrolls, in the order in which they are stacked; T is the same in all.
    """

    def __init__(self, specs: Sequence[UnrollSpec]) -> None:
        self._columns = np.cumsum([0, *(spec.num_envs for spec in specs)])
        total = UnrollSpec(
            specs[0].task,
            specs[0].unroll_length,
            int(self._columns[-1]),
            specs[0].first_env,
            sum(spec.num_finals for spec in specs),
        )
        self._stacked = Unroll(total)
        self._tensors = {name: torch.from_numpy(getattr(self._stacked, name)) for name in _STACKED}
        self._final_observation = torch.from_numpy(self._stacked.final_observation)
        self._final_index = torch.from_numpy(self._stacked.final_index)

    def stack(self, unrolls: Sequence[Unroll]) -> Batch:
        """Copy unrolls into the batch, which the next call overwrites."""
        num_finals = 0
        for unroll, first, end in zip(unrolls, self._columns, self._columns[1:], strict=False):
            for name in _STACKED:
                getattr(self._stacked, name)[:, first:end] = getattr(unroll, name)
            used = slice(num_finals, num_finals + unroll.num_finals)
            self._stacked.final_observation[used] = unroll.final_observation[: unroll.num_finals]
            self._stacked.final_index[used] = unroll.final_index[: unroll.num_finals] + np.array([0, first])
            num_finals = used.stop
        return Batch(
            **self._tensors,
            final_observation=self._final_observation[:num_finals],
            final_index=self._final_index[:num_finals],
        )


def finished_episodes(unroll: Unroll) -> np.ndarray:
    """The episodes that ended in an unroll: dtype EPISODE [n]."""
    t, column = np.nonzero(unroll.terminated | unroll.truncated)
    episodes = np.empty(len(t), EPISODE)
    episodes["env_step"] = unroll.first_env_step + t + 1
    episodes["env_index"] = unroll.spec.first_env + column
    episodes["number"] = unroll.episode_number[t, column]
    episodes["length"] = unroll.episode_length[t, column]
    episodes["return"] = unroll.episode_return[t, column]
    return episodes
