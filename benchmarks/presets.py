"""How many env steps and seconds the presets need until they have learned.

    python -m benchmarks.presets [NAME ...] [--seeds 1 2 3] [--ranks 1] [--time-limit 3600] [--out benchmarks/results]

NAME is a preset, of all algorithms that it is there for, or ALGORITHM/NAME. Each is run with every seed, one run after
the other: `hpcrl train ALGORITHM --preset NAME --seed S --ranks N`, which stops at the end of the iteration in which
the mean return of the last 100 episodes reaches the preset's threshold (with --to-the-end: goes on to its last env
step), and is ended where it takes longer than the time limit. --out gets

- presets.csv: a row for each preset, seed and number of ranks, in place of the one that was there;
- curves/ALGORITHM-NAME-ranksN-seedS.csv: the learning curve of each;
- presets.md: the table of all rows, with medians and ranges over the seeds;
- presets.png: all learning curves, with the thresholds; only where matplotlib is installed.

Rows and curves are written after every run, the table and the plot at the end. `--seeds` without a number only makes
these two anew.
Status: 0 where all runs went through, whether or not they reached their thresholds; 1 where one failed (after the
others); 2 for input that can't be run; 128 + the number of the signal that stopped it.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.children import CommandFailed
from benchmarks.efficiency import Spread, count
from benchmarks.steps import Stop, Stopped, run
from hpcrl.errors import ConfigError, HpcrlError
from hpcrl.presets import PRESETS
from hpcrl.presets.preset import Preset
from hpcrl.storage.durable import write_durably
from hpcrl.storage.run_directory import RunDirectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Presets by ALGORITHM/NAME.
BY_LABEL: Mapping[str, Preset] = {f"{preset.algorithm}/{preset.name}": preset for preset in PRESETS.values()}
_STEPS, _SECONDS, _RETURN = "env_steps", "time/elapsed_s", "rollout/return_last_100"
_NEVER = "not reached"
_HEADER = (
    *("preset", "threshold", "ranks", "cores", "seeds", "reached"),
    *("env steps to it", "s to it", "last return", "s in all"),
)
_NOTES = """
Medians over the seeds, and in brackets the least and the most; a run that does not reach the threshold counts as one
that takes for ever. Threshold: of the mean return of the last 100 episodes. Env steps and seconds to it: until the end
of the iteration that reaches it, without the start of the processes. Last return: of the last 100 episodes of the run.
"""


@dataclass(frozen=True)
class Result:
    """One run of a preset.

    Attributes:
        ranks, cores: of the run; CPUs that rank 0 could use.
        preset: as ALGORITHM/NAME.
        threshold: mean return of the last 100 episodes that was to be reached; None where the preset has none.
        threshold_env_steps, threshold_s: env steps and wall time at the end of the first iteration that reached it;
            None where none did.
        return_last_100: at the end of the run; None where there were fewer than 100 episodes.
        env_steps, wall_s: of the whole run, without the start of the processes.
    """

    preset: str
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
    def key(self) -> tuple[str, int, int]:
        """What there is one row for."""
        return self.preset, self.ranks, self.seed

    @property
    def curve(self) -> str:
        """Name of the file with its learning curve."""
        return f"{self.preset.replace('/', '-')}-ranks{self.ranks}-seed{self.seed}.csv"


#: Env steps, seconds and mean return of the last 100 episodes (NaN before there are 100) after each iteration.
Curve = list[tuple[int, float, float]]


def main(
    words: Sequence[str] | None = None,
    known: Mapping[str, Preset] = BY_LABEL,
    start: Sequence[str] = (sys.executable, "-m", "hpcrl"),
) -> int:
    """Measure; the exit status.

    Args:
        words: of the command line.
        known: presets by ALGORITHM/NAME.
        start: what stands for the command hpcrl.
    """
    arguments = _parser().parse_args(words)
    stop = Stop()
    stop.install()
    try:
        labels = _labels(arguments.names or list(known), known)
        _make_folder(arguments.out / "curves")
        failures = 0
        for label in labels:
            preset = known[label]
            command = [*start, "train", preset.algorithm, "--preset", preset.name, "--ranks", str(arguments.ranks)]
            if preset.threshold is not None and not arguments.to_the_end:
                command.append(f"--stop-return={preset.threshold}")
            for seed in arguments.seeds:
                measured = _measure(label, seed, preset.threshold, command, arguments.time_limit, stop)
                failures += measured is None
                if measured is not None:
                    _add(arguments.out, *measured)
        _renew(arguments.out)
    except Stopped:
        assert stop.signal is not None
        print(f"benchmarks.presets: stopped by {stop.signal.name}", file=sys.stderr, flush=True)
        return 128 + stop.signal
    except HpcrlError as error:
        print(f"benchmarks.presets: {error}", file=sys.stderr, flush=True)
        return error.exit_status
    return int(failures > 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.presets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="NAME or ALGORITHM/NAME (default: all)")
    parser.add_argument("--to-the-end", action="store_true", help="go on where the threshold is reached")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--time-limit", type=float, default=3600, help="seconds that a run may take")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    return parser


def _labels(names: Sequence[str], known: Mapping[str, Preset]) -> list[str]:
    """The presets that are meant, as ALGORITHM/NAME."""
    labels = []
    for name in names:
        meant = [label for label, preset in known.items() if name in (label, preset.name)]
        if not meant:
            raise ConfigError(f"unknown preset {name!r}, expected one of: {', '.join(known)}")
        labels += meant
    return list(dict.fromkeys(labels))


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the folder {path} can't be made: {error}") from error


def _measure(
    name: str, seed: int, threshold: float | None, command: Sequence[str], time_limit: float, stop: Stop
) -> tuple[Result, Curve] | None:
    """Run a preset with a seed and say how it went; None where it failed."""
    try:
        result, curve = train(name, seed, threshold, command, time_limit, stop)
    except CommandFailed as failure:
        print(f"benchmarks.presets: {name}, seed {seed}: {failure}", file=sys.stderr, flush=True)
        return None
    if threshold is None:
        how = f"returned {result.return_last_100} after {result.env_steps:,} env steps and {result.wall_s:.1f} s"
    elif result.reached:
        how = f"reached {threshold:g} after {result.threshold_env_steps:,} env steps and {result.threshold_s:.1f} s"
    else:
        how = f"did not reach {threshold:g} in {result.env_steps:,} env steps and {result.wall_s:.1f} s"
    print(f"{name}, seed {seed}: {how}", flush=True)
    return result, curve


def train(
    name: str, seed: int, threshold: float | None, command: Sequence[str], time_limit: float, stop: Stop
) -> tuple[Result, Curve]:
    """One run of a preset; one that the time limit cuts short counts for what it did until then.

    Args:
        name: of the preset, as ALGORITHM/NAME.
        command: without seed and run directory.
        time_limit: s.

    Raises:
        CommandFailed: the run failed, or ended before its time for another reason.
        Stopped: a signal asked to stop.
    """
    with tempfile.TemporaryDirectory(prefix="hpcrl-preset-", ignore_cleanup_errors=True) as folder:
        paths = RunDirectory(Path(folder) / "run")
        words = [*command, "--seed", str(seed), "--run-dir", str(paths.path)]
        end = time.monotonic() + time_limit
        try:
            run(words, time_limit, stop)
        except CommandFailed:
            if time.monotonic() < end or not paths.metrics_file.exists():
                raise
        in_time = time.monotonic() < end
        try:
            outcome = paths.outcome_file.read_text().strip()
            facts, curve = json.loads(paths.config_file.read_text()), read_curve(paths.metrics_file)
        except (OSError, ValueError) as error:
            raise CommandFailed(f"{' '.join(words)}: its run directory can't be read: {error}") from error
    if in_time and outcome != "finished":
        raise CommandFailed(f"{' '.join(words)}: it was stopped")
    if not curve:
        raise CommandFailed(f"{' '.join(words)}: no iteration was over within {time_limit:.0f} s")
    return result_of(name, seed, threshold, facts, curve), curve


def result_of(name: str, seed: int, threshold: float | None, facts: Mapping[str, Any], curve: Curve) -> Result:
    """The row of a run.

    Args:
        facts: of its `config.json`.
        curve: at least one iteration.
    """
    target = math.inf if threshold is None else threshold
    reached = next(((env_steps, seconds) for env_steps, seconds, mean in curve if mean >= target), (None, None))
    env_steps, wall_s, last = curve[-1]
    return Result(
        preset=name,
        seed=seed,
        ranks=facts["layout"]["ranks"],
        cores=facts["machine"]["cores"],
        threshold=threshold,
        threshold_env_steps=reached[0],
        threshold_s=reached[1],
        return_last_100=None if math.isnan(last) else last,
        env_steps=env_steps,
        wall_s=wall_s,
    )


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


def _add(out: Path, result: Result, curve: Curve) -> None:
    """Write down a run, in place of an earlier one like it."""
    cells = [[steps, seconds, "" if math.isnan(mean) else mean] for steps, seconds, mean in curve]
    _write_csv(out / "curves" / result.curve, [[_STEPS, _SECONDS, _RETURN], *cells])
    others = [other for other in read(out / "presets.csv") if other.key != result.key]
    write(out / "presets.csv", [*others, result])


def _renew(out: Path) -> None:
    """The table and the plot of all that was measured."""
    results = read(out / "presets.csv")
    if not results:
        return
    _write(out / "presets.md", lambda path: path.write_text(markdown(results)))
    print(f"\n{markdown(results)}\nTable: {out / 'presets.md'}")
    try:
        figure = draw(results, {result.key: read_curve(out / "curves" / result.curve) for result in results})
    except ImportError:
        print("There is no plot, as matplotlib is missing: pip install 'hpcrl[plot]'", file=sys.stderr)
        return
    except (OSError, ValueError) as error:
        raise ConfigError(f"a learning curve of {out / 'presets.csv'} can't be read: {error}") from error
    _write(out / "presets.png", lambda path: figure.savefig(path, format="png"))
    print(f"Plot: {out / 'presets.png'}")


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
    """The table: a line for each preset, threshold, number of ranks and of cores."""
    groups: dict[tuple[str, float | None, int, int], list[Result]] = defaultdict(list)
    for result in results:
        groups[result.preset, result.threshold, result.ranks, result.cores].append(result)
    rows = [_HEADER, ("---", *["---:"] * (len(_HEADER) - 1))]
    for (name, threshold, ranks, cores), runs in sorted(groups.items(), key=lambda group: str(group[0])):
        rows.append(
            (
                name,
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


def draw(results: Sequence[Result], curves: Mapping[tuple[str, int, int], Curve]) -> Figure:
    """A panel for each preset and number of ranks: a line for each seed, the threshold dashed.

    Args:
        results: at least one.
        curves: of each, by its key.

    Raises:
        ImportError: matplotlib is missing.
    """
    from matplotlib.figure import Figure

    panels: dict[tuple[str, int], list[Result]] = defaultdict(list)
    for result in sorted(results, key=lambda result: result.key):
        panels[result.preset, result.ranks].append(result)
    columns = min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(5 * columns, 3.5 * lines), dpi=120, layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for ax, ((name, ranks), runs) in zip(axes, panels.items(), strict=False):
        _draw_panel(ax, f"{name}, {count(ranks, 'rank')}", [(run, curves[run.key]) for run in runs])
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

    _write(path, fill)


def _write(path: Path, fill: Callable[[Path], object]) -> None:
    """Replace a file as a whole."""
    try:
        write_durably(path, fill)
    except OSError as error:
        raise ConfigError(f"{path} can't be written: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
