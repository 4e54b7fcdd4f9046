"""Who takes part in a comparison: runs of hpcrl, with where their time goes, and peers."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import children, training
from benchmarks.settings import Settings
from benchmarks.tables import Column, Measurement

_SCRIPTS = Path(__file__).parent / "peers"
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


class Peer(NamedTuple):
    """A script of the folder `peers`: the module that its Python needs, and what it takes."""

    module: str
    script: str
    num_envs: int
    rest: Sequence[object]

    def measure(self, python: str, settings: Settings, _: int) -> Measurement:
        """Run the script under `python`."""
        words = [python, _SCRIPTS / self.script, self.num_envs, settings.seconds, *self.rest]
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": "", "TMPDIR": folder}
            done = children.run(list(map(str, words)), 120 + 4 * settings.seconds, environment)
        line = next(line for line in reversed(done.output.splitlines()) if line.startswith('{"'))
        return {**json.loads(line), "cores": done.cores, "peak_mb": done.peak_mb}
