"""Runs the command line as a user would, bounded in time, and leaves no process behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hpcrl.cluster.launch import launcher_command, rank_environment
from hpcrl.storage.checkpoints import CheckpointStore

HPCRL = [sys.executable, "-m", "hpcrl"]


class Done(NamedTuple):
    """What became of one of several command lines; the errors of all ranks in rank order."""

    returncode: int
    stdout: str
    stderr: str
    seconds: float


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


def in_turn(
    commands: Sequence[Sequence[object]],
    ranks: int = 1,
    timeout: float = 120,
    fault: str | None = None,
    start: Callable[[list[str]], subprocess.CompletedProcess[str]] | None = None,
) -> list[Done]:
    """Run `hpcrl COMMAND` for every command, one after the other on the same ranks.

    Most of a short run is the start of its processes, so tests that don't look at the start share one. `start` runs
    a command to its end elsewhere than on `ranks` ranks of this machine.
    """
    with tempfile.TemporaryDirectory(prefix="hpcrl-in-turn-") as name:
        folder = Path(name)
        (folder / "commands.json").write_text(json.dumps([[str(word) for word in command] for command in commands]))
        command = [sys.executable, "-m", "tests.in_turn", name, *filter(None, [fault])]
        if start is not None:
            whole = start(command)
        elif ranks == 1:
            whole = run(command, timeout)
        else:
            whole = run(launcher_command(ranks, command), timeout, environment=rank_environment(_environment()))
        everything = "\n".join(f"{path.name}:\n{path.read_text()}" for path in sorted(folder.glob("*.*.*")))
        assert whole.returncode == 0, f"{whole.stdout}\n{whole.stderr}\n{everything}"
        return [_done(folder, number) for number in range(len(commands))]


def _done(folder: Path, number: int) -> Done:
    status, seconds = json.loads((folder / f"{number}.json").read_text())
    out, err = (
        "".join(path.read_text() for path in sorted(folder.glob(f"{number}.*.{kind}"))) for kind in ("out", "err")
    )
    return Done(status, out, err, seconds)


class Runs:
    """Training runs by name, each in a folder of its own; those of one world are made by the same ranks, in turn.

    Args:
        folder: where the runs lie.
        worlds: number of ranks, and what stands after `hpcrl train` by the runs' names; a world is started when the
            first of its runs is asked for.
    """

    def __init__(self, folder: Path, worlds: Sequence[tuple[int, Mapping[str, Sequence[object]]]]) -> None:
        self._folder = folder
        self._worlds = worlds
        self._done: dict[str, Done] = {}

    def __getitem__(self, name: str) -> Path:
        """The folder of a run that succeeded."""
        done = self.done(name)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return self._folder / name

    def done(self, name: str) -> Done:
        """What a run said and how it ended."""
        if name not in self._done:
            ranks, runs = next((ranks, runs) for ranks, runs in self._worlds if name in runs)
            commands = [
                ["train", *options, "--run-dir", self._folder / name, "--no-tensorboard"]
                for name, options in runs.items()
            ]
            self._done.update(zip(runs, in_turn(commands, ranks), strict=True))
        return self._done[name]


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
