"""`hpcrl report RUN_DIR`: all of a run on one HTML page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hpcrl.errors import ConfigError
from hpcrl.viewing.report import report_page
from hpcrl.viewing.run import load_run


@dataclass(frozen=True)
class ReportOptions:
    """Write a page of a run: configuration, curves, time split, lag, episodes, checkpoints, resumes, machine."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(help="Run directory.")]
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",), help="The page, which needs nothing beside it.")] = Path(
        "report.html"
    )


def report(arguments: Sequence[str]) -> int:
    """Write the page; the exit status."""
    options = tyro.cli(ReportOptions, prog="hpcrl report", args=list(arguments))
    page = report_page(load_run(options.run_dir), time.time())
    try:
        options.out.write_text(page, encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"{options.out} can't be written: {error.strerror or error}") from error
    print(f"report: {options.out}")
    return 0
