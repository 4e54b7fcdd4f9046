"""Draws what `benchmarks.scaling` measured, and prints it as tables.

    python -m benchmarks.plot FILE.jsonl... [-o scaling.png]

Strong and weak scaling stand beside each other. Above are env steps/s by ranks: medians, bars from the least to the
most, and dotted what so many ranks would make that are as fast as those of the smallest layout, the base. Below is the
share of that which was reached, the efficiency; where only actors are added to the same learners it is that of each
actor. There may be any number of files, from any number of job array tasks; a curve is what has the same mode,
algorithm, environment, work and options. Status 2, and no plot, where a line is incomplete or something else.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FixedFormatter, FixedLocator, LogLocator, NullLocator, PercentFormatter

from benchmarks.efficiency import Curve, Spread, count, curves, markdown, notes
from benchmarks.repeats import MODES, read
from hpcrl.errors import ConfigError, HpcrlError

#: Told apart without colour vision (Okabe and Ito 2008), and by their markers in grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
#: Largest over smallest number of ranks from which axes are logarithmic.
_LOGARITHMIC_FROM = 16
_LEGEND_WIDTH = 68


def main(words: Sequence[str] | None = None) -> int:
    """Draw and print; the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.plot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="of benchmarks.scaling")
    parser.add_argument("-o", "--output", type=Path, default=Path("scaling.png"))
    arguments = parser.parse_args(words)
    try:
        repeats = [repeat for path in arguments.files for repeat in read(path)]
        if not repeats:
            raise ConfigError(f"no repeats in {', '.join(map(str, arguments.files))}")
        found = curves(repeats)
        _save(draw(found), arguments.output)
    except HpcrlError as error:
        print(f"benchmarks.plot: {error}", file=sys.stderr)
        return error.exit_status
    for curve in found:
        print(markdown(curve) + "\n")
    print(*notes(repeats, found), f"Plot: {arguments.output}", sep="\n")
    return 0


def draw(found: Sequence[Curve]) -> Figure:
    """A column for each mode that there is: throughput above, efficiency below."""
    modes = [mode for mode in MODES if any(curve.series.mode == mode for curve in found)]
    figure = Figure(figsize=(1 + 5.5 * len(modes), 7), dpi=150, layout="constrained")
    axes = figure.subplots(2, len(modes), sharex="col", sharey="row", squeeze=False, height_ratios=(3, 2))
    logarithmic = any(curve.points[-1].ranks >= _LOGARITHMIC_FROM * curve.base.ranks for curve in found)
    for column, mode in enumerate(modes):
        above, below = axes[:, column]
        shown = [curve for curve in found if curve.series.mode == mode]
        for number, curve in enumerate(shown):
            _draw_curve(above, below, curve, number)
        _arrange_ranks(below, shown, logarithmic)
        _add_legend(above, f"{mode.title()} scaling")
    _arrange(axes[0, 0], axes[1, 0], logarithmic)
    for ax in axes.flat:
        ax.grid(True, alpha=0.3, linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_curve(above: Axes, below: Axes, curve: Curve, number: int) -> None:
    colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
    ranks = [point.ranks for point in curve.points]
    base = f" (base: {count(curve.base.ranks, 'rank')}{', by actors' if curve.by_actors else ''})"
    for ax, spreads, label in (
        (above, [point.rate for point in curve.points], textwrap.fill(curve.name, _LEGEND_WIDTH) + base),
        (below, [curve.efficiency(point) for point in curve.points], None),
    ):
        medians = [spread.median for spread in spreads]
        ax.errorbar(ranks, medians, _bars(spreads), label=label, color=colour, marker=marker, ms=5, lw=1.5, capsize=3)
    above.plot(ranks, [curve.ideal(point) for point in curve.points], ":", color=colour, linewidth=1.2)


def _bars(spreads: Sequence[Spread]) -> tuple[list[float], list[float]]:
    """How far the range reaches below and above the median."""
    return [s.median - s.least for s in spreads], [s.most - s.median for s in spreads]


def _arrange_ranks(ax: Axes, shown: Sequence[Curve], logarithmic: bool) -> None:
    """The axis of ranks: a tick where something was measured, with roles and nodes where all curves have the same."""
    several_nodes = any(point.nodes > 1 for curve in shown for point in curve.points)
    roles: dict[int, set[str]] = {}
    for curve in shown:
        for point in curve.points:
            nodes = f"\n{count(point.nodes, 'node')}" if several_nodes else ""
            roles.setdefault(point.ranks, set()).add(point.roles + nodes)
    ranks = sorted(roles)
    agree = all(len(names) == 1 for names in roles.values())
    if logarithmic:
        ax.set_xscale("log", base=2)
        ax.xaxis.set_minor_locator(NullLocator())
    labels = [f"{number}\n{next(iter(roles[number]))}" if agree else f"{number}" for number in ranks]
    ax.xaxis.set_major_locator(FixedLocator(ranks))
    ax.xaxis.set_major_formatter(FixedFormatter(labels))
    ax.set_xlabel("ranks" + ("\n(learners + actors)" if agree else ""))
    ax.axhline(1, color="grey", linestyle=":", linewidth=1.2)


def _add_legend(ax: Axes, title: str) -> None:
    """The legend above the axes, where it covers nothing, with the title of the column as its own."""
    handles, labels = ax.get_legend_handles_labels()
    ideal = Line2D([], [], color="grey", linestyle=":")
    legend = ax.legend(
        [*handles, ideal],
        [*labels, "ideal, from the base"],
        title=title,
        loc="lower left",
        bbox_to_anchor=(0, 1.01),
        alignment="left",
        borderpad=0,
        frameon=False,
        fontsize="small",
    )
    legend.get_title().set(fontsize="large", fontweight="bold")


def _arrange(above: Axes, below: Axes, logarithmic: bool) -> None:
    """The axes of rates and efficiency, which the modes share."""
    above.set_ylabel("env steps/s")
    below.set_ylabel("efficiency")
    if logarithmic:
        above.set_yscale("log")
        above.yaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
        above.yaxis.set_minor_locator(NullLocator())
    else:
        above.set_ylim(bottom=0)
    above.yaxis.set_major_formatter(EngFormatter(sep=""))
    below.set_ylim(0, 1.05 * max(1.0, below.get_ylim()[1]))
    below.yaxis.set_major_formatter(PercentFormatter(1.0))


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} can't be written: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
