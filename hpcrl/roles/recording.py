"""What an actor records: unrolls, with values and the last observations of all episodes, on their way into shards."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcrl.config import ActorCriticConfig, to_json
from hpcrl.envs.episodes import Finals
from hpcrl.models.acting import can_value_later, value_later
from hpcrl.models.policy import Policy
from hpcrl.provenance import package_versions
from hpcrl.spaces import Task
from hpcrl.storage.shard_table import UNROLL_COLUMNS, About, Block, Kind
from hpcrl.storage.shards import ShardOptions, ShardWriter
from hpcrl.unroll import Memory, Unroll


def recorded_envs(envs: range, fraction: float) -> NDArray[np.int64]:
    """Which of the environments are recorded, int64 ascending: a share of all, spread evenly, whatever the layout."""
    index = np.arange(envs.start, envs.stop)
    return index[np.floor((index + 1) * fraction) > np.floor(index * fraction)]


def make_recording(
    config: ActorCriticConfig,
    task: Task,
    policy: Policy,
    memory: Memory,
    rank: int,
    envs: range,
    directory: Path,
    number: int,
) -> Recording | None:
    """What the actor of a rank records; None where none of its environments is chosen. Local.

    Args:
        config, task: of the run.
        policy, memory: of the actor.
        rank: of the world.
        envs: global indices of the actor's environments.
        directory: of the shards.
        number: of the first one.
    """
    chosen = recorded_envs(envs, config.record_fraction)
    if not len(chosen):
        return None
    about = describe(config, task, memory, "training", rank, envs.start, number)
    options = ShardOptions(directory, config.record_shard_mb << 20, config.record_compression)
    writer = ShardWriter(options, about, task, memory, chosen)
    return Recording(writer, chosen - envs.start, partial(value_later, policy) if can_value_later(policy) else None)


def describe(
    config: ActorCriticConfig, task: Task, memory: Memory, kind: Kind, rank: int, first_env: int, number: int
) -> About:
    """What the shards of a rank say of themselves, but for what changes from one to the next."""
    return About(
        kind=kind,
        actor=rank,
        number=number,
        first_env=first_env,
        first_env_step=0,
        env_steps=0,
        unroll_length=config.unroll_length,
        state_size=memory.state_size,
        num_history=memory.num_history,
        observation=task.observation,
        action=task.action,
        config=to_json(config),
        versions=package_versions(),
    )


class Complaints:
    """What a disk refused: a warning the first time, and a count. What an open shard held is lost then.

    Attributes:
        count: how often.
    """

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def catching(self) -> Iterator[None]:
        """Training goes on whatever the disk says within."""
        try:
            yield
        except OSError as error:
            self.count += 1
            if self.count == 1:
                message = f"TRAJECTORIES NOT WRITTEN, training goes on without them: {error}"
                warnings.warn(message, RuntimeWarning, stacklevel=4)


class Recording:
    """Of one actor. Local.

    Args:
        writer: of its shards.
        columns: int [B], of its unrolls, that are recorded.
        value_later: gives the values float32 [T, B] of observations [T, B, ...] at the end of an unroll; None where
            they come with the actions.

    Attributes:
        complaints: what the disk refused.
        env_steps: that the run has learned from, as far as this actor knows.
    """

    def __init__(
        self, writer: ShardWriter, columns: NDArray[np.int64], value_later: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self._writer, self._columns, self._value_later = writer, columns, value_later
        self._place = {int(column): place for place, column in enumerate(columns)}
        self._finals: list[tuple[int, int, NDArray]] = []
        self.complaints = Complaints()
        self.env_steps = 0

    def note_lasts(self, t: int, lasts: Finals | None, first_column: int) -> None:
        """Keep the last observations of episodes that ended in row t, of a group whose first column is given."""
        if lasts is None or not len(lasts.rows):
            return
        for row, observation in zip(lasts.rows.tolist(), lasts.observations, strict=True):
            if (place := self._place.get(first_column + row)) is not None:
                self._finals.append((t, place, observation.copy()))

    def finish(self, unroll: Unroll, values: NDArray[np.float32] | None) -> None:
        """Record an unroll, with the values [length, B] of its rows where they came with the actions."""
        # All of them in their order: no copies.
        chosen = slice(None) if len(self._columns) == unroll.spec.num_envs else self._columns
        if values is None:
            assert self._value_later is not None, "values come with actions, or later"
            values = self._value_later(torch.from_numpy(unroll.observation[: unroll.length, chosen])).numpy()
        else:
            values = values[:, chosen]
        # By row and then column, as groups come one after the other.
        self._finals.sort(key=lambda final: final[:2])
        with self.complaints.catching():
            self._writer.append(self._block(unroll, chosen, values), self.env_steps)
        self._finals = []

    def close_shard(self, env_steps: int) -> None:
        """Close the open shard: what it holds is safe then.

        Args:
            env_steps: that the run has learned from.
        """
        self.env_steps = env_steps
        with self.complaints.catching():
            self._writer.close()

    def _block(self, unroll: Unroll, chosen: slice | NDArray[np.int64], values: NDArray[np.float32]) -> Block:
        """The chosen columns of an unroll, of which values are given alone."""
        length = unroll.length
        names = [name for name in _SERIES if len(getattr(unroll, name))]
        series = {name: getattr(unroll, name)[:length, chosen] for name in names}
        observation = unroll.spec.task.observation
        finals = np.zeros((len(self._finals), *observation.shape), observation.dtype)
        for row, (_, _, last) in enumerate(self._finals):
            finals[row] = last
        return Block(
            series=series | {"value": values},
            next_observation=unroll.observation[length, chosen],
            episode_number=unroll.episode_number[:length, chosen],
            episode_length=unroll.episode_length[:length, chosen],
            episode_return=unroll.episode_return[:length, chosen],
            final_observation=finals,
            header={name: getattr(unroll, name) for name in UNROLL_COLUMNS[2:]},
            core_state=unroll.core_state[chosen],
            history=unroll.history[:, chosen],
        )


_SERIES = (
    "observation",
    "action",
    "reward",
    "terminated",
    "truncated",
    "ended",
    "valid",
    "behaviour_log_prob",
    "row_version",
    "discounted_return",
)
