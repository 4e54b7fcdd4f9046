"""Predictions as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpcrl.errors import ConfigError
from hpcrl.planning.events import Simulated
from hpcrl.planning.model import Prediction
from hpcrl.planning.setups import Setup


def draw(rows: Sequence[tuple[Setup, Prediction, Simulated | None]], title: str, path: Path) -> None:
    """Throughput, utilisation and lag by nodes, as PNG or what the file's name says.

    Raises:
        ConfigError: matplotlib is missing, or the file can't be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("--out needs matplotlib: pip install 'hpcrl[plot]'") from None
    ranks = [setup.ranks for setup, _, _ in rows]
    figure = Figure(figsize=(7, 9), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    above, middle, below = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 2))
    rates = [prediction.env_steps_per_s for _, prediction, _ in rows]
    above.plot(ranks, rates, "o-", color="#0072B2", label="model")
    above.plot(
        ranks, [rates[0] * count / ranks[0] for count in ranks], ":", color="grey", label="ideal, from the first"
    )
    middle.plot(
        ranks, [prediction.actor_utilisation for _, prediction, _ in rows], "o-", color="#009E73", label="actors"
    )
    middle.plot(
        ranks, [prediction.learner_utilisation for _, prediction, _ in rows], "s-", color="#D55E00", label="learners"
    )
    below.plot(ranks, [prediction.lag_mean for _, prediction, _ in rows], "o-", color="#0072B2", label="model")
    counted = [(setup.ranks, simulated) for setup, _, simulated in rows if simulated is not None]
    if counted:
        where = [count for count, _ in counted]
        style = {"linestyle": "none", "marker": "x", "color": "black", "label": "simulated"}
        above.plot(where, [simulated.env_steps_per_s for _, simulated in counted], **style)
        below.plot(where, [simulated.lag_mean for _, simulated in counted], **style)
    for (setup, prediction, _), rate in zip(rows, rates, strict=True):
        above.annotate(
            prediction.bound_by, (setup.ranks, rate), xytext=(4, -10), textcoords="offset points", fontsize="x-small"
        )
    above.set_yscale("log")
    above.set_ylabel("env steps/s")
    above.set_title(title, fontsize="medium")
    middle.set_ylabel("share of the time at work")
    middle.set_ylim(0, 1.05)
    below.set_ylabel("lag, updates")
    below.set_ylim(bottom=0)
    below.set_xscale("log", base=2)
    below.set_xticks(ranks, [f"{setup.ranks}\n{setup.nodes}" for setup, _, _ in rows])
    below.set_xlabel("ranks, and nodes below")
    for axes in (above, middle, below):
        axes.grid(True, alpha=0.3, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize="small")
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} can't be written: {error}") from error
