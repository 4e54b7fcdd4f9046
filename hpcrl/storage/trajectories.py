"""The folder of a run's shards: which count, and what a resume puts aside."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpcrl.errors import TrajectoryError
from hpcrl.storage.shard_reader import Shard
from hpcrl.storage.shard_table import About, Kind

_NAME = re.compile(r"(actor|evaluation)(\d{5})-(\d{4,9})\.h5(\.discarded)?")
_LEFTOVER = re.compile(r"\.(actor|evaluation)\d{5}-\d{4,9}\.h5\.tmp-\d+")


def shard_files(directory: Path, kind: Kind | None = None) -> list[Path]:
    """The closed shards in a folder, by actor and number; of one kind, or of both; none where there is no folder."""
    role = {None: "", "training": "actor", "evaluation": "evaluation"}[kind]
    found = [path for path in _entries(directory) if _NAME.fullmatch(path.name) and path.suffix == ".h5"]
    return sorted((path for path in found if path.name.startswith(role)), key=_place)


def open_shards(directory: Path, kind: Kind = "training") -> list[Shard]:
    """The closed shards of one kind in a folder, in the order in which they were acted by each actor.

    Raises:
        TrajectoryError: there is none, or one is damaged; it names the file.
    """
    if not (files := shard_files(directory, kind)):
        raise TrajectoryError(f"{directory} holds no whole shard of {kind} episodes")
    return [Shard(path) for path in files]


def put_aside(directory: Path, rows: NDArray[np.int64] | None, env_steps: int) -> int:
    """Rename shards of a future that did not happen to `.discarded`, and remove what a kill left behind.

    Args:
        directory: of the shards.
        rows: int64 [num_envs], steps that every environment had made at the checkpoint from which the run goes on;
            None where it begins.
        env_steps: that the run had learned from then.

    Returns:
        the first number that no shard has.
    """

    def happened(about: About) -> bool:
        if rows is None:
            return False
        if about.kind == "evaluation":
            return about.env_steps <= env_steps
        return about.first_env < len(rows) and about.first_env_step < rows[about.first_env]

    return _put_aside(directory, happened)


def _put_aside(directory: Path, happened: Callable[[About], bool]) -> int:
    entries = _entries(directory)
    for path in entries:
        if _LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)
    for _, shards in groupby(shard_files(directory), lambda path: _place(path)[:2]):
        # Before one that happened all of that actor did, and a long run has thousands.
        for path in reversed(list(shards)):
            is_real = _happened(path, happened)
            if is_real:
                break
            if is_real is not None:
                path.rename(path.with_name(path.name + ".discarded"))
    return max((_place(path)[2] + 1 for path in entries if _NAME.fullmatch(path.name)), default=0)


def _happened(path: Path, happened: Callable[[About], bool]) -> bool | None:
    """Whether a shard counts; None where it does not tell."""
    try:
        return happened(Shard(path).about)
    except TrajectoryError as error:
        warnings.warn(f"A damaged shard stays where it is: {error}", RuntimeWarning, stacklevel=4)
        return None


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except FileNotFoundError:
        return []


def _place(path: Path) -> tuple[str, int, int]:
    named = _NAME.fullmatch(path.name)
    assert named is not None
    return named[1], int(named[2]), int(named[3])
