"""Results of the benchmark of presets: rows and learning curves in files, a table, and a plot."""

from __future__ import annotations

import csv
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.efficiency import Spread, count
from hpcrl.errors import ConfigError
from hpcrl.storage.durable import write_durably

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STEPS, _SECONDS, _RETURN = "env_steps", "time/elapsed_s", "rollout/return_last_100"
_NEVER = "not reached"
_HEADER = (
    *("preset", "options", "threshold", "ranks", "cores", "seeds", "reached"),
    *("env steps to it", "s to it", "last return", "s in all"),
)
_NOTES = """
Medians over the seeds, and in brackets the least and the most; a run that does not reach the threshold counts as one
that takes for ever. Threshold: of the mean return of the last 100 episodes. Env steps and seconds to it: until the end
of the iteration that reaches it, without the start of the processes. Last return: of the last 100 episodes of the run.
"""


#: Preset, options, ranks and seed.
Key = tuple[str, str, int, int]


@dataclass(frozen=True)
class Result:
    """One run of a preset.

    Attributes:
        preset: as ALGORITHM/NAME.
        options: of `hpcrl train`, beside those of the preset; "" where there were none.
        ranks, cores: of the run; CPUs that rank 0 could use.
        threshold: mean return of the last 100 episodes that was to be reached; None where the preset has none.
        threshold_env_steps, threshold_s: env steps and wall time at the end of the first iteration that reached it;
            None where none did.
        return_last_100: at the end of the run; None where there were fewer than 100 episodes.
        env_steps, wall_s: of the whole run, without the start of the processes.
    """

    preset: str
    options: str
    seed: int
    ranks: int
    cores: int
    threshold: float | None
    threshold_env_steps: int | None
    threshold_s: float | None
    return_last_100: float | None
    env_steps: int
    wall_s: float

    @property
    def reached(self) -> bool:
        """Whether the run reached its threshold."""
        return self.threshold_env_steps is not None

    @property
    def key(self) -> Key:
        """What there is one row for."""
        return self.preset, self.options, self.ranks, self.seed

    @property
    def curve(self) -> str:
        """Name of the file with its learning curve."""
        options = re.sub(r"[^a-z0-9_.]+", "-", self.options.lower()).strip("-")
        name = self.preset.replace("/", "-") + (f"-{options}" if options else "")
        return f"{name}-ranks{self.ranks}-seed{self.seed}.csv"


#: Env steps, seconds and mean return of the last 100 episodes (NaN before there are 100) after each iteration.
Curve = list[tuple[int, float, float]]


def read_curve(path: Path) -> Curve:
    """The learning curve in a `metrics.csv`, or in a file of `curves`.

    Raises:
        OSError: there is no such file.
        ValueError: a row of it is incomplete or something else.
    """
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        return [(int(row[_STEPS]), float(row[_SECONDS]), float(row[_RETURN] or math.nan)) for row in rows]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} has a row without {_STEPS}, {_SECONDS} or {_RETURN}") from error


def write_curve(path: Path, curve: Curve) -> None:
    """Replace a file of `curves`."""
    cells = [[steps, seconds, "" if math.isnan(mean) else mean] for steps, seconds, mean in curve]
    _write_csv(path, [[_STEPS, _SECONDS, _RETURN], *cells])


def read(path: Path) -> list[Result]:
    """The rows of a `presets.csv`; none where there is no file.

    Raises:
        ConfigError: a line is something else; names file and line.
    """
    if not path.exists():
        return []
    with path.open(newline="") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    names = [field.name for field in fields(Result)]
    if header != names:
        raise ConfigError(f"{path}, line 1: expected the columns {', '.join(names)}, got {', '.join(header)}")
    results = []
    for number, row in enumerate(rows, 2):
        try:
            cells = {field.name: _parse(cell, field.type) for field, cell in zip(fields(Result), row, strict=True)}
        except ValueError as error:
            raise ConfigError(f"{path}, line {number}: {error}") from error
        results.append(Result(**cells))
    return results


def write(path: Path, results: Iterable[Result]) -> None:
    """Replace a `presets.csv`; rows by preset, ranks and seed."""
    rows = [asdict(result).values() for result in sorted(results, key=lambda result: result.key)]
    cells = [["" if cell is None else cell for cell in row] for row in rows]
    _write_csv(path, [[field.name for field in fields(Result)], *cells])


