"""What Slurm's commands are told and say: sbatch, squeue, scontrol, sacct, sinfo."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hpcrl.errors import ConfigError, HpcrlError

_PATIENCE_S = 60.0
_SEPARATOR = "|"
_MOST_ENDED = 3


class SlurmError(HpcrlError):
    """A command of Slurm that fails or gives no answer."""


@dataclass(frozen=True)
class JobState:
    """How a job stands in the queue.

    Attributes:
        job: its id, with _TASK for an element of an array.
        state: in Slurm's words, such as RUNNING.
        nodes: how many.
        elapsed, left: times in Slurm's form; empty where the job does not run.
        reason: why it waits, or its nodes.
    """

    job: str
    state: str
    nodes: str = ""
    elapsed: str = ""
    left: str = ""
    reason: str = ""

    def describe(self) -> str:
        """One line for people."""
        if self.state == "RUNNING":
            return f"job {self.job}: RUNNING on {self.reason} for {self.elapsed}, {self.left} left"
        return f"job {self.job}: {self.state}{f' ({self.reason})' if self.reason else ''}"


def has_sbatch() -> bool:
    """Whether jobs can be submitted from here."""
    return shutil.which("sbatch") is not None


def check(script: Path) -> str:
    """What Slurm would do with a script, without doing it.

    Raises:
        ConfigError: it refuses the script; with its reason.
    """
    done = _run(["sbatch", "--test-only", str(script)])
    if done.returncode:
        raise ConfigError(f"sbatch refuses the job: {_last_line(done.stderr)}")
    return _last_line(done.stderr)


def submit(script: Path, after: str | None = None) -> str:
    """Submit a script, to start once job `after` is over; the job's id.

    Raises:
        SlurmError: it was not accepted.
    """
    dependency = [f"--dependency=afterany:{after}"] if after else []
    done = _run(["sbatch", "--parsable", *dependency, str(script)])
    if done.returncode:
        raise SlurmError(f"sbatch did not accept {script}: {_last_line(done.stderr)}")
    # With several clusters: id;cluster.
    return done.stdout.strip().partition(";")[0]


def job_states(jobs: Sequence[str]) -> list[JobState]:
    """How jobs stand, those that Slurm still knows; the queue first, then the newest that have ended.

    Raises:
        SlurmError: Slurm gives no answer.
    """
    if not jobs:
        return []
    form = _SEPARATOR.join(["%i", "%T", "%D", "%M", "%L", "%R"])
    done = _run(["squeue", "--noheader", f"--jobs={','.join(jobs)}", f"--format={form}"])
    # Of ids that are all unknown squeue complains.
    if done.returncode and "Invalid job id" not in done.stderr:
        raise SlurmError(f"squeue gives no answer: {_last_line(done.stderr)}")
    # Reasons stand in parentheses, nodes do not.
    lines = [line.split(_SEPARATOR, 5) for line in done.stdout.splitlines() if line.count(_SEPARATOR) >= 5]
    waiting = [JobState(*fields) for fields in lines]
    waiting = [replace(state, reason=state.reason.strip("()")) for state in waiting]
    known = {state.job.partition("+")[0] for state in waiting}
    known |= {job.partition("_")[0] for job in known}
    others = [job for job in jobs if job not in known][-_MOST_ENDED:]
    return [*waiting, *(state for job in others if (state := _ended(job)) is not None)]


def cores_per_node(partition: str | None) -> int | None:
    """Physical cores of the smallest node of a partition (of the default one); None where Slurm does not tell."""
    if shutil.which("sinfo") is None:
        return None
    of = [f"--partition={partition}"] if partition else []
    done = _run(["sinfo", "--noheader", "--exact", "--format=%R|%P|%X|%Y", *of])
    found = []
    for line in done.stdout.splitlines():
        _, name, sockets, cores = line.split("|")
        if (partition or name.endswith("*")) and sockets.isdigit() and cores.isdigit():
            found.append(int(sockets) * int(cores))
    return min(found, default=None)


def _ended(job: str) -> JobState | None:
    shown = _run(["scontrol", "--oneliner", "show", "job", job]).stdout
    if found := re.search(r"JobState=(\w+) Reason=(\w+)", shown):
        return JobState(job, found[1], reason="" if found[2] == "None" else found[2])
    if shutil.which("sacct") is None:
        return None
    lines = _run(["sacct", "--noheader", "--allocations", "--parsable2", f"--jobs={job}", "--format=State"]).stdout
    return JobState(job, lines.split("\n")[0].strip()) if lines.strip() else None


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    except FileNotFoundError as error:
        raise SlurmError(f"no {command[0]} is here") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{command[0]} gave no answer within {_PATIENCE_S:.0f} s") from error


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it does not say why"
