"""Learning curves of runs that belong together: their median, and a band around it."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpcrl.viewing.defaults import completed
from hpcrl.viewing.measures import RETURN, RETURNS
from hpcrl.viewing.run import Run
from hpcrl.viewing.words import plain

#: Runs from which the band is from the lower to the upper quartile.
_QUARTILES_FROM = 5
_GRID = 200
#: Of a configuration, what makes no other experiment.
_ASIDE = frozenset(
    {"seed", "run_dir", "resume", "ranks", "tensorboard", "episode_log", "profile"}
    | {"checkpoint_every", "checkpoint_keep", "checkpoint_milestones", "checkpoint_local", "hang_timeout"}
)
#: What a name of a run has that tells it from others of the same kind: its seed and the time of its start.
_OWN = re.compile(r"[-_.]?seed[-_]?[0-9]+|[-_.]?[0-9]{8}-[0-9]{6}")

X_AXES = {"env_steps": "env_steps", "time": "time/elapsed_s"}


@dataclass(frozen=True, eq=False)
class Band:
    """A group of curves on a common grid [n]; where there is one run, all three are its own."""

    x: NDArray[np.float64]
    low: NDArray[np.float64]
    median: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that are one curve.

    Attributes:
        env: whose returns they are.
        name: what tells the group from others of the environment.
    """

    env: str
    name: str
    runs: tuple[Run, ...]

    @property
    def column(self) -> str:
        """What is drawn: the first of RETURNS that all runs have."""
        shared = (name for name in RETURNS if all(run.metrics.has(name) for run in self.runs))
        return next(shared, RETURN)

    @property
    def label(self) -> str:
        """For a legend: the name, how many runs there are, and what the band is."""
        other = "" if self.column == RETURN else f", {RETURNS[self.column]}"
        if len(self.runs) == 1:
            return f"{self.name}, seed {self.runs[0].seed}{other}"
        seeds = "seeds" if len({run.seed for run in self.runs}) == len(self.runs) else "runs"
        band = "quartiles" if len(self.runs) >= _QUARTILES_FROM else "least to most"
        return f"{self.name}: median of {len(self.runs)} {seeds}, band: {band}{other}"

    def curves(self, x: str) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Both coordinates of every run's curve, of those that have one.

        Args:
            x: a name in X_AXES.
        """
        return [curve for run in self.runs if len((curve := _curve(run, x, self.column))[0])]

    def band(self, x: str) -> Band | None:
        """Where all runs are; None where they have nothing in common."""
        curves = self.curves(x)
        if not curves:
            return None
        begin, end = max(xs[0] for xs, _ in curves), min(xs[-1] for xs, _ in curves)
        if begin > end:
            return None
        if len(curves) == 1:
            xs, ys = curves[0]
            return Band(xs, ys, ys, ys)
        grid = np.linspace(begin, end, _GRID)
        values = np.array([np.interp(grid, xs, ys) for xs, ys in curves])
        ends = (25, 75) if len(curves) >= _QUARTILES_FROM else (0, 100)
        low, median, high = np.percentile(values, (ends[0], 50, ends[1]), axis=0)
        return Band(grid, low, median, high)


def group_runs(runs: Sequence[Run], by_name: bool = False) -> list[Group]:
    """Runs of the same configuration but for seed and folder are one group; in the order in which they first come.

    Args:
        runs: to group.
        by_name: algorithm, environment and name without seed and time decide instead, whatever else differs.
    """
    found: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        found[json.dumps(_kind(run, by_name), sort_keys=True)].append(run)
    members = list(found.values())
    return [
        Group(same[0].env, _name(same[0], [other[0] for other in members], by_name), tuple(same)) for same in members
    ]


def _kind(run: Run, by_name: bool) -> object:
    if by_name:
        return [run.algorithm, run.env, _stem(run)]
    options = {name: value for name, value in completed(run.config).items() if name not in _ASIDE}
    # How many ranks there were is in the configuration only where it was asked for.
    return [options, run.layout.get("ranks")] if options else str(run.path)


def _stem(run: Run) -> str:
    return _OWN.sub("", run.name) or run.name


def _name(run: Run, firsts: Sequence[Run], by_name: bool) -> str:
    """The algorithm, and what tells a group from the others of its environment and algorithm."""
    rivals = [other for other in firsts if (other.env, other.algorithm) == (run.env, run.algorithm)]
    if by_name:
        return f"{run.algorithm}, {_stem(run)}" if len(rivals) > 1 else run.algorithm
    mine, theirs = completed(run.config), [completed(other.config) for other in rivals]
    names = [name for name in mine if name not in _ASIDE and any(other.get(name) != mine[name] for other in theirs)]
    words = [run.algorithm, *(plain(f"{name.replace('_', '-')} {mine[name]}") for name in names)]
    if len({str(other.layout.get("ranks")) for other in rivals}) > 1:
        words.append(plain(f"{run.layout.get('ranks')} ranks"))
    return ", ".join(words)


def _curve(run: Run, x: str, y: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    xs, ys = run.metrics.column(X_AXES[x]), run.metrics.column(y)
    known = np.isfinite(xs) & np.isfinite(ys)
    # Interpolation needs them in order, which a damaged file may not be in.
    order = np.argsort(xs[known], kind="stable")
    return xs[known][order], ys[known][order]