def _parse(cell: str, kind: Any) -> Any:
    """A cell as the annotation of its field says."""
    if kind == "str":
        return cell
    if cell == "" and "None" in kind:
        return None
    return int(cell) if kind.startswith("int") else float(cell)


def markdown(results: Sequence[Result]) -> str:
    """The table: a line for each preset, options, threshold, number of ranks and of cores."""
    groups: dict[tuple[str, str, float | None, int, int], list[Result]] = defaultdict(list)
    for result in results:
        groups[result.preset, result.options, result.threshold, result.ranks, result.cores].append(result)
    rows = [_HEADER, ("---", "---", *["---:"] * (len(_HEADER) - 2))]
    for (name, options, threshold, ranks, cores), runs in sorted(groups.items(), key=lambda group: str(group[0])):
        rows.append(
            (
                name,
                f"`{options}`" if options else "",
                "" if threshold is None else f"{threshold:g}",
                f"{ranks}",
                f"{cores}",
                f"{len(runs)}",
                "" if threshold is None else f"{sum(run.reached for run in runs)}",
                "" if threshold is None else _spread([run.threshold_env_steps for run in runs], ",.0f"),
                "" if threshold is None else _spread([run.threshold_s for run in runs], ",.1f"),
                _spread([run.return_last_100 for run in runs if run.return_last_100 is not None], ",.4g"),
                _spread([run.wall_s for run in runs], ",.1f"),
            )
        )
    return "\n".join(["| " + " | ".join(row) + " |" for row in rows]) + "\n" + _NOTES


def _spread(values: Sequence[float | None], form: str) -> str:
    """Median, and range where there are several; None is infinity."""
    numbers = [math.inf if value is None else value for value in values]
    if not numbers:
        return ""
    spread = Spread(statistics.median(numbers), min(numbers), max(numbers))
    median, least, most = (_NEVER if math.isinf(number) else format(number, form) for number in spread)
    return median if least == most else f"{median} ({least} - {most})"


def draw(results: Sequence[Result], curves: Mapping[Key, Curve]) -> Figure:
    """A panel for each preset, options and number of ranks: a line for each seed, the threshold dashed.

    Args:
        results: at least one.
        curves: of each, by its key.

    Raises:
        ImportError: matplotlib is missing.
    """
    from matplotlib.figure import Figure

    panels: dict[tuple[str, str, int], list[Result]] = defaultdict(list)
    for result in sorted(results, key=lambda result: result.key):
        panels[result.preset, result.options, result.ranks].append(result)
    columns = min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(5 * columns, 3.5 * lines), dpi=120, layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for ax, ((name, options, ranks), runs) in zip(axes, panels.items(), strict=False):
        title = f"{name}, {count(ranks, 'rank')}" + (f"\n{options}" if options else "")
        _draw_panel(ax, title, [(run, curves[run.key]) for run in runs])
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    return figure


def _draw_panel(ax: Axes, title: str, runs: Sequence[tuple[Result, Curve]]) -> None:
    from matplotlib.ticker import EngFormatter

    for result, curve in runs:
        # A run may be so short that its curve is one point, which a line alone would not show.
        ax.plot(
            [row[0] for row in curve], [row[2] for row in curve], marker=".", ms=4, lw=1.2, label=f"seed {result.seed}"
        )
    for threshold in sorted({result.threshold for result, _ in runs if result.threshold is not None}):
        ax.axhline(threshold, color="grey", linestyle="--", linewidth=1)
    ax.set_title(title)
    ax.set_xlabel("env steps")
    ax.set_ylabel("return, last 100 episodes")
    ax.set_xlim(left=0)
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.grid(True, alpha=0.3, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small", loc="lower right")


def _write_csv(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    def fill(temporary: Path) -> None:
        with temporary.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)

    write_file(path, fill)


def write_file(path: Path, fill: Callable[[Path], object]) -> None:
    """Replace a file as a whole."""
    try:
        write_durably(path, fill)
    except OSError as error:
        raise ConfigError(f"{path} can't be written: {error}") from error
