"""Charts as inline SVG, whose colours are those of the page's style."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpcrl.viewing.words import short

_WIDTH, _HEIGHT = 380, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 20, 10, 40
_MOST_POINTS = 300
_MOST_BINS = 30
#: Of fewer different numbers, each has a bar of its own, of at most so much of the page.
_MOST_BARS = 15
_WIDEST_BAR = 24.0
#: Colours that the style has, as the classes c0, c1 and so on.
COLOURS = 7
#: What is drawn of neighbours that are too many to draw each.
Merging = Literal["mean", "min", "max"]
_MERGE: dict[Merging, np.ufunc] = {"mean": np.add, "min": np.minimum, "max": np.maximum}


class Line(NamedTuple):
    """One curve: its name, both coordinates [n], NaN where there is none, and how neighbours become one point."""

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    merging: Merging = "mean"


class _Scale(NamedTuple):
    """From numbers to places on the page, one axis."""

    low: float
    high: float
    begin: float
    end: float

    def place(self, value: float) -> float:
        return self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin)


def line_chart(title: str, lines: Sequence[Line], x_label: str) -> str:
    """Curves over one axis, with a legend where there are several; nothing where no curve has a point."""
    known = [_points(line) for line in lines]
    drawn = [(number, line) for number, line in enumerate(known) if len(line.x)]
    if not drawn:
        return ""
    x = _scale(np.concatenate([line.x for _, line in drawn]), _LEFT, _WIDTH - _RIGHT)
    y = _scale(np.concatenate([line.y for _, line in drawn]), _HEIGHT - _BOTTOM, _TOP)
    curves = "".join(_curve(line, x, y, number % COLOURS) for number, line in drawn)
    legend = "".join(f'<span><i class="c{number % COLOURS}"></i>{escape(line.name)}</span>' for number, line in drawn)
    return _figure(title, _axes(x, y, x_label) + curves, legend if len(drawn) > 1 else "")


def histogram(title: str, values: NDArray[np.float64], x_label: str) -> str:
    """How often numbers [n] are in equal parts of their range, or of few each; nothing where there is none."""
    known = values[np.isfinite(values)]
    if not len(known):
        return ""
    x = _scale(known, _LEFT, _WIDTH - _RIGHT)
    different, counts = np.unique(known, return_counts=True)
    if len(different) <= _MOST_BARS:
        margin = (x.high - x.low) / 20
        x = x._replace(low=x.low - margin, high=x.high + margin)
        places = np.array([x.place(value) for value in different.tolist()])
        width = max(2.0, min([_WIDEST_BAR, *(np.diff(places) - 1).tolist()]))
        begins, ends = places - width / 2, places + width / 2
    else:
        counts, edges = np.histogram(known, min(_MOST_BINS, len(different)), (x.low, x.high))
        places = np.array([x.place(edge) for edge in edges.tolist()])
        begins, ends = places[:-1], np.maximum(places[1:] - 1, places[:-1] + 0.5)
    y = _Scale(0.0, float(counts.max()), _HEIGHT - _BOTTOM, _TOP)
    bars = [
        f'<rect class="bar" x="{begin:.1f}" y="{y.place(count):.1f}" '
        f'width="{end - begin:.1f}" height="{y.begin - y.place(count):.1f}"/>'
        for begin, end, count in zip(begins.tolist(), ends.tolist(), counts.tolist(), strict=True)
    ]
    return _figure(title, _axes(x, y, x_label) + "".join(bars), "")


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers at equal distances within a range, at most `most` + 1 of them."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _points(line: Line) -> Line:
    """The points of a curve without NaN, as many neighbours merged into one as leave few enough."""
    known = np.isfinite(line.x) & np.isfinite(line.y)
    x, y = line.x[known], line.y[known]
    if len(x) > _MOST_POINTS:
        begins = np.arange(0, len(x), math.ceil(len(x) / _MOST_POINTS))
        sizes = np.diff(begins, append=len(x))
        x, merged = np.add.reduceat(x, begins) / sizes, _MERGE[line.merging].reduceat(y, begins)
        y = merged / sizes if line.merging == "mean" else merged
    return line._replace(x=x, y=y)


def _scale(values: NDArray[np.float64], begin: float, end: float) -> _Scale:
    low, high = float(values.min()), float(values.max())
    # Neighbours of a large number may be further apart than a share of it.
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
        low, high = (low - 0.5 * abs(low), high + 0.5 * abs(high)) if low else (0.0, 1.0)
    return _Scale(low, high, begin, end)


def _curve(line: Line, x: _Scale, y: _Scale, colour: int) -> str:
    points = [(x.place(at), y.place(value)) for at, value in zip(line.x.tolist(), line.y.tolist(), strict=True)]
    if len(points) == 1:
        return f'<circle class="c{colour}" cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="3"/>'
    joined = " ".join(f"{across:.1f},{up:.1f}" for across, up in points)
    return f'<polyline class="c{colour}" points="{joined}"/>'


def _axes(x: _Scale, y: _Scale, x_label: str) -> str:
    return "".join([*_x_axis(x, y), *_y_axis(x, y)]) + (
        f'<text x="{(x.begin + x.end) / 2:.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )


def _x_axis(x: _Scale, y: _Scale) -> Iterator[str]:
    for tick in ticks(x.low, x.high):
        at = x.place(tick)
        yield f'<line class="grid" x1="{at:.1f}" y1="{y.begin}" x2="{at:.1f}" y2="{y.end}"/>'
        yield f'<text x="{at:.1f}" y="{y.begin + 15}" text-anchor="middle">{short(tick, 6)}</text>'


def _y_axis(x: _Scale, y: _Scale) -> Iterator[str]:
    for tick in ticks(y.low, y.high):
        at = y.place(tick)
        yield f'<line class="grid" x1="{x.begin}" y1="{at:.1f}" x2="{x.end}" y2="{at:.1f}"/>'
        yield f'<text x="{x.begin - 5}" y="{at + 4:.1f}" text-anchor="end">{short(tick, 6)}</text>'


def _figure(title: str, inside: str, legend: str) -> str:
    name = escape(title)
    return (
        f'<figure><figcaption>{name}</figcaption><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{name}">'
        f'{inside}</svg><div class="legend">{legend}</div></figure>'
    )
