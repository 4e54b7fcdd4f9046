"""A run as lines of text, for a terminal of any width."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpcrl.viewing.actors import actor_steps, describe, spread_of
from hpcrl.viewing.measures import (
    NEWEST,
    OTHER,
    PHASES,
    RETURNS,
    best,
    env_steps_per_s,
    return_column,
    seconds_to_go,
    time_split,
)
from hpcrl.viewing.run import Run
from hpcrl.viewing.words import age, as_list, as_mapping, as_number, duration, number, plain

_LABEL = 13
#: Of the time that is shown.
_LEAST_SHARE = 0.005


@dataclass(frozen=True)
class Glyphs:
    """What curves and bars are made of.

    Attributes:
        levels: of a curve, from low to high.
        bar, track: of a bar; of what it has not filled.
        cut: where a line is cut.
    """

    levels: str
    bar: str
    track: str
    cut: str

    @classmethod
    def of(cls, encoding: str | None) -> Glyphs:
        """Those that an encoding of text has."""
        if (encoding or "").lower().replace("-", "") == "utf8":
            return cls("▁▂▃▄▅▆▇█", "█", "░", "…")
        return cls("_.-=+*#@", "#", "-", "~")


def sparkline(values: NDArray[np.float64], width: int, levels: str) -> str:
    """The course of numbers [n] in at most `width` characters, each a mean; blank where there is none."""
    parts = [part[np.isfinite(part)] for part in np.array_split(values, min(width, len(values)) or 1)]
    means = np.array([part.mean() if len(part) else math.nan for part in parts])
    if not np.isfinite(means).any():
        return ""
    least, most = np.nanmin(means), np.nanmax(means)
    scaled = (means - least) / (most - least) if most > least else np.where(np.isfinite(means), 0.5, math.nan)
    places = [None if math.isnan(share) else round(share * (len(levels) - 1)) for share in scaled.tolist()]
    return "".join(" " if place is None else levels[place] for place in places)


def bar(share: float, width: int, glyph: str) -> str:
    """A share of 0 to 1 as a bar."""
    return glyph * round(min(1.0, max(0.0, share)) * width)


def screen(run: Run, width: int, glyphs: Glyphs, now: float) -> list[str]:
    """Lines of at most `width` characters.

    Args:
        run: what is shown.
        width: of the terminal.
        glyphs: for curves and bars.
        now: Unix time.
    """
    lines = [f"{run.name}: {run.state}", f"{run.algorithm} on {run.env}, seed {run.seed}", ""]
    lines += [f"{label:{_LABEL}}{text}" for label, text in _rows(run, width - _LABEL, glyphs, now)]
    return [line if len(line) <= width else line[: width - 1] + glyphs.cut for line in lines]


def _rows(run: Run, width: int, glyphs: Glyphs, now: float) -> Iterator[tuple[str, str]]:
    yield from _progress(run, width, glyphs, now)
    yield from _learning(run, width, glyphs)
    yield from _lag(run, width, glyphs)
    yield from _split(run, width, glyphs)
    yield from _actors(run)
    yield from _machine(run)
    yield "checkpoint", _checkpoint(run, now)
    yield "restarts", _restarts(run)
    for note in run.notes:
        yield "note", note


def _progress(run: Run, width: int, glyphs: Glyphs, now: float) -> Iterator[tuple[str, str]]:
    steps = run.metrics.last("env_steps") if len(run.metrics) else 0.0
    share = steps / run.total_env_steps if run.total_env_steps > 0 else math.nan
    yield "env steps", f"{number(steps, ',.0f')} of {number(run.total_env_steps, ',.0f')} ({number(share, '.0%')})"
    if math.isfinite(share):
        yield "", bar(share, width, glyphs.bar).ljust(width, glyphs.track)
    elapsed, to_go = duration(run.metrics.last("time/elapsed_s")), seconds_to_go(run)
    left = f", {duration(to_go)} to go" if math.isfinite(to_go) else ""
    yield "time", f"{elapsed} trained{left}, last wrote {age(now - run.written)} ago"


def _learning(run: Run, width: int, glyphs: Glyphs) -> Iterator[tuple[str, str]]:
    column = return_column(run.metrics)
    returns = run.metrics.column(column)
    yield "return", f"{number(run.metrics.last(column))}, best {number(best(returns))} ({RETURNS[column]})"
    if curve := sparkline(returns, width, glyphs.levels):
        yield "", curve
    rates = run.metrics.column("time/env_steps_per_s")
    known = rates[np.isfinite(rates)]
    median = float(np.median(known)) if len(known) else math.nan
    newest = number(env_steps_per_s(run.metrics), ",.0f")
    yield (
        "env steps/s",
        f"{newest} over the last {min(NEWEST, len(run.metrics))} reports, median {number(median, ',.0f')}",
    )
    if curve := sparkline(rates, width, glyphs.levels):
        yield "", curve


def _lag(run: Run, width: int, glyphs: Glyphs) -> Iterator[tuple[str, str]]:
    metrics = run.metrics
    least, mean, most = (metrics.last(f"lag/{name}") for name in ("min", "mean", "max"))
    if not math.isfinite(mean):
        return
    dropped = float(np.nansum(metrics.column("lag/dropped_unrolls")))
    yield "lag", f"{mean:.2f} updates ({number(least, '.0f')} to {number(most, '.0f')}), {dropped:,.0f} unrolls dropped"
    if most > 0 and (curve := sparkline(metrics.column("lag/mean"), width, glyphs.levels)):
        yield "", curve


def _split(run: Run, width: int, glyphs: Glyphs) -> Iterator[tuple[str, str]]:
    splits = time_split(run.metrics, NEWEST)
    if not splits:
        return
    column = width // len(splits)
    room = min(40, column - 8)
    yield "time split", "".join(f"{role:{column}}" for role in splits).rstrip()
    for phase in (*PHASES, OTHER):
        if any(shares.get(phase, 0.0) >= _LEAST_SHARE for shares in splits.values()):
            shown = [_share(shares.get(phase, 0.0), room, glyphs) for shares in splits.values()]
            yield f"  {phase}", "".join(f"{text:{column}}" for text in shown).rstrip()


def _share(share: float, room: int, glyphs: Glyphs) -> str:
    return f"{share:4.0%} {bar(share, room, glyphs.bar)}" if share >= _LEAST_SHARE else ""


def _actors(run: Run) -> Iterator[tuple[str, str]]:
    known = actor_steps(run)
    if (spread := spread_of(known, run)) is not None:
        actors = len(as_mapping(run.layout.get("actors")))
        yield "actors", f"{actors:,}; env steps of one environment, by newest episodes of {spread.ranks:,}:"
        yield "", describe(spread, ",.0f")


def _machine(run: Run) -> Iterator[tuple[str, str]]:
    layout, metrics = run.layout, run.metrics
    ranks, hosts = as_number(layout.get("ranks")), as_list(layout.get("hosts"))
    if math.isfinite(ranks):
        learners = len(as_list(layout.get("learners")))
        yield "ranks", f"{ranks:,.0f}; nodes: {len(set(map(str, hosts))):,}, learners: {learners:,}"
    if math.isfinite(busy := metrics.last("gpu/busy_percent_mean")):
        ends = [number(metrics.last(f"gpu/busy_percent_{name}"), ".0f") for name in ("min", "max")]
        yield "GPUs busy", f"{busy:.0f} % ({ends[0]} to {ends[1]})"


def _checkpoint(run: Run, now: float) -> str:
    if not run.checkpoints:
        return "none yet"
    newest = run.checkpoints[-1]
    when = "its file is missing" if newest.written is None else f"{age(now - newest.written)} ago"
    return f"{newest.name}, {when}, score {number(newest.score)}"


def _restarts(run: Run) -> str:
    places = [number(as_number(resume.get("env_steps")), ",.0f") for resume in run.resumes]
    shown = f" (at env steps {'..., ' if len(places) > 5 else ''}{'; '.join(places[-5:])})" if places else ""
    jobs = f", job {plain(run.jobs[-1])}" if run.jobs else ""
    return f"{len(places)}{shown}{jobs}"
