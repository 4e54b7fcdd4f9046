"""Whole runs on a GPU: on any number of learners, beside their environments alone, and for some minutes."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import children
from benchmarks.gpu.findings import Finding, Skip, at_least, at_most
from benchmarks.tables import RATE

_LAYOUTS, _SPEED, _MEMORY = "learners", "end to end", "memory"
#: Relative distance of weights after a run on another number of learners.
_CLOSE = 1e-4
_ENV_STEPS = 4096
#: The same of another kind of device.
_NEAR = 1e-3
_SMALL = ("--num-envs", "8", "--unroll-length", "16", "--hidden-sizes", "32", "32")
_ALGORITHMS = {
    "a2c": ("a2c", *_SMALL, "--normalise-advantages"),
    "ppo": ("ppo", *_SMALL, "--epochs", "2", "--minibatches", "4", "--normalise-observations", "--normalise-returns"),
    "ppo, LSTM": ("ppo", *_SMALL, "--epochs", "2", "--minibatches", "4", "--core", "lstm", "--core-size", "32"),
    "impala, lockstep": ("impala", *_SMALL, "--batch-envs", "8", "--schedule", "lockstep", "--frame-stack", "2"),
}
#: Environments of each actor.
_ENVS_EACH = 16
#: By preset: words for `hpcrl train`, and the least share of what the actors' cores step without learning.
_RUNS = {
    "impala/pong": (
        ("--preset", "pong", "--model", "nature", "--precision", "bfloat16", "--inference", "learner"),
        0.8,
    ),
    "impala/cartpole": (("--preset", "cartpole"), None),
}
#: Growth of a GPU's memory in use after the first third of a run.
_GROWTH = 0.02


class Target(NamedTuple):
    """What runs learn on: words for `hpcrl train`."""

    device: str
    extra: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        return ["--device", self.device, *self.extra]


def check_algorithms(target: Target) -> Iterator[Finding]:
    """A few updates of every algorithm that keeps step, against those of the CPU."""
    for name, words in _ALGORITHMS.items():
        common = [*words, "--total-env-steps", "1024", "--seed", "3"]
        there, here = _weights([*common, *target.words]), _weights([*common, "--device", "cpu"])
        distance = float(np.linalg.norm(there - here) / np.linalg.norm(here))
        yield at_most(_LAYOUTS, f"{name}: weights after 1,024 env steps against the CPU's", distance, _NEAR)


def check_layouts(target: Target) -> Iterator[Finding]:
    """a2c on CartPole with 1, 2 and 4 learners, that share the GPU: the same run.

    A short one: sooner or later rounding makes another choice between two actions, and another run from there on.
    """
    options = ["a2c", "--num-envs", "16", "--total-env-steps", str(_ENV_STEPS), "--seed", "3"]
    alone = _weights([*options, *target.words])
    for learners in (2, 4):
        shared = [*target.words, "--ranks", str(2 * learners), "--learners", str(learners)]
        if target.device == "cuda":
            shared += ["--share-gpus", "--allreduce", "host"]
        together = _weights([*options, *shared])
        distance = float(np.linalg.norm(together - alone) / np.linalg.norm(alone))
        what = f"a2c, {learners} learners on one device against one: weights after {_ENV_STEPS:,} env steps"
        yield at_most(_LAYOUTS, what, distance, _CLOSE)


def _weights(words: Sequence[str]) -> np.ndarray:
    import h5py

    with tempfile.TemporaryDirectory(prefix="hpcrl-gpu-") as folder:
        run_dir = Path(folder) / "run"
        _train([*words, "--run-dir", str(run_dir)], 300)
        newest = max((run_dir / "checkpoints").glob("*.h5"), key=lambda path: path.stat().st_mtime)
        with h5py.File(newest) as file:
            return np.concatenate([array[()].ravel() for array in file["weights"].values()]).astype(np.float64)


def check_speed(target: Target, seconds: float) -> Iterator[Finding]:
    """Pong and CartPole, all cores but one as actors, against what these cores step alone."""
    ranks = max(2, len(os.sched_getaffinity(0)))
    envs = _ENVS_EACH * (ranks - 1)
    for label, (words, wanted) in _RUNS.items():
        name = f"{label}, {ranks - 1} actors of {_ENVS_EACH} environments"
        if label.endswith("pong") and importlib.util.find_spec("ale_py") is None:
            yield Finding(_SPEED, name, None, note="ale-py is missing")
            continue
        alone = _stepping(label, ranks - 1, seconds)
        sizes = ["--num-envs", str(envs), "--batch-envs", str(min(envs, 64)), "--ranks", str(ranks)]
        length = ["--total-env-steps", str(int(max(20_000, alone * seconds)))]
        # Small policies learn on the CPU, as they do by themselves.
        device = target.words if wanted else []
        rate = _rate([label.split("/")[0], *words, *sizes, *length, *device])
        yield Finding(_SPEED, f"{name}: random actions, without learning", alone, "env steps/s")
        yield Finding(_SPEED, f"{name}: learning", rate, "env steps/s")
        what = f"{name}: share"
        is_limited = wanted is not None and target.device == "cuda"
        yield at_least(_SPEED, what, rate / alone, wanted) if is_limited else Finding(_SPEED, what, rate / alone)


def _stepping(label: str, processes: int, seconds: float) -> float:
    words = ["-m", "benchmarks.preset_stepping", label, _ENVS_EACH, seconds, processes]
    done = children.run([sys.executable, *map(str, words)], 120 + 2 * seconds)
    return float(json.loads(done.output.splitlines()[-1])[RATE])


def _rate(words: Sequence[str]) -> float:
    """Env steps a second after the first half of a run."""
    rows = _metrics([*words, "--num-iterations", "10"], 900)
    first, last = rows[len(rows) // 2], rows[-1]
    steps, seconds = (float(last[name]) - float(first[name]) for name in ("env_steps", "time/elapsed_s"))
    return steps / seconds


def check_memory(target: Target, seconds: float) -> Iterator[Finding]:
    """impala on random games for some minutes: the memory in use on the GPU, after the first third of the run."""
    if target.device != "cuda":
        raise Skip("the memory of a CPU is not a GPU's")
    words = ["impala", "--preset", "cartpole", "--hidden-sizes", "512", "512", "--ranks", "2", *target.words]
    rows = _metrics([*words, "--total-env-steps", str(int(seconds * 20_000)), "--num-iterations", "60"], 4 * seconds)
    used = [float(row["gpu/used_bytes_max"]) for row in rows if row["gpu/used_bytes_max"]]
    if len(used) < 3:
        raise Skip("the driver does not tell how much memory is in use")
    early, late = used[len(used) // 3], used[-1]
    yield Finding(_MEMORY, "in use at the end", late / 2**20, "MiB")
    lasted = float(rows[-1]["time/elapsed_s"])
    yield at_most(_MEMORY, f"growth over the last two thirds of {lasted:.0f} s", late / early - 1, _GROWTH)


def _metrics(words: Sequence[str], timeout: float) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="hpcrl-gpu-") as folder:
        run_dir = Path(folder) / "run"
        _train([*words, "--run-dir", str(run_dir)], timeout)
        with (run_dir / "metrics.csv").open(newline="") as file:
            return list(csv.DictReader(file))


def _train(words: Sequence[str], timeout: float) -> None:
    children.run([sys.executable, "-m", "hpcrl", "train", *words, "--checkpoint-every", "0"], timeout)
