"""Curves of a scaling benchmark: medians by layout, and efficiency against the smallest one."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.repeats import Repeat, Series


class Spread(NamedTuple):
    """Of several repeats."""

    median: float
    least: float
    most: float


@dataclass(frozen=True)
class Point:
    """The repeats on one layout.

    Attributes:
        rates: env steps/s of each.
        shortest_s: wall time that the shortest of them was measured for.
    """

    ranks: int
    nodes: int
    learners: int
    actors: int
    rates: tuple[float, ...]
    shortest_s: float

    @property
    def rate(self) -> Spread:
        """Env steps/s."""
        return Spread(statistics.median(self.rates), min(self.rates), max(self.rates))

    @property
    def roles(self) -> str:
        """Learners + actors; "both" where every rank is both, "of them" where some ranks are."""
        if self.learners + self.actors == self.ranks:
            return f"{self.learners} + {self.actors}"
        return "both" if self.learners == self.actors else f"{self.learners} of {self.actors}"


@dataclass(frozen=True)
class Curve:
    """The layouts that share all but their size; by ranks, then nodes. The first one is the base of efficiency."""

    series: Series
    points: Sequence[Point]

    @property
    def base(self) -> Point:
        """The layout with the smallest number of ranks."""
        return self.points[0]

    @property
    def by_actors(self) -> bool:
        """Whether points differ by actors alone, beside as many learners: then efficiency is of each actor."""
        learners = {point.learners for point in self.points}
        return len(learners) == 1 and all(point.learners + point.actors == point.ranks for point in self.points)

    def ideal(self, point: Point) -> float:
        """Env steps/s if each rank (or actor, see `by_actors`) of a point did as much as one of the base."""
        added = point.actors / self.base.actors if self.by_actors else point.ranks / self.base.ranks
        return self.base.rate.median * added

    def efficiency(self, point: Point) -> Spread:
        """Env steps/s of a point over the ideal. Its range is that of the point's rates; the base's median is fixed."""
        return Spread(*(rate / self.ideal(point) for rate in point.rate))

    @property
    def name(self) -> str:
        """What tells it from other curves of its mode."""
        series = self.series
        each = " per actor" if series.mode == "weak" else ""
        batch = "" if series.batch_envs in (None, series.num_envs) else f" in batches of {series.batch_envs}"
        work = f"{series.num_envs} envs{batch} and {series.env_steps:,} steps{each}"
        return ", ".join([series.algorithm, series.env, work, *filter(None, [" ".join(_but_env(series.options))])])


def _but_env(options: Sequence[str]) -> list[str]:
    """The options without --env and its value, which has a place of its own."""
    return [
        word
        for place, word in enumerate(options)
        if word.partition("=")[0] != "--env" and (place == 0 or options[place - 1] != "--env")
    ]


def curves(repeats: Iterable[Repeat]) -> list[Curve]:
    """A curve for each series; a repeat that is there twice, as in a file named twice, counts once."""
    grouped: dict[Series, dict[tuple[int, int, int, int], list[Repeat]]] = defaultdict(lambda: defaultdict(list))
    for repeat in repeats:
        same = grouped[repeat.series][repeat.ranks, repeat.nodes, repeat.learners, repeat.actors]
        if repeat not in same:
            same.append(repeat)
    found = []
    for series in sorted(grouped, key=repr):
        points = [
            Point(*layout, tuple(run.env_steps_per_s for run in runs), min(run.measured_s for run in runs))
            for layout, runs in sorted(grouped[series].items())
        ]
        found.append(Curve(series, points))
    return found


def count(number: int, word: str) -> str:
    """A number and what it counts."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


_HEADER = (
    *("ranks", "nodes", "learners + actors", "env steps/s", "range", "per actor", "efficiency", "range"),
    *("repeats", "shortest"),
)


def markdown(curve: Curve) -> str:
    """A curve as a table."""
    rows = [_HEADER, ("---:",) * len(_HEADER)]
    for point in curve.points:
        rate, efficiency = point.rate, curve.efficiency(point)
        rows.append(
            (
                f"{point.ranks}",
                f"{point.nodes}",
                point.roles,
                f"{rate.median:,.0f}",
                f"{rate.least:,.0f}-{rate.most:,.0f}",
                f"{rate.median / point.actors:,.0f}",
                f"{efficiency.median:.0%}",
                f"{100 * efficiency.least:.0f}-{efficiency.most:.0%}",
                f"{len(point.rates)}",
                f"{point.shortest_s:.1f} s",
            )
        )
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([f"### {curve.series.mode.title()} scaling: {curve.name}", "", *lines])


def notes(repeats: Sequence[Repeat], found: Sequence[Curve]) -> list[str]:
    """What the tables are to be read with: the base of efficiency, and where and with what was measured."""
    machines = sorted({f"{run.machine.get('cpu')}, {run.machine.get('cores')} cores for rank 0" for run in repeats})
    commits = sorted({str(run.git_commit) for run in repeats})
    return [
        "Per actor: env steps/s over the number of ranks that act. Efficiency: env steps/s over those of as many ranks",
        "as fast as those of the table's first layout; where learners stay the same and only actors are added, of as",
        "many actors. Medians; ranges from least to most. Shortest: wall time of the shortest repeat.",
        f"Machines: {'; '.join(machines)}. Commits: {', '.join(commits)}.",
    ]
