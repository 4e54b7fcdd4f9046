"""What is asked of Slurm for a run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hpcrl.errors import ConfigError

#: Slurm's own forms: minutes, minutes:seconds, hours:minutes:seconds, and days-hours with or without them.
_TIME = re.compile(r"\d+|\d+:\d+|\d+:\d+:\d+|\d+-\d+(:\d+){0,2}")


@dataclass(frozen=True)
class Component:
    """Nodes that are alike: the whole of a job, or one component of a heterogeneous one.

    Attributes:
        nodes: how many.
        tasks_per_node: ranks on each.
        gpus_per_node: GPUs on each.
        cpus_per_task: cores of every rank, where all have as many.
        partition: None for the site's default.
        exclusive: all cores of its nodes, whatever the number of ranks.
    """

    nodes: int
    tasks_per_node: int
    gpus_per_node: int = 0
    cpus_per_task: int = 1
    partition: str | None = None
    exclusive: bool = False

    def __post_init__(self) -> None:
        for name, least in (("nodes", 1), ("tasks_per_node", 1), ("gpus_per_node", 0), ("cpus_per_task", 1)):
            if getattr(self, name) < least:
                flag = "--" + name.replace("_", "-").replace("tasks", "ntasks")
                raise ConfigError(f"{flag} must be a whole number of at least {least}, got {getattr(self, name)}")
        _require_word("--partition", self.partition)


@dataclass(frozen=True)
class Job:
    """A batch job of one component, or of two: learners in the first, actors in the second.

    Attributes:
        name: of the job.
        components: one or two.
        time: limit, in one of Slurm's forms.
        warning_s: seconds before the limit at which Slurm warns.
        output: the log, in Slurm's notation (%j is the job's id).
        options: further options of sbatch, as they are written.
        max_restarts: restarts over all requeues.
    """

    name: str
    components: Sequence[Component]
    time: str = "01:00:00"
    warning_s: int = 120
    output: str = "%x-%j.log"
    options: Sequence[str] = ()
    max_restarts: int = 100

    def __post_init__(self) -> None:
        if not _TIME.fullmatch(self.time):
            raise ConfigError(f"--time must be minutes, hours:minutes:seconds or days-hours, got {self.time!r}")
        if self.warning_s < 1:
            raise ConfigError(f"--warning must be at least 1 second, got {self.warning_s}")
        if 0 < (limit := _seconds(self.time)) <= self.warning_s:
            raise ConfigError(f"--warning must be less than --time {self.time} ({limit} s), got {self.warning_s}")
        if self.max_restarts < 0:
            raise ConfigError(f"--max-restarts must be 0 or more, got {self.max_restarts}")
        for option in self.options:
            if not option.startswith("-") or "\n" in option:
                raise ConfigError(f"--sbatch takes options of sbatch such as --account=physics, got {option!r}")
        if "\n" in self.output:
            raise ConfigError(f"the log must be one line, got {self.output!r}")
        _require_word("--job-name", self.name)


@dataclass(frozen=True)
class Training:
    """What a job runs.

    Attributes:
        arguments: of `hpcrl train`, algorithm first; without --run-dir and --resume.
        run_dir: where the run lies; None names it after the job.
        environment: folder of a Python environment; None looks in .venv and on the path.
        packed_environment: an archive to unpack on every node, in place of `environment`.
        stage_dir: where on the node, with variables as the shell of the job has them.
        deals_roles: the learners follow from the job's GPUs or components; what the arguments say of them wins.
        mpi: for `srun --mpi=`; None finds the one that belongs to the MPI library.
        on_warning: requeue the job, or leave the rest to the next job of a chain.
    """

    arguments: Sequence[str]
    run_dir: Path | None = None
    environment: Path | None = None
    packed_environment: Path | None = None
    stage_dir: str = "${TMPDIR:-/tmp}"
    deals_roles: bool = True
    mpi: str | None = None
    on_warning: Literal["requeue", "chain"] = "requeue"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[/$][\w.,+@%=/${}:-]*", self.stage_dir):
            raise ConfigError(f"--stage-dir must be an absolute folder without spaces, got {self.stage_dir!r}")


def _seconds(time: str) -> int:
    """A time in one of Slurm's forms; 0 is no limit."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if not dash and len(parts) < 3:
        parts = [0, *parts]
    hours, minutes, seconds = (*parts, 0, 0)[:3]
    return int(days or 0) * 86_400 + hours * 3600 + minutes * 60 + seconds


def _require_word(flag: str, value: str | None) -> None:
    if value is not None and (not value or not re.fullmatch(r"[\w.,+@%=/-]+", value)):
        raise ConfigError(f"{flag} must be a name without spaces, got {value!r}")
