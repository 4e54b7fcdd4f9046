"""A run as lines of text, for a terminal of any width."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpcrl.viewing.actors import actor_steps, describe, read_episodes, spread_of
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
from hpcrl.words import plural

_LABEL = 13
#: Of the time that is shown; of that for which there is room in a low terminal.
_LEAST_SHARE, _LARGE_SHARE = 0.005, 0.02
#: Of episodes.csv.
_NEWEST_BYTES = 1 << 21
#: What a low terminal leaves out, in this order.
_CURVE, _SMALL_PHASE, _PHASE = 1, 2, 3


class _Row(NamedTuple):
    """A label, a text, and what it is where a low terminal may leave it out."""

    label: str
    text: str
    spare: int = 0


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


def screen(run: Run, width: int, glyphs: Glyphs, now: float, height: int | None = None) -> list[str]:
    """Lines of at most `width` characters.

    Args:
        run: what is shown.
        width: of the terminal.
        glyphs: for curves and bars.
        now: Unix time.
        height: of the terminal: first curves, then phases of little time, then the others make room; None: any.
    """
    lines = [f"{run.name}: {run.state}", f"{run.algorithm} on {run.env}, seed {run.seed}"]
    lines += [f"{'note':{_LABEL}}{note}" for note in run.notes] + [""]
    rows = list(_rows(run, width - _LABEL, glyphs, now))
    if height is not None:
        rows = _fitting(rows, height - len(lines))
    lines += [f"{row.label:{_LABEL}}{row.text}" for row in rows]
    return [line if len(line) <= width else line[: width - 1] + glyphs.cut for line in lines]


def _fitting(rows: list[_Row], height: int) -> list[_Row]:
    """What of some rows has room, from the first to leave out to the last, from below."""
    spare = sorted((row.spare, -place) for place, row in enumerate(rows) if row.spare)
    left_out = {-place for _, place in spare[: max(0, len(rows) - height)]}
    return [row for place, row in enumerate(rows) if place not in left_out]


def _rows(run: Run, width: int, glyphs: Glyphs, now: float) -> Iterator[_Row]:
    yield from _progress(run, width, glyphs, now)
    yield from _learning(run, width, glyphs)
    yield from _lag(run, width, glyphs)
    yield from _split(run, width, glyphs)
    yield from _actors(run)
    yield from _machine(run)
    yield _Row("checkpoint", _checkpoint(run, now))
    yield _Row("restarts", _restarts(run))


def _progress(run: Run, width: int, glyphs: Glyphs, now: float) -> Iterator[_Row]:
    share = run.env_steps / run.total_env_steps if run.total_env_steps > 0 else math.nan
    yield _Row("env steps", f"{run.env_steps:,.0f} of {number(run.total_env_steps, ',.0f')} ({number(share, '.0%')})")
    if math.isfinite(share):
        yield _Row("", bar(share, width, glyphs.bar).ljust(width, glyphs.track))
    elapsed, to_go = duration(run.metrics.last("time/elapsed_s")), seconds_to_go(run)
    left = f", {duration(to_go)} to go" if math.isfinite(to_go) else ""
    trained = f"{elapsed} trained{left}" if len(run.metrics) else "no report yet"
    yield _Row("time", f"{trained}, last wrote {age(now - run.written)} ago")


def _learning(run: Run, width: int, glyphs: Glyphs) -> Iterator[_Row]:
    if not len(run.metrics):
        return
    column = return_column(run.metrics)
    returns = run.metrics.column(column)
    yield _Row("return", f"{number(run.metrics.last(column))}, best {number(best(returns))} ({RETURNS[column]})")
    if curve := sparkline(returns, width, glyphs.levels):
        yield _Row("", curve, _CURVE)
    rates = run.metrics.column("time/env_steps_per_s")
    known = rates[np.isfinite(rates)]
    median = float(np.median(known)) if len(known) else math.nan
    newest = number(env_steps_per_s(run.metrics), ",.0f")
    reports = plural(min(NEWEST, len(run.metrics)), "report")
    yield _Row("env steps/s", f"{newest} over the last {reports}, median {number(median, ',.0f')}")
    if curve := sparkline(rates, width, glyphs.levels):
        yield _Row("", curve, _CURVE)


def _lag(run: Run, width: int, glyphs: Glyphs) -> Iterator[_Row]:
    metrics = run.metrics
    least, mean, most = (metrics.last(f"lag/{name}") for name in ("min", "mean", "max"))
    if not math.isfinite(mean):
        return
    dropped = float(np.nansum(metrics.column("lag/dropped_unrolls")))
    ends = f"{number(least, '.0f')} to {number(most, '.0f')}"
    yield _Row("lag", f"{mean:.2f} updates ({ends}), {plural(dropped, 'unroll')} dropped")
    if most > 0 and (curve := sparkline(metrics.column("lag/mean"), width, glyphs.levels)):
        yield _Row("", curve, _CURVE)


def _split(run: Run, width: int, glyphs: Glyphs) -> Iterator[_Row]:
    splits = time_split(run, NEWEST)
    if not splits:
        return
    column = width // len(splits)
    room = min(40, column - 8)
    yield _Row("time split", "".join(f"{role:{column}}" for role in splits).rstrip(), _PHASE)
    for phase in (*PHASES, OTHER):
        parts = [shares.get(phase, 0.0) for shares in splits.values()]
        if max(parts) >= _LEAST_SHARE:
            text = "".join(f"{_share(part, room, glyphs):{column}}" for part in parts).rstrip()
            yield _Row(f"  {phase}", text, _PHASE if max(parts) >= _LARGE_SHARE else _SMALL_PHASE)


def _share(share: float, room: int, glyphs: Glyphs) -> str:
    return f"{share:4.0%} {bar(share, room, glyphs.bar)}" if share >= _LEAST_SHARE else ""


def _actors(run: Run) -> Iterator[_Row]:
    known = actor_steps(run, read_episodes(run, (), _NEWEST_BYTES))
    if (spread := spread_of(known, run)) is not None:
        actors = len(as_mapping(run.layout.get("actors")))
        yield _Row("actors", f"{actors:,}; env steps of one environment, by newest episodes of {spread.ranks:,}:")
        yield _Row("", describe(spread, ",.0f"))


def _machine(run: Run) -> Iterator[_Row]:
    layout, metrics = run.layout, run.metrics
    ranks, hosts = as_number(layout.get("ranks")), as_list(layout.get("hosts"))
    if math.isfinite(ranks):
        learners = len(as_list(layout.get("learners")))
        yield _Row("ranks", f"{ranks:,.0f}; nodes: {len(set(map(str, hosts))):,}, learners: {learners:,}")
    if math.isfinite(busy := metrics.last("gpu/busy_percent_mean")):
        ends = [number(metrics.last(f"gpu/busy_percent_{name}"), ".0f") for name in ("min", "max")]
        yield _Row("GPUs busy", f"{busy:.0f} % ({ends[0]} to {ends[1]})")


def _checkpoint(run: Run, now: float) -> str:
    if not run.checkpoints:
        return "none yet"
    newest = run.checkpoints[-1]
    when = "its file is missing" if newest.written is None else f"{age(now - newest.written)} ago"
    if newest.is_damaged:
        when = f"damaged ({newest.size:,.0f} of {newest.bytes:,.0f} bytes), {when}"
    return f"{newest.name}, {when}, score {number(newest.score)}"


def _restarts(run: Run) -> str:
    places = [number(as_number(resume.get("env_steps")), ",.0f") for resume in run.resumes]
    shown = f" (at env steps {'..., ' if len(places) > 5 else ''}{'; '.join(places[-5:])})" if places else ""
    jobs = f", job {plain(run.jobs[-1])}" if run.jobs else ""
    return f"{len(places)}{shown}{jobs}"
