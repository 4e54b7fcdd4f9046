"""Brings the numbers of all ranks together: episodes, time splits and traffic, in a row on every rank."""

from __future__ import annotations

import math

import numpy as np

from hpcrl.activity import Activity, Phase
from hpcrl.cluster.collectives import broadcast, gather
from hpcrl.cluster.ranks import Ranks
from hpcrl.cluster.waiting import Waiter
from hpcrl.metrics import COLUMNS, Row
from hpcrl.roles.recorder import Recorder
from hpcrl.roles.station import Station

_TRAFFIC = ("comm/gradient_bytes", "comm/unroll_bytes", "comm/weights_bytes")
_SPLIT = (Phase.ACTING, Phase.WAITING, Phase.COMMUNICATING, Phase.LEARNING)


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
        parts = gather(self._ranks.world, None if learner is None else learner.take_episodes(), self._waiter)
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
        traffic = gather(self._ranks.world, None if learner is None else learner.take_traffic(), self._waiter)
        row: Row = {}
        reached = False
        if self._recorder is not None and learner is not None:
            row = dict.fromkeys(COLUMNS, math.nan) | progress
            row |= self._recorder.episodes.take() | learner.reducer.take()
            row |= _time_split(np.array(seconds), self._ranks)
            totals = np.sum([part for part in traffic if part is not None], axis=0)
            row |= dict(zip(_TRAFFIC, totals.tolist(), strict=True))
            row["rollout/unrolls_cut"] = learner.unrolls_cut
            row = self._recorder.report(row)
            reached = stop_return is not None and row["rollout/return_last_100"] >= stop_return
        return broadcast(self._ranks.world, (row, reached), self._waiter)


def _time_split(seconds: np.ndarray, ranks: Ranks) -> Row:
    """Mean seconds of actors and learners in each phase that has a column."""
    row: Row = {}
    for role, members in (("actor", ranks.layout.actors), ("learner", ranks.layout.learners)):
        for phase in _SPLIT:
            if (name := f"time/{role}_{phase.name.lower()}_s") in COLUMNS:
                row[name] = float(seconds[list(members), phase].mean())
    return row
