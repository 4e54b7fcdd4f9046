"""`hpcrl plot RUN_DIR...`: learning curves as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from hpcrl.errors import ConfigError
from hpcrl.viewing.figure import draw
from hpcrl.viewing.groups import X_AXES, group_runs
from hpcrl.viewing.measures import RETURNS
from hpcrl.viewing.run import Run, load_run
from hpcrl.viewing.scaling import read_scaling


@dataclass(frozen=True)
class PlotOptions:
    """Draw returns against env steps and wall time; runs that differ in their seed alone are a median and a band."""

    paths: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(help="Run directories, and files of benchmarks.scaling.", metavar="RUN_DIR"),
    ]
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",), help="Picture: PNG, or what its name says.")] = Path(
        "curves.png"
    )
    x: Annotated[
        Literal["both", "env_steps", "time"], tyro.conf.arg(help="What returns are drawn against; both: side by side.")
    ] = "both"
    compare: Annotated[bool, tyro.conf.arg(help="Group by algorithm, environment and name, whatever else differs.")] = (
        False
    )


def plot(arguments: Sequence[str]) -> int:
    """Draw; the exit status."""
    options = tyro.cli(PlotOptions, prog="hpcrl plot", args=list(arguments), config=(tyro.conf.FlagCreatePairsOff,))
    if not options.paths:
        raise ConfigError("hpcrl plot needs a run directory at least")
    if options.out.is_dir():
        raise ConfigError(f"{options.out} is a folder, the picture needs a file's name")
    # Where nothing says what picture it is, it is PNG.
    out = options.out if options.out.suffix else options.out.with_name(f"{options.out.name}.png")
    scaling, notes = read_scaling([path for path in options.paths if path.is_file()])
    columns = (*RETURNS, *X_AXES.values())
    # A run that is named twice, by whatever paths, is drawn once.
    folders = {path.resolve(): path for path in options.paths if not path.is_file()}
    runs = [load_run(path, columns) for path in folders.values()]
    drawn, empty = _divide(runs)
    if not drawn and not scaling:
        raise ConfigError(f"no returns to draw in {', '.join(str(run.path) for run in runs)}")
    groups = group_runs(drawn, options.compare)
    draw(groups, scaling, list(X_AXES) if options.x == "both" else [options.x], out)
    for group in groups:
        print(f"{group.env}: {group.label}")
    for line in [*(f"{run.name}: no returns yet" for run in empty), *notes, *_notes(drawn)]:
        print(line)
    print(f"picture: {out}")
    return 0


def _divide(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """Runs with and without any return."""
    has_returns = [any(map(run.metrics.has, RETURNS)) for run in runs]
    pairs = list(zip(runs, has_returns, strict=True))
    return [run for run, has in pairs if has], [run for run, has in pairs if not has]


def _notes(runs: Sequence[Run]) -> list[str]:
    return [f"{run.name}: {note}" for run in runs for note in run.notes]
