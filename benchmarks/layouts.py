"""One repeat on one layout: its command, and what its run directory says."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.children import CommandFailed
from benchmarks.efficiency import count
from benchmarks.repeats import Repeat, Series
from benchmarks.steps import Stop, run
from hpcrl.benching.rows import read_rows, steady

ITERATIONS = 8
#: What a run does beside training, and how it learns, unless the options say otherwise.
DEFAULTS = ("--no-tensorboard", "--no-episode-log", "--checkpoint-every", "0", "--learning-rate", "1e-12")
_SLURM = {
    "job": "SLURM_JOB_ID",
    "array_job": "SLURM_ARRAY_JOB_ID",
    "array_task": "SLURM_ARRAY_TASK_ID",
    "restarts": "SLURM_RESTART_COUNT",
}


@dataclass(frozen=True)
class Work:
    """What there is to do: in total where the mode is strong, for each rank that acts where it is weak.

    Attributes:
        batch_envs: None for algorithms that don't choose it.
    """

    mode: str
    num_envs: int
    env_steps: int
    batch_envs: int | None

    def on(self, actors: int) -> Work:
        """The work in total."""
        share = actors if self.mode == "weak" else 1
        batch_envs = None if self.batch_envs is None else share * self.batch_envs
        return Work(self.mode, share * self.num_envs, share * self.env_steps, batch_envs)

    def options(self) -> list[str]:
        """As options of `hpcrl train`."""
        batch = [] if self.batch_envs is None else ["--batch-envs", str(self.batch_envs)]
        return ["--num-envs", str(self.num_envs), "--total-env-steps", str(self.env_steps), *batch]


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        launch: the words in front of the command; none where `hpcrl train` starts the ranks itself.
        hosts: the node of every rank.
        actors: how many of the ranks act.
        series: the curve that the layout is a point of.
        total: the work of a run.
    """

    launch: Sequence[str]
    hosts: Sequence[str]
    actors: int
    series: Series
    total: Work

    def command(self, number: int) -> list[str]:
        """The command of a repeat, all but its run directory. The ranks refuse a world of another size."""
        words = ["train", self.series.algorithm, *DEFAULTS, *self.series.options, *self.total.options()]
        words += ["--num-iterations", str(ITERATIONS), "--seed", str(number), "--ranks", str(len(self.hosts))]
        return [*self.launch, sys.executable, "-m", "hpcrl", *words]

    def describe(self) -> str:
        """One line for people."""
        ranks, nodes = count(len(self.hosts), "rank"), count(len(set(self.hosts)), "node")
        return f"{self.series.mode} scaling, {self.series.algorithm} on {self.series.env}, {ranks} on {nodes}"


def measure(plan: Plan, number: int, folder: Path, timeout: float, stop: Stop) -> Repeat:
    """One run.

    Args:
        folder: where the run directory lies for a while; the node of the first rank must reach it.

    Raises:
        CommandFailed: the run failed, or was not the one that was asked for.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".scaling-", ignore_cleanup_errors=True) as name:
        run_dir = Path(name) / "run"
        command = [*plan.command(number), "--run-dir", str(run_dir)]
        run(command, timeout, stop)
        try:
            facts = json.loads((run_dir / "config.json").read_text())
            rows = read_rows(run_dir / "metrics.csv")
        except (OSError, ValueError) as error:
            raise CommandFailed(f"{' '.join(command)}: its run directory can't be read: {error}") from error
    return repeat_of(plan, number, facts, rows, started, command)


def repeat_of(
    plan: Plan,
    number: int,
    facts: Mapping[str, Any],
    rows: Sequence[Mapping[str, float]],
    started: str,
    command: Sequence[str],
) -> Repeat:
    """What a run's `config.json` and the rows of its `metrics.csv` say; CommandFailed where it is not the run planned.

    A run that a signal stopped ends with status 0 too, but before its last step.
    """
    layout, config = facts["layout"], facts["config"]
    nodes = list(dict.fromkeys(layout["hosts"]))
    found = {"ranks": layout["ranks"], "nodes": len(nodes), "actors": len(layout["actors"])}
    planned = {"ranks": len(plan.hosts), "nodes": len(set(plan.hosts)), "actors": plan.actors}
    if found != planned:
        raise CommandFailed(f"expected a world of {planned}, got {found}")
    made = rows[-1]["env_steps"] if rows else 0
    if made < plan.total.env_steps:
        raise CommandFailed(f"the run was stopped at env step {made:,.0f} of {plan.total.env_steps:,}")
    if len(rows) < 2:
        raise CommandFailed("expected several iterations, got one: more env steps are needed")
    in_steady_state = steady(rows)
    return Repeat(
        mode=plan.series.mode,
        algorithm=config["algorithm"],
        env=config["env"],
        placement=config["placement"],
        options=list(plan.series.options),
        ranks=layout["ranks"],
        nodes=len(nodes),
        learners=len(layout["learners"]),
        actors=len(layout["actors"]),
        num_envs=config["num_envs"],
        env_steps=config["total_env_steps"],
        batch_envs=config.get("batch_envs"),
        repeat=number,
        env_steps_per_s=in_steady_state.env_steps_per_s,
        updates_per_s=in_steady_state.updates_per_s,
        measured_s=in_steady_state.seconds,
        time_split=in_steady_state.time_split,
        machine=facts["machine"],
        versions=facts["versions"],
        git_commit=facts["git_commit"],
        hosts=nodes,
        slurm={name: int(os.environ[key]) for name, key in _SLURM.items() if os.environ.get(key, "").isdigit()},
        started=started,
        command=list(command),
    )
