"""Layouts of one machine, and a measured run on one of them."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from hpcrl.benching.children import CommandFailed, run
from hpcrl.benching.rows import read_rows, steady

#: What a run does beside training, and how it learns, unless the options say otherwise: nothing, so that episodes stay
#: as long as those of random actions.
_DEFAULTS = ("--no-tensorboard", "--no-episode-log", "--checkpoint-every", "0", "--learning-rate", "1e-12")
#: A run is ended by its time, not by its steps.
_ITERATIONS = 10**6
_START_S = 60.0


class Layout(NamedTuple):
    """How the cores are used.

    Attributes:
        does_both: every rank acts and learns.
    """

    name: str
    ranks: int
    does_both: bool

    @property
    def options(self) -> list[str]:
        """Of `hpcrl train`."""
        if self.ranks == 1:
            return []
        return ["--ranks", str(self.ranks), "--placement", "colocated" if self.does_both else "split"]


def layouts_for(ranks: int) -> list[Layout]:
    """One process, and so many ranks as actors and learners, or each as both."""
    alone = Layout("one process", 1, True)
    if ranks == 1:
        return [alone]
    return [alone, Layout(f"{ranks} ranks, split", ranks, False), Layout(f"{ranks} ranks, colocated", ranks, True)]


@dataclass(frozen=True)
class Run:
    """One run on one layout, a line of the JSON file.

    Attributes:
        ranks, learners, actors: of the world; a rank that does both counts as a learner and as an actor.
        options: of `hpcrl train`, as they were given.
        env_steps_per_s, updates_per_s: over the iterations after the first.
        measured_s: wall time of those iterations.
        cores_used: CPU seconds a second of all ranks.
        peak_mb: memory of all ranks; what they share counts once.
        time_split: share of that time by role and phase, a mean over the ranks with the role.
        machine, versions, git_commit: as of `config.json`.
        started: UTC.
    """

    layout: str
    algorithm: str
    env: str
    placement: str
    options: list[str]
    ranks: int
    learners: int
    actors: int
    num_envs: int
    repeat: int
    env_steps_per_s: float
    updates_per_s: float
    measured_s: float
    cores_used: float
    peak_mb: float
    time_split: dict[str, float]
    machine: dict[str, Any]
    versions: dict[str, Any]
    git_commit: str | None
    started: str
    command: list[str]


def measure(algorithm: str, options: Sequence[str], layout: Layout, iteration: int, repeat: int, seconds: float) -> Run:
    """Train until the iterations after the first have lasted `seconds`.

    Args:
        options: of `hpcrl train`.
        iteration: env steps of one; there is a row for each.
        repeat: number of the run, from 1; its seed.

    Raises:
        CommandFailed: the run failed, or made no two iterations in time.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(prefix="hpcrl-bench-", ignore_cleanup_errors=True) as name:
        run_dir = Path(name) / "run"
        command = [sys.executable, "-m", "hpcrl", "train", algorithm, *_DEFAULTS, *options, *layout.options]
        command += ["--total-env-steps", str(iteration * _ITERATIONS), "--num-iterations", str(_ITERATIONS)]
        command += ["--seed", str(repeat), "--run-dir", str(run_dir)]

        def enough() -> bool:
            rows = read_rows(run_dir / "metrics.csv")
            return len(rows) > 1 and rows[-1]["time/elapsed_s"] - rows[0]["time/elapsed_s"] >= seconds

        done = run(command, _START_S + 20 * seconds, enough=enough)
        rows = read_rows(run_dir / "metrics.csv")
        if len(rows) < 2:
            raise CommandFailed("the run ended before its second iteration")
        facts = json.loads((run_dir / "config.json").read_text())
    found = steady(rows)
    config, world = facts["config"], facts["layout"]
    return Run(
        layout=layout.name,
        algorithm=config["algorithm"],
        env=config["env"],
        placement=config["placement"],
        options=list(options),
        ranks=world["ranks"],
        learners=len(world["learners"]),
        actors=len(world["actors"]),
        num_envs=config["num_envs"],
        repeat=repeat,
        env_steps_per_s=found.env_steps_per_s,
        updates_per_s=found.updates_per_s,
        measured_s=found.seconds,
        cores_used=done.cores,
        peak_mb=done.peak_mb,
        time_split=found.time_split,
        machine=facts["machine"],
        versions=facts["versions"],
        git_commit=facts["git_commit"],
        started=started,
        command=command,
    )
