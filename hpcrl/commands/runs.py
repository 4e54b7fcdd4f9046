"""`hpcrl runs [DIR]`: all runs of a folder in a table."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hpcrl.errors import ConfigError
from hpcrl.viewing.run import find_runs
from hpcrl.viewing.summary import Summary, summarise
from hpcrl.viewing.words import age, number, short

#: Where there is no terminal that could be too narrow.
_LONGEST_LINE = 1000
#: Columns of a terminal below which there is no room for all of the table's.
_NARROW = 100
_STYLES = {"running": "green", "died": "red"}


@dataclass(frozen=True)
class RunsOptions:
    """List the runs of a folder, the one that wrote last at the end: state, progress, returns."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(help="Folder of runs.")] = Path("runs")
    json: Annotated[bool, tyro.conf.arg(help="Print JSON.")] = False


def runs(arguments: Sequence[str]) -> int:
    """Print the table; the exit status."""
    options = tyro.cli(RunsOptions, prog="hpcrl runs", args=list(arguments), config=(tyro.conf.FlagCreatePairsOff,))
    found = summarise(options.folder, find_runs(options.folder))
    if not found:
        raise ConfigError(f"no runs in {options.folder}")
    if options.json:
        print(json.dumps([_as_json(summary) for summary in found], indent=2))
        return 0
    console = Console()
    if not console.is_terminal:
        console = Console(width=_LONGEST_LINE)
    console.print(_table(found, time.time(), console.width < _NARROW))
    return 0


def _as_json(summary: Summary) -> dict[str, object]:
    values = asdict(summary)
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()}


def _table(found: Sequence[Summary], now: float, is_narrow: bool) -> Table:
    """All runs; a narrow table folds names and states, and leaves the algorithm out."""
    table = Table(box=None, pad_edge=False, collapse_padding=is_narrow)
    table.add_column("name", overflow="fold", min_width=12)
    if not is_narrow:
        table.add_column("algorithm", no_wrap=True)
    table.add_column("env", overflow="fold", min_width=min(16, max(len(run.env) for run in found)))
    table.add_column("state", no_wrap=not is_narrow, min_width=8)
    for heading in ("env steps", "best", "last", "age"):
        table.add_column(heading, justify="right", no_wrap=True)
    for run in found:
        cells = (
            run.name,
            *(() if is_narrow else (run.algorithm,)),
            run.env,
            ", ".join([run.state, *dict.fromkeys(note.rpartition(": ")[2] for note in run.notes)]),
            f"{short(run.env_steps)} of {short(run.total_env_steps)}",
            number(run.best_return),
            number(run.last_return),
            age(now - run.written),
        )
        table.add_row(*map(Text, cells), style=_STYLES.get(run.state))
    return table
