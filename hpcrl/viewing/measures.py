"""Numbers of a run that are worked out of its reports."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hpcrl.viewing.run import Run
from hpcrl.viewing.tables import Table
from hpcrl.viewing.words import as_list, as_mapping

RETURN = "rollout/return_last_100"
#: What is looked at of a run without a hundred episodes, in this order, and its name.
RETURNS = {
    RETURN: "return of the last 100 episodes",
    "eval/episode_return_mean": "return of evaluations",
    "rollout/episode_return_mean": "return of the episodes of each report",
}
PHASES = ("acting", "inference", "learning", "reducing", "publishing", "transport", "waiting")
OTHER = "other"
ROLES = ("actor", "learner")
#: Reports that "now" is.
NEWEST = 10


def return_column(metrics: Table) -> str:
    """The column that tells how well a run learns."""
    return next(filter(metrics.has, RETURNS), RETURN)


def best(values: NDArray[np.float64]) -> float:
    """The largest number; NaN where there is none."""
    known = values[np.isfinite(values)]
    return float(known.max()) if len(known) else math.nan


def env_steps_per_s(metrics: Table) -> float:
    """Over the newest reports; NaN before there is one."""
    steps, seconds = metrics.column("env_steps")[-NEWEST:], metrics.column("time/elapsed_s")[-NEWEST:]
    if len(steps) > 1 and seconds[-1] > seconds[0] and steps[-1] > steps[0]:
        return float((steps[-1] - steps[0]) / (seconds[-1] - seconds[0]))
    return metrics.last("time/env_steps_per_s")


def seconds_to_go(run: Run) -> float:
    """Until a run that goes on is at its end; NaN where that can't be told."""
    rate = env_steps_per_s(run.metrics)
    if not rate > 0 or not run.state.startswith("running"):
        return math.nan
    return max(0.0, run.total_env_steps - run.env_steps) / rate


def time_split(run: Run, newest: int | None = None) -> dict[str, dict[str, float]]:
    """Share of the time by role and phase, a mean over the ranks with the role; one role where each rank has both.

    Args:
        run: whose reports tell it.
        newest: only so many of them; None: all.

    Returns:
        Shares above 0 by role, then phase; "other" is what no column tells. None of a role that no column tells of.
    """
    metrics = run.metrics
    begin = 0 if newest is None else max(0, len(metrics) - newest)
    elapsed = metrics.column("time/elapsed_s")
    wall = float(elapsed[-1] - (elapsed[begin - 1] if begin else 0.0)) if len(elapsed) else math.nan
    splits = {}
    parts = {role: {phase: metrics.column(f"time/{role}_{phase}_s")[begin:] for phase in PHASES} for role in ROLES}
    if _has_one_role(run):
        # Of the same ranks, so what both roles tell is the same time.
        acting, learning = parts.values()
        parts = {" and ".join(ROLES): {phase: np.fmax(acting[phase], learning[phase]) for phase in PHASES}}
    for role, columns in parts.items():
        seconds = {phase: float(np.nansum(column)) for phase, column in columns.items()}
        told = sum(seconds.values())
        if metrics.is_whole or begin:
            seconds[OTHER] = max(0.0, wall - told) if math.isfinite(wall) else 0.0
        total = sum(seconds.values())
        if told > 0:
            splits[role] = {phase: part / total for phase, part in seconds.items() if part > 0}
    return splits


def _has_one_role(run: Run) -> bool:
    """Whether each rank both acts and learns."""
    actors, learners = as_mapping(run.layout.get("actors")), as_list(run.layout.get("learners"))
    return bool(actors) and set(actors) == set(map(str, learners))
