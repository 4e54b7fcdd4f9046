"""Whole episodes, whose parts may lie in several shards, of one actor or of several after a resume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from hpcrl.storage.shard_reader import Shard
from hpcrl.storage.shard_table import Episodes


class Part(NamedTuple):
    """Steps of an episode in one shard.

    Attributes:
        shard: where.
        column: of the shard.
        first_row, end_row: its rows [first, end), a step each.
        final: row of `finals/observation` with the last observation; -1 where the episode goes on.
    """

    shard: Shard
    column: int
    first_row: int
    end_row: int
    final: int


class Episode(NamedTuple):
    """An episode from its first step to its end.

    Attributes:
        env_index: global index of the environment.
        number: of the episode in that environment, from 0.
        seed: that the environment was reset with.
        length: steps.
        episode_return: sum of its raw rewards.
        terminated, truncated: how it ended.
        policy_version: learner updates in the weights of the unroll in which it began.
        parts: in the order of time.
    """

    env_index: int
    number: int
    seed: int
    length: int
    episode_return: float
    terminated: bool
    truncated: bool
    policy_version: int
    parts: tuple[Part, ...]

    def steps(self, name: str) -> NDArray:
        """A series of the shards at its steps: [length, ...]; TrajectoryError where a chunk is damaged."""
        return np.concatenate([part.shard.read(name, part.first_row, part.end_row, part.column) for part in self.parts])

    def observations(self) -> NDArray:
        """[length + 1, ...], the last one included; TrajectoryError where a chunk is damaged."""
        last = self.parts[-1]
        final = last.shard.read("finals/observation", last.final, last.final + 1)
        return np.concatenate([self.steps("observation"), final])


class WholeEpisodes(Sequence[Episode]):
    """The whole episodes of shards of one kind, by (env_index, number).

    Those of evaluations come by evaluation first, as every evaluation plays the same numbers again.

    Args:
        shards: in any order.

    Attributes:
        num_steps: in all of them.
        num_unfinished: episodes without an end so far, left out: those that were running, or that broke.
        num_gaps: episodes of which steps are missing, left out.

    Raises:
        TrajectoryError: a chunk of a shard is damaged.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = shards
        self._shard, self._parts = _joined(shards)
        found = self._parts
        length = found.end_row - found.first_row
        begins = np.ones(len(length), np.bool_)
        same = [np.diff(column) == 0 for column in (self._evaluation(), found.env_index, found.number)]
        begins[1:] = ~np.logical_and.reduce(same)
        follows = found.first_step == 0
        goes_on = found.first_step[1:] == (found.first_step + length)[:-1]
        follows[1:] = np.where(begins[1:], follows[1:], goes_on)
        first = np.flatnonzero(begins)
        end = np.append(first[1:], len(begins))[: len(first)]
        has_gap = np.array([not follows[a:b].all() for a, b in zip(first, end, strict=True)], np.bool_)
        is_over = found.is_over[end - 1]
        whole = ~has_gap & is_over
        self._first, self._end = first[whole], end[whole]
        self.num_steps = int((found.first_step + length)[self._end - 1].sum())
        self._terminated, self._truncated = (self._at_end(name) for name in ("terminated", "truncated"))
        self.num_unfinished, self.num_gaps = int((~has_gap & ~is_over).sum()), int(has_gap.sum())

    def _evaluation(self) -> NDArray[np.int64]:
        return np.array([_evaluation_of(shard) for shard in self._shards], np.int64)[self._shard]

    def _at_end(self, name: str) -> NDArray[np.bool_]:
        """A series of bools at the last step of each episode."""
        last = self._end - 1
        at_end = np.empty(len(last), np.bool_)
        for number, shard in enumerate(self._shards):
            mine = self._shard[last] == number
            rows, columns = self._parts.end_row[last[mine]] - 1, self._parts.column[last[mine]]
            at_end[mine] = shard.read(name, 0, shard.num_rows)[rows, columns]
        return at_end

    def __len__(self) -> int:
        return len(self._first)

    @overload
    def __getitem__(self, index: int) -> Episode: ...
    @overload
    def __getitem__(self, index: slice) -> list[Episode]: ...
    def __getitem__(self, index: int | slice) -> Episode | list[Episode]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        first, last = int(self._first[index]), int(self._end[index]) - 1
        found = self._parts
        return Episode(
            env_index=int(found.env_index[first]),
            number=int(found.number[first]),
            seed=int(found.seed[first]),
            length=int(found.first_step[last] + found.end_row[last] - found.first_row[last]),
            episode_return=float(found.episode_return[last]),
            terminated=bool(self._terminated[index]),
            truncated=bool(self._truncated[index]),
            policy_version=_policy_version(self._shards[self._shard[first]], int(found.first_row[first])),
            parts=tuple(self._part(row) for row in range(first, last + 1)),
        )

    def by_place(self) -> list[int]:
        """Their numbers in the order in which they end in the shards: read so, each chunk is needed about once."""
        last = self._end - 1
        return np.lexsort((self._parts.column[last], self._parts.end_row[last], self._shard[last])).tolist()

    def _part(self, row: int) -> Part:
        found = self._parts
        places = (int(column[row]) for column in (found.column, found.first_row, found.end_row, found.final))
        return Part(self._shards[self._shard[row]], *places)


def _joined(shards: Sequence[Shard]) -> tuple[NDArray[np.int64], Episodes]:
    """The parts of all shards, those of an episode one after the other; and the shard of each, int64 [n]."""
    shard = np.repeat(np.arange(len(shards)), [len(shard.episodes.number) for shard in shards])
    parts = Episodes._make(map(np.concatenate, zip(*(shard.episodes for shard in shards), strict=True)))
    evaluation = np.array([_evaluation_of(each) for each in shards], np.int64)[shard]
    order = np.lexsort((parts.first_step, parts.number, parts.env_index, evaluation))
    return shard[order], Episodes._make(column[order] for column in parts)


def _evaluation_of(shard: Shard) -> int:
    """Tells evaluations apart, and the tasks of each; the same for all shards of training."""
    about = shard.about
    return about.env_steps * len(str(about.config["env"]).split()) + about.task if about.kind == "evaluation" else 0


def _policy_version(shard: Shard, row: int) -> int:
    unroll = np.searchsorted(shard.unrolls["first_row"], row, "right") - 1
    return int(shard.unrolls["policy_version"][unroll])
