"""A run as its files show it: whatever is missing or damaged is said in a word, and the rest is there."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcrl.config import config_class
from hpcrl.errors import ConfigError
from hpcrl.metrics import COLUMNS
from hpcrl.storage.run_directory import RunDirectory
from hpcrl.viewing.checkpoints import ListedCheckpoint, read_checkpoints
from hpcrl.viewing.tables import Table, read_table
from hpcrl.viewing.words import as_list, as_mapping, as_number, plain

#: Folders below each other that runs are looked for in.
_DEPTH = 3


@dataclass(frozen=True, eq=False)
class Run:
    """What the files of one run say.

    Attributes:
        facts: of config.json; empty where it can't be read.
        state: running, running? (it has batch jobs or a lock that can't be seen from here), finished, stopped, died
            or not begun.
        metrics: the reports.
        checkpoints: that the manifest lists, oldest first.
        jobs: ids of its batch jobs.
        written: Unix time at which it wrote last.
        notes: file and word for each that is missing, damaged or older.
    """

    path: Path
    facts: Mapping[str, Any]
    state: str
    metrics: Table
    checkpoints: tuple[ListedCheckpoint, ...]
    jobs: tuple[str, ...]
    written: float
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """That of its folder."""
        return plain(self.path.resolve().name)

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration as JSON data."""
        return as_mapping(self.facts.get("config"))

    @property
    def algorithm(self) -> str:
        """Its name; "?" where it is not known."""
        return plain(self.config.get("algorithm", "?"))

    @property
    def env(self) -> str:
        """Its environments; "?" where they are not known."""
        return plain(self.config.get("env", "?"))

    @property
    def seed(self) -> str:
        """As a word; "?" where it is not known."""
        return plain(self.config.get("seed", "?"))

    @property
    def env_steps(self) -> float:
        """That the last report or the newest checkpoint tells of, whichever are more; 0 before both."""
        told = [self.metrics.last("env_steps"), *(checkpoint.env_steps for checkpoint in self.checkpoints[-1:])]
        return max([steps for steps in told if math.isfinite(steps)], default=0.0)

    @property
    def total_env_steps(self) -> float:
        """To train for; NaN where that is not known."""
        return as_number(self.config.get("total_env_steps"))

    @property
    def layout(self) -> Mapping[str, Any]:
        """Ranks, hosts and roles as JSON data."""
        return as_mapping(self.facts.get("layout"))

    @property
    def resumes(self) -> list[Mapping[str, Any]]:
        """Where it went on from a checkpoint, oldest first, as JSON data."""
        return [as_mapping(resume) for resume in as_list(self.facts.get("resumes"))]


def load_run(path: Path, columns: Collection[str] = (), newest_bytes: int | None = None) -> Run:
    """Read a run directory; nothing is written or locked.

    Args:
        path: the directory.
        columns, newest_bytes: of metrics.csv, as for `read_table`.

    Raises:
        ConfigError: there is no run in it.
    """
    directory = RunDirectory(path)
    if not path.is_dir():
        raise ConfigError(f"there is no run directory {path}")
    if not os.access(path, os.R_OK | os.X_OK):
        raise ConfigError(f"run directory {path} can't be read: it is another user's")
    jobs = tuple(directory.read_jobs())
    if not _holds_run(path):
        raise ConfigError(f"{path} is no run directory: it holds neither config.json nor jobs nor what a run wrote")
    facts, config_word = _facts(directory) if directory.config_file.exists() else ({}, "missing")
    metrics = read_table(directory.metrics_file, "env_steps", columns, newest_bytes)
    checkpoints, manifest_word = read_checkpoints(directory.checkpoints)
    state = _state(directory, jobs)
    torn = "half-written" if metrics.is_torn and not state.startswith("running") else ""
    older = "older" if set(COLUMNS) - set(metrics.header) else ""
    words = {
        directory.config_file: config_word,
        directory.metrics_file: metrics.word or torn or older,
        directory.checkpoints / "manifest.json": manifest_word,
        directory.outcome_file: _outcome_word(directory),
    }
    return Run(
        path,
        facts,
        state,
        metrics,
        checkpoints,
        jobs,
        _written(directory),
        tuple(f"{file.name}: {word}" for file, word in words.items() if word),
    )


def find_runs(folder: Path) -> list[Path]:
    """Run directories in a folder and its subfolders, or the folder itself where it is one.

    Raises:
        ConfigError: there is none.
    """
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}")
    # A link to a run that is there itself shows nothing new.
    found = {path.resolve(): path for path in reversed(list(_walk(folder, _DEPTH)))}
    if found:
        return list(found.values())[::-1]
    raise ConfigError(f"no runs in {folder}")


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    try:
        holds_run = _holds_run(folder)
        below = sorted(folder.iterdir()) if depth and not holds_run else []
    except OSError:
        # A file, another user's folder, or one that is gone meanwhile.
        return
    if holds_run:
        yield folder
    for path in below:
        yield from _walk(path, depth - 1)


def _holds_run(folder: Path) -> bool:
    """Whether there is a run by its configuration or jobs; or, where that was lost, by what it wrote."""
    if any((folder / name).is_file() for name in ("config.json", "jobs")):
        return True
    return (folder / "metrics.csv").is_file() and any(
        (folder / name).exists() for name in ("outcome", "run.lock", "checkpoints")
    )


def _facts(directory: RunDirectory) -> tuple[Mapping[str, Any], str]:
    """What config.json holds, and what is wrong with it in a word."""
    try:
        facts = directory.read_config()
    except ConfigError:
        return {}, "damaged"
    if not isinstance(facts.get("config"), dict):
        raise ConfigError(f"{directory.path} is no run directory: its config.json holds no configuration of a run")
    try:
        known = {field.name for field in dataclasses.fields(config_class(str(facts["config"].get("algorithm"))))}
    except ConfigError:
        return facts, "unknown"
    return facts, "older" if known - set(facts["config"]) else ""


def _outcome_word(directory: RunDirectory) -> str:
    return "damaged" if directory.outcome_file.exists() and directory.read_outcome() is None else ""


def _state(directory: RunDirectory, jobs: Collection[str]) -> str:
    """As `hpcrl status` has it, without asking Slurm."""
    outcome = directory.read_outcome()
    if outcome != "running":
        return outcome or "not begun"
    if directory.is_in_use():
        return "running"
    # The lock of another node, or of another user's run, is not seen.
    lock = directory.path / "run.lock"
    hidden = bool(jobs) or (lock.exists() and not os.access(lock, os.R_OK | os.W_OK))
    return "running?" if hidden else "died"


def _written(directory: RunDirectory) -> float:
    """Unix time at which the newest of its files was written."""
    times = [0.0]
    manifest = directory.checkpoints / "manifest.json"
    written = (directory.metrics_file, directory.episodes_file, manifest)
    for file in (*written, directory.outcome_file, directory.config_file, directory.jobs_file):
        with suppress(OSError):
            times.append(file.stat().st_mtime)
    return max(times)
