"""Brings the numbers of all ranks together: episodes, time splits and traffic, in a row on every rank."""

from __future__ import annotations

import math

import numpy as np

from hpcrl.activity import Activity, Phase
from hpcrl.cluster.collectives import broadcast, gather
from hpcrl.cluster.ranks import Ranks
from hpcrl.cluster.waiting import Waiter
from hpcrl.metrics import COLUMNS, Row, lag_columns
from hpcrl.roles.account import UnrollAccount
from hpcrl.roles.recorder import Recorder
from hpcrl.roles.station import Station

_ACTOR_PHASES = (Phase.ACTING, Phase.INFERENCE, Phase.TRANSPORT, Phase.WAITING)
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
        """Bring the learners' episodes to rank 0's record."""
        learner = self._station.learner
        parts = gather(self._ranks.world, None if learner is None else learner.intake.take_episodes(), self._waiter)
        if self._recorder is not None:
            self._recorder.add_episodes(np.concatenate([part for part in parts if part is not None]))

    def report(self, progress: Row, stop_return: float | None) -> tuple[Row, bool]:
        """The row of an iteration, written by rank 0, and whether the last 100 episodes reach `stop_return`.

        Args:
            progress: columns that every rank knows.
            stop_return: the target; None never is reached.
        """
        self.collect_episodes()
        learner = self._station.learner
        seconds = gather(self._ranks.world, self._activity.take_seconds(), self._waiter)
        counts = gather(self._ranks.world, self._station.role.take_counts(), self._waiter)
        lags = gather(self._ranks.world, None if learner is None else learner.intake.lag.take(), self._waiter)
        row: Row = {}
        reached = False
        if self._recorder is not None and learner is not None:
            row = dict.fromkeys(COLUMNS, math.nan) | progress
            row |= self._recorder.episodes.take() | learner.reducer.take()
            row |= _time_split(np.array(seconds), self._ranks)
            for part in counts:
                row |= {name: count + (0 if math.isnan(row[name]) else row[name]) for name, count in part.items()}
            row |= lag_columns([lag for lag in lags if lag is not None])
            row["rollout/unrolls_cut"] = learner.unrolls_cut
            row = self._recorder.report(row)
            reached = stop_return is not None and row["rollout/return_last_100"] >= stop_return
        return broadcast(self._ranks.world, (row, reached), self._waiter)

    def account(self) -> UnrollAccount:
        """What became of the unrolls of all actors, on every rank."""
        parts = gather(self._ranks.world, self._station.role.account, self._waiter)
        return broadcast(self._ranks.world, sum(parts, UnrollAccount()), self._waiter)


def _time_split(seconds: np.ndarray, ranks: Ranks) -> Row:
    """Mean seconds of actors and learners in each phase that has a column."""
    layout = ranks.layout
    row = {_column("actor", phase): seconds[list(layout.actors), phase].mean() for phase in _ACTOR_PHASES}
    row |= {_column("learner", phase): seconds[list(layout.learners), phase].mean() for phase in _LEARNER_PHASES}
    return {name: float(mean) for name, mean in row.items()}


def _column(role: str, phase: Phase) -> str:
    return f"time/{role}_{phase.name.lower()}_s"
