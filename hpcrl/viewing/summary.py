"""Runs in a line each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hpcrl.errors import ConfigError
from hpcrl.viewing.measures import RETURN, best
from hpcrl.viewing.run import load_run
from hpcrl.viewing.words import plain


@dataclass(frozen=True)
class Summary:
    """One run; numbers that are not known are NaN.

    Attributes:
        state: as `hpcrl.viewing.run.Run` has it.
        best_return, last_return: means of 100 episodes.
        written: Unix time at which it wrote last.
        notes: what is missing, damaged or older.
    """

    name: str
    algorithm: str
    env: str
    seed: str
    state: str
    env_steps: float
    total_env_steps: float
    best_return: float
    last_return: float
    written: float
    notes: tuple[str, ...]


def summarise(folder: Path, paths: Iterable[Path]) -> list[Summary]:
    """Runs below a folder, the one that wrote last at the end; what turns out to be no run is left out."""
    found = []
    for path in paths:
        try:
            run = load_run(path, (RETURN,))
        except ConfigError:
            continue
        returns = run.metrics.column(RETURN)
        found.append(
            Summary(
                name=run.name if path == folder else plain(path.relative_to(folder)),
                algorithm=run.algorithm,
                env=run.env,
                seed=run.seed,
                state=run.state,
                env_steps=run.env_steps,
                total_env_steps=run.total_env_steps,
                best_return=best(returns),
                last_return=run.metrics.last(RETURN),
                written=run.written,
                notes=run.notes,
            )
        )
    return sorted(found, key=lambda summary: (summary.written, summary.name))
