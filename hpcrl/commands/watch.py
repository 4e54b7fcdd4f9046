"""`hpcrl watch RUN_DIR`: follows a run from its files alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.live import Live
from rich.text import Text

from hpcrl.errors import ConfigError
from hpcrl.viewing.run import load_run
from hpcrl.viewing.screen import Glyphs, screen

#: Of metrics.csv: some 10,000 reports.
_NEWEST_BYTES = 1 << 23


@dataclass(frozen=True)
class WatchOptions:
    """Follow a run: returns, throughput, lag, time split, slowest actor, checkpoint, restarts, time to go."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(help="Run directory.")]
    once: Annotated[bool, tyro.conf.arg(help="Print it once and leave; so it is where there is no terminal.")] = False
    every: Annotated[float, tyro.conf.arg(help="Seconds between looks.")] = 2.0


def watch(arguments: Sequence[str]) -> int:
    """Show a run until it is finished or the user leaves; the exit status."""
    options = tyro.cli(WatchOptions, prog="hpcrl watch", args=list(arguments), config=(tyro.conf.FlagCreatePairsOff,))
    if not 0.1 <= options.every <= 86400:
        raise ConfigError(f"--every must be 0.1 to 86400 seconds, got {options.every}")
    console = Console()
    if options.once or not console.is_terminal:
        print(*_look(options.run_dir, console, None)[0], sep="\n")
        return 0
    with suppress(KeyboardInterrupt):
        _follow(options, console)
    return 0


def _follow(options: WatchOptions, console: Console) -> None:
    with Live(console=console, auto_refresh=False) as live:
        while True:
            lines, is_over = _look(options.run_dir, console, console.height)
            live.update(Text("\n".join(lines), no_wrap=True), refresh=True)
            if is_over:
                return
            time.sleep(options.every)


def _look(path: Path, console: Console, height: int | None) -> tuple[list[str], bool]:
    """The lines that show a run, and whether it is finished."""
    run = load_run(path, newest_bytes=_NEWEST_BYTES)
    lines = screen(run, console.width, Glyphs.of(console.encoding), time.time(), height)
    return lines, run.state == "finished"
