"""Learning curves and scaling as a picture, by matplotlib."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hpcrl.errors import ConfigError
from hpcrl.viewing.groups import Group
from hpcrl.viewing.measures import RETURNS
from hpcrl.viewing.scaling import ScalingCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Told apart without colour vision (Okabe and Ito 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":", "-.")
_LABELS = {"env_steps": "env steps", "time": "wall time, s"}
_LEGEND_WIDTH = 90


def draw(groups: Sequence[Group], scaling: Sequence[ScalingCurve], axes: Sequence[str], path: Path) -> None:
    """Draw a row for each environment, and one for scaling, as PNG or what the file's name says.

    Args:
        groups: of runs.
        scaling: curves by ranks.
        axes: what returns are drawn against, side by side: names in `hpcrl.viewing.groups.X_AXES`.
        path: of the picture.

    Raises:
        ConfigError: matplotlib is missing, or the file can't be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("hpcrl plot needs matplotlib: pip install 'hpcrl[plot]'") from None
    envs = list(dict.fromkeys(group.env for group in groups))
    rows, columns = len(envs) + bool(scaling), max(len(axes) if groups else 1, 2 if scaling else 1)
    figure = Figure(figsize=(1 + 5.5 * columns, 4.5 * rows), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    for env, row in zip(envs, grid, strict=False):
        for x, place in zip(axes, row, strict=False):
            _draw_returns(place, [group for group in groups if group.env == env], x)
        for place in row[len(axes) :]:
            place.set_axis_off()
        _add_legend(row[0], env)
    if scaling:
        _draw_scaling(grid[-1][0], grid[-1][1], scaling)
        _add_legend(grid[-1][0], "scaling")
        for place in grid[-1][2:]:
            place.set_axis_off()
    for place in grid.flat:
        place.grid(True, alpha=0.3, linewidth=0.6)
        place.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path)
    except OSError as error:
        raise ConfigError(f"{path} can't be written: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path} can't be written: {error}") from error


def _draw_returns(place: Axes, groups: Sequence[Group], x: str) -> None:
    from matplotlib.ticker import EngFormatter

    for number, group in enumerate(groups):
        colour, dash = COLOURS[number % len(COLOURS)], _DASHES[number // len(COLOURS) % len(_DASHES)]
        curves = group.curves(x)
        if len(curves) > 1:
            for xs, ys in curves:
                place.plot(xs, ys, color=colour, linewidth=0.6, alpha=0.4)
        band = group.band(x)
        if band is not None:
            place.fill_between(band.x, band.low, band.high, color=colour, alpha=0.2, linewidth=0)
            marker = "o" if len(band.x) == 1 else None
            place.plot(
                band.x, band.median, dash, color=colour, linewidth=1.6, marker=marker, label=_escaped(group.label)
            )
    place.set_xlabel(_LABELS[x])
    place.set_ylabel("\n".join(dict.fromkeys(RETURNS[group.column] for group in groups)))
    if x == "env_steps":
        place.xaxis.set_major_formatter(EngFormatter(sep=""))


def _draw_scaling(left: Axes, right: Axes, curves: Sequence[ScalingCurve]) -> None:
    from matplotlib.ticker import EngFormatter, PercentFormatter

    for number, curve in enumerate(curves):
        colour, medians = COLOURS[number % len(COLOURS)], curve.medians
        below = [median - min(rates) for median, rates in zip(medians, curve.rates, strict=True)]
        above = [max(rates) - median for median, rates in zip(medians, curve.rates, strict=True)]
        name = _escaped(f"{curve.name}: medians, bars from least to most")
        left.errorbar(curve.ranks, medians, (below, above), color=colour, marker="o", ms=4, capsize=3, label=name)
        ideal = [medians[0] / curve.ranks[0] * ranks for ranks in curve.ranks]
        left.plot(curve.ranks, ideal, ":", color=colour, linewidth=1)
        right.plot(curve.ranks, curve.efficiency, "o-", color=colour, markersize=4)
    left.plot([], [], ":", color="grey", label="ideal, from the smallest number of ranks")
    left.set_ylabel("env steps/s")
    left.yaxis.set_major_formatter(EngFormatter(sep=""))
    right.set_ylabel("efficiency")
    right.yaxis.set_major_formatter(PercentFormatter(1.0))
    for place in (left, right):
        place.set_xlabel("ranks")
        place.set_ylim(bottom=0)


def _add_legend(place: Axes, title: str) -> None:
    """Above the axes, where it covers nothing."""
    legend = place.legend(
        title=_escaped(title),
        loc="lower left",
        bbox_to_anchor=(0, 1.01),
        alignment="left",
        borderpad=0,
        frameon=False,
        fontsize="small",
    )
    legend.get_title().set(fontsize="large", fontweight="bold")


def _escaped(text: str) -> str:
    """In lines, and with dollars as they are: matplotlib takes what is between two for mathematics."""
    return textwrap.fill(text, _LEGEND_WIDTH).replace("$", r"\$")
