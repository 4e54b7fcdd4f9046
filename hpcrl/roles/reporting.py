"""Brings the numbers of all ranks together: episodes, time splits and traffic, in a row on every rank."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpcrl.activity import Activity, Phase
from hpcrl.cluster.collectives import broadcast, gather
from hpcrl.cluster.ranks import Ranks
from hpcrl.cluster.waiting import Waiter
from hpcrl.metrics import UPDATE_METRICS, MeanReducer, Range, Row, range_columns
from hpcrl.roles.account import Account
from hpcrl.roles.recorder import Recorder
from hpcrl.roles.station import Station

_ACTOR_PHASES = (Phase.ACTING, Phase.INFERENCE, Phase.LEARNING, Phase.TRANSPORT, Phase.WAITING)
_LEARNER_PHASES = (
    Phase.LEARNING,
    Phase.REDUCING,
    Phase.PUBLISHING,
    Phase.INFERENCE,
    Phase.TRANSPORT,
    Phase.WAITING,
)


class Reporter:
    """Every method is collective over the world.

    Args:
        ranks, station, waiter, activity: of this rank.
        recorder: the run's files, on rank 0; None elsewhere.
    """

    def __init__(
        self, ranks: Ranks, station: Station, waiter: Waiter, activity: Activity, recorder: Recorder | None
    ) -> None:
        self._ranks, self._station, self._recorder = ranks, station, recorder
        self._waiter, self._activity = waiter, activity

    def collect_episodes(self) -> None:
        """Bring the episodes of all ranks to rank 0's record."""
        parts = gather(self._ranks.world, self._station.role.take_episodes(), self._waiter)
        if self._recorder is not None:
            self._recorder.add_episodes(np.concatenate(parts))

    def updates_so_far(self) -> Mapping[str, NDArray]:
        """What the reducers of all ranks know of the updates of the running iteration, on rank 0; {} elsewhere."""
        reducer = self._station.role.reducer
        parts = gather(self._ranks.world, None if reducer is None else reducer.state(), self._waiter)
        return _merge(parts).state() if parts else {}

    def report(self, progress: Row, stop_return: float | None) -> tuple[Row, bool]:
        """The row of an iteration, written by rank 0, and whether the last 100 episodes reach `stop_return`.

        Args:
            progress: columns that every rank knows.
            stop_return: the target; None never is reached.
        """
        self.collect_episodes()
        parts = gather(self._ranks.world, self._take_part(), self._waiter)
        row: Row = {}
        reached = False
        if self._recorder is not None:
            row = dict.fromkeys(self._recorder.columns, math.nan) | progress
            row |= self._recorder.episodes.take() | _merge([part.updates for part in parts]).take()
            row |= _time_split(np.array([part.seconds for part in parts]), self._ranks)
            row |= _sums([part.counts for part in parts]) | _ranges([part.ranges for part in parts])
            row["rollout/unrolls_cut"] = sum(part.unrolls_cut for part in parts)
            row["rollout/env_restarts"] = sum(part.env_restarts for part in parts)
            row = self._recorder.report(row)
            reached = stop_return is not None and row["rollout/return_last_100"] >= stop_return
        return broadcast(self._ranks.world, (row, reached), self._waiter)

    def _take_part(self) -> _Part:
        role = self._station.role
        updates = None if role.reducer is None else role.reducer.take_state()
        return _Part(
            self._activity.take_seconds(),
            role.take_counts(),
            role.take_ranges(),
            updates,
            role.unrolls_cut,
            self._station.restarts.count,
        )

    def account(self) -> Account:
        """What became of the unrolls, or gradients, of all ranks, on every rank."""
        parts = gather(self._ranks.world, self._station.role.account, self._waiter)
        total = reduce(add, parts) if parts else self._station.role.account
        return broadcast(self._ranks.world, total, self._waiter)


class _Part(NamedTuple):
    """What one rank brings to a report."""

    seconds: NDArray[np.float64]
    counts: dict[str, float]
    ranges: dict[str, Range]
    updates: Mapping[str, NDArray] | None
    unrolls_cut: int
    env_restarts: int


def _merge(parts: Sequence[Mapping[str, NDArray] | None]) -> MeanReducer:
    return MeanReducer.merged(UPDATE_METRICS, [part for part in parts if part is not None])


def _sums(parts: Sequence[Mapping[str, float]]) -> Row:
    """The sums over the ranks of what any of them counts."""
    sums: Row = defaultdict(float)
    for part in parts:
        for name, count in part.items():
            sums[name] += count
    return dict(sums)


def _ranges(parts: Sequence[Mapping[str, Range]]) -> Row:
    prefixes = sorted({prefix for part in parts for prefix in part})
    rows = [range_columns(prefix, [part[prefix] for part in parts if prefix in part]) for prefix in prefixes]
    return {name: value for row in rows for name, value in row.items()}


def _time_split(seconds: np.ndarray, ranks: Ranks) -> Row:
    """Mean seconds of actors and learners in each phase that has a column."""
    layout = ranks.layout
    row = {_column("actor", phase): seconds[list(layout.actors), phase].mean() for phase in _ACTOR_PHASES}
    row |= {_column("learner", phase): seconds[list(layout.learners), phase].mean() for phase in _LEARNER_PHASES}
    return {name: float(mean) for name, mean in row.items()}


def _column(role: str, phase: Phase) -> str:
    return f"time/{role}_{phase.name.lower()}_s"
