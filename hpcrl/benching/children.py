"""Runs a command, bounded in time, and watches what it and all that it starts take of the machine."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_EVERY_S = 0.5
_GRACE_S = 20.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class CommandFailed(Exception):
    """A command ended with an error or not in time; says what it printed last."""


class _Sample(NamedTuple):
    seconds: float
    cpu_s: dict[int, float]
    memory_mb: float


@dataclass(frozen=True)
class Finished:
    """A command that succeeded.

    Attributes:
        output: what it wrote to stdout.
        cores: CPU seconds a second of all its processes together, median over half seconds.
        peak_mb: memory of all its processes at the same time; what they share counts once.
        cpu_s: CPU seconds of all its processes.
    """

    output: str
    cores: float
    peak_mb: float
    cpu_s: float


def run(
    command: Sequence[str],
    timeout: float,
    environment: dict[str, str] | None = None,
    folder: Path | None = None,
    enough: Callable[[], bool] = lambda: False,
) -> Finished:
    """Run `command` to its end.

    Args:
        timeout: seconds after which it is ended.
        environment: of the command; by default this process's.
        folder: where it runs; by default here.
        enough: asked twice a second; once true the command gets SIGUSR1, upon which `hpcrl train` leaves in order.

    Raises:
        CommandFailed: it failed, or was not over in time; with the last lines of its output.
    """
    samples: list[_Sample] = []
    before = _children_cpu_s()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, cwd=folder, env=environment, start_new_session=True)
        end = time.monotonic() + timeout
        try:
            asked = False
            while not _ends_within(process, _EVERY_S) and time.monotonic() < end:
                if not asked:
                    samples.append(_sample(process.pid))
                if not asked and enough():
                    asked, end = True, min(end, time.monotonic() + _GRACE_S)
                    process.send_signal(signal.SIGUSR1)
        finally:
            in_time = process.poll() is not None
            _end(process)
        out.seek(0), err.seek(0)
        output, errors = out.read(), err.read()
    if process.returncode or not in_time:
        why = f"status {process.returncode}" if in_time else f"not over within {timeout:.0f} s"
        raise CommandFailed(f"{' '.join(command)}: {why}\n{output[-2000:]}\n{errors[-2000:]}")
    peak_mb = max((sample.memory_mb for sample in samples), default=0.0)
    return Finished(output, _cores(samples), peak_mb, _children_cpu_s() - before)


def _children_cpu_s() -> float:
    """CPU seconds of all children that are over, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _ends_within(process: subprocess.Popen, seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end(process: subprocess.Popen) -> None:
    """End the command and what it started, where they still run."""
    for pid in [*_descendants(process.pid), process.pid] if process.poll() is None else []:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def _sample(root: int) -> _Sample:
    cpu_s, memory_mb = {}, 0.0
    now = time.monotonic()
    for pid in [root, *_descendants(root)]:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            shares = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        cpu_s[pid] = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
        memory_mb += sum(int(line.split()[1]) for line in shares if line.startswith("Pss:")) * 1024 / 1e6
    return _Sample(now, cpu_s, memory_mb)


def _descendants(root: int) -> list[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    family = {root}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return sorted(family - {root})


def _cores(samples: Sequence[_Sample]) -> float:
    """Between samples of the same processes; the first half are left out as the start."""
    used = [
        sum(after.cpu_s[pid] - before.cpu_s[pid] for pid in after.cpu_s) / (after.seconds - before.seconds)
        for before, after in itertools.pairwise(samples)
        if after.cpu_s.keys() == before.cpu_s.keys()
    ]
    return statistics.median(used[len(used) // 2 :]) if used else float("nan")
