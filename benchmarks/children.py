"""Runs a command, from the root of the repository, bounded in time, and watches what it takes of the machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpcrl.benching import children
from hpcrl.benching.children import CommandFailed, Finished

__all__ = ["CommandFailed", "Finished", "run"]

_ROOT = Path(__file__).resolve().parents[1]


def run(
    command: Sequence[str], timeout: float, environment: dict[str, str] | None = None, folder: Path = _ROOT
) -> Finished:
    """As `hpcrl.benching.children.run`, from the root of the repository unless told otherwise."""
    return children.run(command, timeout, environment, folder)
