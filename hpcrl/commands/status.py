"""`hpcrl status RUN_DIR`: how a run stands, from its files and from Slurm's queue."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from hpcrl.config import TrainConfig, from_facts
from hpcrl.errors import CheckpointError, ConfigError
from hpcrl.slurm.queue import JobState, SlurmError, job_states
from hpcrl.storage.checkpoints import CheckpointStore
from hpcrl.storage.run_directory import RunDirectory

_SOON_OR_NOW = ("RUNNING", "PENDING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED")
_MOST_ENDED_JOBS = 3


@dataclass(frozen=True)
class StatusOptions:
    """Tell the queue state, progress, last checkpoint and restarts of a run."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(help="Run directory.")]


def status(arguments: Sequence[str]) -> int:
    """Print how a run stands; the exit status, 1 where the run died or its jobs ended before it began."""
    options = tyro.cli(StatusOptions, prog="hpcrl status", args=list(arguments))
    directory = RunDirectory(options.run_dir)
    jobs = directory.read_jobs()
    if not directory.config_file.exists() and not jobs:
        raise ConfigError(f"{options.run_dir} is no run directory: it holds neither config.json nor jobs")
    states, silence = _ask_slurm(jobs)
    standing = _standing(directory, states, silence is None)
    print(f"{options.run_dir}: {standing}")
    for line in [*_queue(jobs, states, silence), *_run(directory, standing)]:
        print(f"  {line}")
    return int(standing.startswith(("died", "ended")))


def _ask_slurm(jobs: Sequence[str]) -> tuple[list[JobState], str | None]:
    """How jobs stand, and why Slurm does not tell."""
    try:
        return job_states(jobs), None
    except SlurmError as error:
        return [], str(error)


def _standing(directory: RunDirectory, states: Sequence[JobState], slurm_tells: bool) -> str:
    outcome = directory.read_outcome()
    if outcome == "finished":
        return "finished"
    in_queue = [state.state for state in states if state.state in _SOON_OR_NOW]
    if "RUNNING" in in_queue:
        return "running" if outcome == "running" else "starting"
    if in_queue:
        return "waits in the queue" if outcome is None else "saved, waits in the queue to go on"
    if outcome == "running" and not directory.is_in_use():
        if not slurm_tells:
            return "running when it last wrote; Slurm does not tell whether its job still runs"
        return "died; --resume goes on from the last checkpoint"
    if outcome is None and states:
        return "ended before it began; its log tells why"
    return {"running": "running", "stopped": "stopped by a signal; --resume goes on"}.get(outcome or "", "not begun")


def _queue(jobs: Sequence[str], states: Sequence[JobState], silence: str | None) -> Iterator[str]:
    ended = [state for state in states if state.state not in _SOON_OR_NOW]
    for state in states:
        if state not in ended or state in ended[-_MOST_ENDED_JOBS:]:
            yield state.describe()
    if jobs and not states:
        yield f"job {jobs[-1]}: {silence or 'no longer known to Slurm here'}"


def _run(directory: RunDirectory, standing: str) -> Iterator[str]:
    if not directory.config_file.exists():
        return
    facts = directory.read_config()
    config = from_facts(facts)
    yield f"{config.algorithm} on {config.env}, seed {config.seed}"
    try:
        yield _progress(config, _last_row(directory.metrics_file), standing)
    except (ValueError, KeyError, csv.Error) as error:
        yield f"progress: {directory.metrics_file.name} can't be read: {error!r}"
    if directory.metrics_file.exists():
        yield f"last report: {_age(directory.metrics_file)} ago"
    yield from _checkpoint(directory)
    yield _restarts(facts)


def _progress(config: TrainConfig, row: Mapping[str, str], standing: str) -> str:
    if not row:
        return f"progress: 0 of {config.total_env_steps:,} env steps, no report yet"
    steps, rate = int(float(row["env_steps"])), float(row.get("time/env_steps_per_s") or "nan")
    line = f"progress: {steps:,} of {config.total_env_steps:,} env steps ({steps / config.total_env_steps:.0%})"
    line += f", iteration {float(row['iteration']):.0f} of {config.num_iterations}"
    if row.get("rollout/episode_return_mean"):
        line += f", mean return {float(row['rollout/episode_return_mean']):.1f}"
    if rate > 0:
        line += f", {rate:,.0f} env steps/s"
        if standing == "running":
            line += f", {_duration(max(0.0, config.total_env_steps - steps) / rate)} to go"
    return line


def _checkpoint(directory: RunDirectory) -> Iterator[str]:
    try:
        newest = CheckpointStore(directory.checkpoints).newest_file()
        yield "last checkpoint: none yet" if newest is None else f"last checkpoint: {newest.name}, {_age(newest)} ago"
    except (CheckpointError, OSError) as error:
        yield f"last checkpoint: {error}"


def _restarts(facts: Mapping[str, Any]) -> str:
    resumes = facts.get("resumes", [])
    where = ", ".join(f"{resume['env_steps']:,}" for resume in resumes[-5:])
    shown = f" (at env steps {'..., ' if len(resumes) > 5 else ''}{where})" if resumes else ""
    return f"restarts: {len(resumes)}{shown}"


def _last_row(path: Path) -> dict[str, str]:
    """The last whole row of a CSV file that may be written to meanwhile; empty where there is none."""
    try:
        with path.open(newline="") as file:
            rows = [line for line in file if line.endswith("\n")]
    except OSError:
        return {}
    return dict(zip(*csv.reader([rows[0], rows[-1]]), strict=True)) if len(rows) > 1 else {}


def _age(path: Path) -> str:
    return _duration(max(0.0, time.time() - path.stat().st_mtime))


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
