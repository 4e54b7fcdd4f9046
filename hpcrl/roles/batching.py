"""Stacks columns of several unrolls into one batch, in memory that is used again and again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from hpcrl.algorithms.batch import Batch
from hpcrl.devices.stopwatch import HostStamp, Stopwatch
from hpcrl.metrics import EPISODE
from hpcrl.roles.inbox import Piece
from hpcrl.spaces import Task
from hpcrl.unroll import NO_MEMORY, Memory, Unroll, UnrollSpec, aligned_zeros

#: Fields whose second axis is the environment; those of a batch that are not, one by one below.
STACKED = (
    "observation",
    "action",
    "reward",
    "behaviour_log_prob",
    "terminated",
    "truncated",
    "valid",
    "history",
    "discounted_return",
)


class Batcher:
    """Batches of any number of columns.

    Args:
        task: spaces of one environment.
        unroll_length: T.
        memory: what its unrolls remember.

    Attributes:
        batch: the columns that were stacked last.
        num_steps: valid steps in it.
        watch: times the copies.
        upload_bytes: sent to an accelerator so far.
    """

    upload_bytes = 0

    def __init__(self, task: Task, unroll_length: int, memory: Memory = NO_MEMORY) -> None:
        self._task, self._unroll_length, self._memory_spec = task, unroll_length, memory
        self._memory = aligned_zeros(0)
        self._shaped: dict[int, dict[str, np.ndarray]] = {}
        self.batch, self.num_steps = self._make_batch([]), 0
        self.watch = Stopwatch(HostStamp)

    def arrived(self, unroll: Unroll) -> None:
        """An unroll is there whose columns will be stacked: nothing to prepare."""

    def stack(self, pieces: Sequence[Piece]) -> None:
        """Copy columns into `batch`, which the next call overwrites."""
        self.watch.begin()
        self.batch = self._make_batch(pieces)
        self.watch.lap("copy")
        self.num_steps = int(self.batch.valid.sum())

    def _make_batch(self, pieces: Sequence[Piece]) -> Batch:
        stacked = self._arrays(sum(piece.end - piece.first for piece in pieces))
        core_state, env_index = stacked["core_state"], stacked["env_index"]
        finals, indices = [], []
        column = 0
        for unroll, first, end in pieces:
            columns = slice(column, column + end - first)
            for name in STACKED:
                stacked[name][:, columns] = getattr(unroll, name)[:, first:end]
            core_state[columns] = unroll.core_state[first:end]
            env_index[columns] = np.arange(first, end) + unroll.spec.first_env
            if unroll.num_finals:
                index = unroll.final_index[: unroll.num_finals]
                ours = (index[:, 1] >= first) & (index[:, 1] < end)
                finals.append(unroll.final_observation[: unroll.num_finals][ours])
                indices.append(index[ours] + np.array([0, column - first]))
            column += end - first
        observation = self._task.observation
        no_finals = np.zeros((0, *observation.shape), observation.dtype)
        return Batch(
            **{name: torch.from_numpy(array) for name, array in stacked.items()},
            final_observation=torch.from_numpy(np.concatenate(finals) if finals else no_finals),
            final_index=torch.from_numpy(np.concatenate(indices) if indices else np.zeros((0, 2), np.int64)),
        )

    def _arrays(self, num_columns: int) -> dict[str, np.ndarray]:
        """The fields of a batch of so many columns, over the same memory whatever their number."""
        spec = UnrollSpec(self._task, self._unroll_length, num_columns, 0, 0, memory=self._memory_spec)
        if spec.nbytes > self._memory.size:
            self._memory = aligned_zeros(spec.nbytes)
            self._shaped.clear()
        if num_columns not in self._shaped:
            unroll = Unroll(spec, self._memory[: spec.nbytes])
            arrays = {name: getattr(unroll, name) for name in (*STACKED, "core_state")}
            self._shaped[num_columns] = arrays | {"env_index": np.zeros(num_columns, np.int64)}
        return self._shaped[num_columns]


def batch_of(unroll: Unroll) -> Batch:
    """One whole unroll as a batch: views of its memory, no copies."""
    finals = unroll.num_finals
    return Batch(
        **{name: torch.from_numpy(getattr(unroll, name)) for name in (*STACKED, "core_state")},
        env_index=torch.arange(unroll.spec.num_envs) + unroll.spec.first_env,
        final_observation=torch.from_numpy(unroll.final_observation[:finals]),
        final_index=torch.from_numpy(unroll.final_index[:finals]),
    )


def finished_episodes(unroll: Unroll) -> np.ndarray:
    """The episodes that ended in an unroll: dtype EPISODE [n]."""
    t, column = np.nonzero(unroll.ended)
    episodes = np.empty(len(t), EPISODE)
    episodes["env_step"] = unroll.first_env_step + t + 1
    episodes["env_index"] = unroll.spec.first_env + column
    episodes["number"] = unroll.episode_number[t, column]
    episodes["length"] = unroll.episode_length[t, column]
    episodes["return"] = unroll.episode_return[t, column]
    return episodes
