"""Runs the command line as a user would, bounded in time, and leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from hpcrl.storage.checkpoints import CheckpointStore

HPCRL = [sys.executable, "-m", "hpcrl"]


class Running:
    """A command under way, with its output in files."""

    def __init__(
        self, command: Sequence[str], folder: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=dict(environment) if environment is not None else _environment(),
            start_new_session=True,
            preexec_fn=_as_from_a_terminal,
        )

    def wait(self, timeout: float) -> subprocess.CompletedProcess[str]:
        """The finished command; a time-out ends it and all that it started, and fails the test."""
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            out, err = self.process.communicate()
            raise AssertionError(f"not over within {timeout} s: {self.process.args}\n{out}\n{err}") from None
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, out, err)

    def descendants(self) -> list[int]:
        """Process ids of all that the command started and that still runs."""
        parents = dict(_parents())
        family = {self.process.pid}
        while more := {child for child, parent in parents.items() if parent in family} - family:
            family |= more
        return sorted(family - {self.process.pid})

    def ranks(self) -> list[int]:
        """Process ids of the ranks, in rank order."""
        found = {}
        for pid in [*self.descendants(), self.process.pid]:
            variables = _variables(pid)
            for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK"):
                if name in variables and _is_python(pid):
                    found[int(variables[name])] = pid
        return [found[rank] for rank in sorted(found)]

    def until(self, condition: Callable[[], object], timeout: float = 40) -> None:
        """Wait for a condition; fails where the command ends or the time is over before."""
        end = time.monotonic() + timeout
        while not condition():
            if self.process.poll() is not None or time.monotonic() > end:
                self.kill()
                out, err = self.process.communicate()
                raise AssertionError(f"the condition did not come true: {self.process.args}\n{out}\n{err}")
            time.sleep(0.02)

    def kill(self) -> None:
        """End the command and all that it started, without asking."""
        for pid in [*self.descendants(), self.process.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def run(
    command: Sequence[str],
    timeout: float = 60,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return Running(command, folder, environment).wait(timeout)


def hpcrl(*arguments: object, timeout: float = 60, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `hpcrl ARGUMENTS` to its end."""
    return run([*HPCRL, *map(str, arguments)], timeout, folder)


def train(run_dir: Path, *arguments: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Train a2c into `run_dir`; fails the test unless it succeeds."""
    done = hpcrl("train", "a2c", "--run-dir", run_dir, "--no-tensorboard", *arguments, timeout=timeout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done


def weights(run_dir: Path) -> np.ndarray:
    """The newest checkpoint's weights as one vector, in the order of their names."""
    checkpoint = CheckpointStore(run_dir / "checkpoints").newest()
    assert checkpoint is not None
    return np.concatenate([array.ravel() for _, array in sorted(checkpoint.group("weights").items())])


def state(run_dir: Path) -> dict[str, bytes]:
    """Every array of the newest checkpoint, as bytes."""
    checkpoint = CheckpointStore(run_dir / "checkpoints").newest()
    assert checkpoint is not None
    return {name: array.tobytes() for name, array in checkpoint.arrays.items()}


def relative_difference(one: np.ndarray, other: np.ndarray) -> float:
    """Relative 2-norm of the difference."""
    return float(np.linalg.norm(one - other) / np.linalg.norm(one))


def untimed(metrics: Path) -> list[list[str]]:
    """The rows of a metrics file without the columns that tell time, traffic or who waited."""
    lines = [line.split(",") for line in metrics.read_text().splitlines()]
    kept = [place for place, name in enumerate(lines[0]) if not name.startswith(("time/", "comm/", "wait/"))]
    return [[line[place] for place in kept] for line in lines]


def _as_from_a_terminal() -> None:
    """Whoever runs the tests may have been started to ignore the end of its terminal."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _environment() -> dict[str, str]:
    """Ours, without what an outer launcher left in it."""
    foreign = ("OMPI_COMM", "OMPI_MCA_", "PMIX", "PMI_", "SLURM_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


def _parents() -> list[tuple[int, int]]:
    pairs = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                pairs.append((int(entry.name), int(fields[1])))
    return pairs


def _variables(pid: int) -> dict[str, str]:
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(item.split("=", 1) for item in raw.split("\0") if "=" in item)


def _is_python(pid: int) -> bool:
    try:
        return "python" in Path(f"/proc/{pid}/exe").readlink().name
    except OSError:
        return False
