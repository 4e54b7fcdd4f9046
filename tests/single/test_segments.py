"""Episodes of a shard, found block by block, are those that a plain loop over its rows finds."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hpcrl.noise import Purpose, seeds
from hpcrl.storage.shard_reader import Shard
from hpcrl.storage.shard_table import Block
from tests.recordings import SEED, act, blocks, task_of, write

FIRST_ENV = 4


def by_a_plain_loop(rows: dict[str, NDArray], first: int, end: int) -> list[tuple]:
    """(column, number, first row, row behind, steps before, return, is over) of every part in rows [first, end)."""
    parts: dict[tuple[int, int], list] = {}
    for column in range(rows["valid"].shape[1]):
        for row in range(first, end):
            if not rows["valid"][row, column]:
                continue
            number, length = (int(rows[name][row, column]) for name in ("episode_number", "episode_length"))
            part = parts.setdefault((column, number), [row - first, row - first, length - 1, 0.0, False])
            assert part[1] == row - first, "a hole"
            part[1] += 1
            part[3], part[4] = rows["episode_return"][row, column], bool(rows["ended"][row, column])
    return [(*key, *part) for key, part in sorted(parts.items())]


def table_of(shard: Shard) -> list[tuple]:
    found = shard.episodes
    columns = (found.column, found.number, found.first_row, found.end_row, found.first_step)
    return list(zip(*(column.tolist() for column in (*columns, found.episode_return, found.is_over)), strict=True))


def last_observations(recorded: list[Block]) -> dict[tuple[int, int], NDArray]:
    """By column and row behind the end."""
    found, first = {}, 0
    for block in recorded:
        ends = np.argwhere(block.series["ended"])
        for (t, column), last in zip(ends, block.final_observation, strict=True):
            found[int(column), first + int(t) + 1] = last
        first += len(block.episode_number)
    return found


@pytest.mark.parametrize("seed", range(30))
def test_episodes_are_those_of_a_plain_loop(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_envs, task = int(rng.integers(1, 6)), task_of()
    rows = act(rng, 80, num_envs, resets=seed % 2 == 0, breaks=(0.0, 0.1, 0.5)[seed % 3])
    recorded = list(blocks(rng, rows, task, longest=(1, 7, 16)[seed // 3 % 3]))
    # Shards end between any two blocks.
    edges = sorted({0, len(recorded), *rng.integers(0, len(recorded), 3).tolist()})
    first = 0
    for number, (begin, end) in enumerate(pairwise(edges)):
        part = recorded[begin:end]
        shard = Shard(write(tmp_path / str(number), part, task))
        behind = first + sum(len(block.episode_number) for block in part)
        assert table_of(shard) == by_a_plain_loop(rows, first, behind)
        found, lasts = shard.episodes, last_observations(part)
        assert (found.env_index == found.column + FIRST_ENV).all()
        assert (found.seed == seeds(SEED, found.env_index, found.number, Purpose.EPISODE_SEED)).all()
        finals = shard.read("finals/observation", 0, len(lasts))
        for column, row, final in zip(found.column, found.end_row, found.final, strict=True):
            assert (final >= 0) == ((int(column), int(row)) in lasts)
            assert final < 0 or (finals[final] == lasts[int(column), int(row)]).all()
        first = behind
