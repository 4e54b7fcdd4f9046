"""Who takes part in a comparison: runs of hpcrl, with where their time goes, and peers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import children, training
from benchmarks.children import CommandFailed
from benchmarks.settings import Settings
from benchmarks.tables import RATE, Column, Measurement
from hpcrl.errors import ConfigError

_SCRIPTS = Path(__file__).parent / "peers"
_TAKEN = ("cores", "peak_mb")
_BENEATH = ("torch", "numpy", "gymnasium", "ale-py", "mujoco")
_VERSIONS = """
import importlib.metadata, json, platform, sys
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""
_LEARNING = ("learning", "reducing", "publishing")
#: What the time of ranks is divided into; the learners' three phases that no actor has are one.
_PHASES = ("acting", "inference", "learning", "transport", "waiting")
#: One for each phase.
COLUMNS = [Column(f"{phase}_us", f"{phase} us") for phase in _PHASES]


class Layout(NamedTuple):
    """How many ranks there are, and whether each of them acts and learns; a single one always does."""

    name: str
    ranks: int
    colocated: bool

    @property
    def options(self) -> tuple[object, ...]:
        """Of `hpcrl train`."""
        return ("--ranks", self.ranks, *(("--placement", "colocated") if self.colocated else ()))


ALONE = Layout("one process", 1, True)
BOTH = Layout("2 ranks that do both", 2, True)
AHEAD = Layout("1 learner + 1 actor", 2, False)
TWO_AHEAD = Layout("1 learner + 2 actors", 3, False)


class Contestant(NamedTuple):
    """A run of hpcrl: what `hpcrl train` takes, and its length in env steps."""

    algorithm: str
    options: Sequence[object]
    layout: Layout
    env_steps: int

    def measure(self, round_: int) -> Measurement:
        """Train with the round's seed; beside the rate, the phases of all ranks together in us for an env step."""
        options = (*self.options, *self.layout.options, "--seed", round_ + 1, "--no-episode-log")
        run = training.train(self.algorithm, options, self.env_steps)
        return run.measurement() | phases(run, self.layout)


def phases(run: training.Run, layout: Layout) -> Measurement:
    """Wall time of all ranks together in each phase, microseconds for an env step."""
    seconds = dict.fromkeys(_PHASES, 0.0)
    actors, learners = (layout.ranks, layout.ranks) if layout.colocated else (layout.ranks - 1, 1)
    for phase in _PHASES:
        if phase != "learning":
            seconds[phase] += actors * run.total(f"time/actor_{phase}_s")
        # A rank that does both has one clock: what both roles name is the same time.
        if phase != "learning" and not layout.colocated:
            seconds[phase] += learners * run.total(f"time/learner_{phase}_s")
    seconds["learning"] = learners * sum(run.total(f"time/learner_{phase}_s") for phase in _LEARNING)
    return {f"{phase}_us": total / run.steady_steps * 1e6 for phase, total in seconds.items()}


def interpreters(paths: Sequence[str]) -> Sequence[str]:
    """Where they lie, as scripts run in folders of their own; ConfigError where one of them can't be run."""
    found = []
    for path in paths:
        program = shutil.which(path)
        if program is None:
            raise ConfigError(f"--peers-python must name interpreters, got {path!r}")
        # Not the file behind a link: a virtual environment is where its link is.
        found.append(str(Path(program).absolute()))
    return found


class Peer(NamedTuple):
    """A script of the folder `peers`: the module that its Python needs, what it takes, and its settings for people."""

    module: str
    script: str
    num_envs: int
    rest: Sequence[object]
    settings: str = ""

    def measure(self, python: str, settings: Settings, round_: int) -> Measurement:
        """Run the script under `python` with the round's seed; its rate."""
        done = self._run(python, settings.seconds, ("--seed", round_ + 1), 120 + 4 * settings.seconds)
        if RATE not in done:
            raise CommandFailed(f"{self.script}: {settings.seconds:.0f} s are too few for a rate")
        return done

    def solve(self, python: str, goal: float, limit_s: float, round_: int) -> Measurement:
        """Run the script under `python` until it reaches a mean return, for `limit_s` at the most.

        See `benchmarks.time_to_solve` for what comes back.
        """
        options = ("--seed", round_ + 1, "--goal", goal)
        done = self._run(python, limit_s, options, limit_s + 60)
        found = {name: done[name] for name in ("reached", "env_steps", "return_last_100", *_TAKEN) if name in done}
        if found["reached"]:
            found |= {"solved_s": done["reached_s"] - done["first_step_s"], "from_start_s": done["reached_s"]}
        return found

    def versions(self, python: str) -> dict[str, str]:
        """Of the library and what it stands on, as far as `python` has them."""
        done = subprocess.run(
            [python, "-c", _VERSIONS, self.module, *_BENEATH], capture_output=True, timeout=60, check=True
        )
        return json.loads(done.stdout)

    def _run(self, python: str, seconds: float, more: Sequence[object], timeout: float) -> Measurement:
        words = [python, *map(str, (_SCRIPTS / self.script, self.num_envs, seconds, *self.rest, *more))]
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": "", "TMPDIR": folder}
            # Some leave things in the folder that they are started in.
            done = children.run(words, timeout, environment, Path(folder))
        line = next((line for line in reversed(done.output.splitlines()) if line.startswith('{"')), None)
        if line is None:
            raise CommandFailed(f"{' '.join(words)}: it printed no result\n{done.output[-2000:]}")
        return {**json.loads(line), "cores": done.cores, "peak_mb": done.peak_mb}
