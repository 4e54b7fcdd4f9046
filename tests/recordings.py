"""Shards of trajectories of environments that are made up, so that what must be in them is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcrl.spaces import Space, Task
from hpcrl.storage.shard_reader import Shard
from hpcrl.storage.shard_table import About, Block, series_of
from hpcrl.storage.shards import ShardOptions, ShardWriter, shard_name
from hpcrl.unroll import NO_MEMORY, Memory

VECTOR = Space("box", (3,), "float32")
CHOICE = Space("discrete", (), "int64", num_choices=4)
SEED = 7


def task_of(observation: Space = VECTOR, action: Space = CHOICE) -> Task:
    return Task(observation, action, None, True)


def about_of(task: Task, memory: Memory = NO_MEMORY, unroll_length: int = 16) -> About:
    return About(
        kind="training",
        actor=3,
        number=0,
        first_env=4,
        first_env_step=0,
        env_steps=0,
        unroll_length=unroll_length,
        state_size=memory.state_size,
        num_history=memory.num_history,
        observation=task.observation,
        action=task.action,
        config={"seed": SEED, "algorithm": "a2c", "env": "CartPole-v1"},
        versions={"hpcrl": "1.0"},
    )


def act(rng: np.random.Generator, num_rows: int, num_envs: int, resets: bool, breaks: float) -> dict[str, NDArray]:
    """Rows [N, B] as environments leave them in unrolls.

    Args:
        rng: for everything.
        num_rows, num_envs: N, B.
        resets: whether a row in which the environment only resets itself follows every end.
        breaks: how likely an environment breaks in a step.
    """
    shape = num_rows, num_envs
    rows: dict[str, NDArray] = {name: np.zeros(shape, np.bool_) for name in ("terminated", "truncated", "ended")}
    rows["valid"] = np.ones(shape, np.bool_)
    rows["reward"] = (rng.integers(-8, 9, shape) / 4).astype(np.float32)
    rows |= {name: np.zeros(shape, np.int64) for name in ("episode_number", "episode_length")}
    rows["episode_return"] = np.zeros(shape)
    for column in range(num_envs):
        # As after a resume: in the middle of an episode, or in the row that resets.
        number, length, total = int(rng.integers(5)), int(rng.integers(3)), 0.0
        only_resets = resets and length == 0 and bool(rng.integers(2))
        for t in range(num_rows):
            is_broken = not only_resets and rng.random() < breaks
            is_end = not only_resets and not is_broken and rng.random() < 0.2
            if only_resets or is_broken:
                rows["valid"][t, column] = False
            else:
                length, total = length + 1, total + float(rows["reward"][t, column])
            rows["terminated" if rng.random() < 0.5 else "truncated"][t, column] = is_end
            rows["ended"][t, column] = is_end
            rows["episode_number"][t, column], rows["episode_length"][t, column] = number, length
            rows["episode_return"][t, column] = total
            only_resets = resets and is_end
            if is_end or is_broken:
                # Some break again before they have begun.
                number, length, total = number + 1 + is_broken * int(rng.integers(3)), 0, 0.0
    return rows


def blocks(
    rng: np.random.Generator,
    rows: dict[str, NDArray],
    task: Task,
    memory: Memory = NO_MEMORY,
    longest: int = 16,
    versioned: bool = False,
) -> Iterator[Block]:
    """Those rows in blocks of random length, with whatever else is recorded."""
    num_rows, num_envs = rows["reward"].shape
    space = task.observation
    observation = values(rng, (num_rows + 1, num_envs, *space.shape), space.dtype)
    series = {name: rows[name] for name in ("reward", "terminated", "truncated", "ended", "valid")}
    for row in series_of(task, memory, num_envs, versioned):
        if row.name not in series:
            series[row.name] = values(rng, (num_rows, *row.shape), row.dtype)
    first = 0
    while first < num_rows:
        part = slice(first, min(num_rows, first + int(rng.integers(1, longest + 1))))
        ended = int(rows["ended"][part].sum())
        yield Block(
            series={name: array[part] for name, array in series.items()} | {"observation": observation[part]},
            next_observation=observation[part.stop],
            **{name: rows[name][part] for name in ("episode_number", "episode_length", "episode_return")},
            final_observation=values(rng, (ended, *space.shape), space.dtype),
            header={"policy_version": first // 4, "first_env_step": 100 + first},
            core_state=values(rng, (num_envs, memory.state_size), "float32"),
            history=values(rng, (memory.num_history, num_envs, *space.shape), space.dtype),
        )
        first = part.stop


def values(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> NDArray:
    """Random numbers of a dtype, of which many are alike."""
    return rng.integers(0, 2 if np.dtype(dtype) == np.bool_ else 100, shape).astype(dtype)


def write(
    directory: Path,
    recorded: Sequence[Block],
    task: Task,
    memory: Memory = NO_MEMORY,
    compression: Any = "gzip",
    **about: Any,
) -> Path:
    """A closed shard of these blocks, of which `about` says more."""
    num_envs = len(recorded[0].next_observation)
    options = ShardOptions(directory, compression=compression)
    said = replace(about_of(task, memory), **about)
    writer = ShardWriter(options, said, task, memory, np.arange(4, 4 + num_envs))
    for block in recorded:
        writer.append(block, 0)
    writer.close()
    return directory / shard_name(said)


def make_shard(
    directory: Path, seed: int = 0, num_rows: int = 60, num_envs: int = 3, compression: Any = "gzip"
) -> Path:
    """A closed shard of 3 environments with small episodes of all kinds."""
    rng, task = np.random.default_rng(seed), task_of()
    rows = act(rng, num_rows, num_envs, resets=True, breaks=0.05)
    return write(directory, list(blocks(rng, rows, task)), task, compression=compression)


def content(shard: Shard) -> dict[str, NDArray]:
    """All that a shard holds, by name."""
    arrays = {name: shard.read(name, 0, series.shape[0]) for name, series in shard.series.items()}
    tables = {f"unrolls/{name}": column for name, column in shard.unrolls.items()}
    tables |= {f"episodes/{name}": column for name, column in shard.episodes._asdict().items()}
    return arrays | tables | {"env_index": shard.env_index, "unrolls/first_history": shard.first_history}


def is_same(one: dict[str, NDArray], other: dict[str, NDArray]) -> bool:
    """Whether two of these are equal to the last bit."""
    return one.keys() == other.keys() and all(
        (one[name].shape, one[name].dtype) == (other[name].shape, other[name].dtype)
        and one[name].tobytes() == other[name].tobytes()
        for name in one
    )
