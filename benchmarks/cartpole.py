"""CartPole-v1 with 2 x 64 tanh in float32 on the cores of this machine, against other libraries."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks import children, training
from benchmarks.settings import CORES, Settings
from benchmarks.tables import Column, Measurement, Results, Table

_NATIVE = ("--env", "CartPole-v1", "--num-envs", 1024)
_OURS: Mapping[str, tuple[str, Sequence[object]]] = {
    "impala, 1024 envs, 2 ranks that do both": (
        "impala",
        ("--preset", "cartpole-throughput", "--ranks", 2, "--placement", "colocated"),
    ),
    "impala, 1024 envs, 1 learner + 1 actor ahead": (
        "impala",
        ("--preset", "cartpole-throughput", "--ranks", 2, "--placement", "split"),
    ),
    "a2c, 1024 envs, 2 ranks that do both": (
        "a2c",
        ("--vector", "native", "--unroll-length", 16, "--shared-encoder", "--ranks", 2, "--placement", "colocated"),
    ),
}
#: Name: module, script, number of environments and what else the script takes.
_PEERS: Mapping[str, tuple[str, str, int, Sequence[int]]] = {
    "SB3 A2C, 64 envs, 1 thread": ("stable_baselines3", "sb3_a2c.py", 64, (1,)),
    "SB3 A2C, 64 envs, 2 threads": ("stable_baselines3", "sb3_a2c.py", 64, (2,)),
    "PufferLib PPO, 1024 envs in C, 1 thread": ("pufferlib", "puffer_ppo.py", 1024, (1, 0)),
    "PufferLib PPO, 1024 envs in C, 2 threads": ("pufferlib", "puffer_ppo.py", 1024, (2, 0)),
    "PufferLib PPO, 1024 envs in C, 2 workers": ("pufferlib", "puffer_ppo.py", 1024, (1, 2)),
    "Sample Factory APPO, 2 x 64 envs": ("sample_factory", "sample_factory_appo.py", 128, (2,)),
}
_PRESET_ENV_STEPS = 20_000_000
_SCRIPTS = Path(__file__).parent / "peers"


def table(settings: Settings) -> Table:
    """Ours, and the peers that are installed."""
    workloads: dict[str, Callable[[int], Measurement]] = {}
    for name, (algorithm, options) in _OURS.items():
        workloads[name] = partial(_train, algorithm, (*options, *_NATIVE), settings)
    for name, (module, script, num_envs, rest) in _PEERS.items():
        if (python := settings.python_with(module)) is not None:
            words = [str(_SCRIPTS / script), *map(str, (num_envs, settings.seconds, *rest))]
            workloads[name] = partial(_peer, [python, *words], settings)
    against = [name for name in _PEERS if name in workloads]
    columns = [Column("solved_s", "s to 475"), Column("solved_env_steps", "env steps to 475", ",.0f")]
    title = f"CartPole-v1, 2 x 64 tanh, float32, {CORES} cores, learning included"
    return Table("cartpole", title, workloads, against, columns, _notes)


def _train(algorithm: str, options: Sequence[object], settings: Settings, round_: int) -> Measurement:
    # What a preset learns depends on the length that it is made for.
    env_steps = _PRESET_ENV_STEPS if "--preset" in options else settings.native_env_steps
    if settings.env_steps < Settings.env_steps:
        env_steps = settings.native_env_steps
    run = training.train(algorithm, (*options, "--seed", round_ + 1, "--no-episode-log"), env_steps, iterations=40)
    return run.measurement() | (run.solved() if "--preset" in options else {})


def _peer(command: Sequence[str], settings: Settings, _: int) -> Measurement:
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": "", "TMPDIR": folder}
        done = children.run(command, 120 + 4 * settings.seconds, environment)
    line = next(line for line in reversed(done.output.splitlines()) if line.startswith('{"'))
    return {**json.loads(line), "cores": done.cores, "peak_mb": done.peak_mb}


def _notes(results: Results) -> Iterable[str]:
    rounds = results.get(next(iter(_OURS)), {})
    yield "Round r is seed r + 1. Seconds and env steps are those of the runs that reach 475 (last 100 episodes)."
    yield ""
    for round_, run in sorted(rounds.items()):
        if "solved_s" in run:
            yield f"- preset, seed {round_ + 1}: {run['solved_s']:.1f} s, {run['solved_env_steps']:,.0f} env steps"
        else:
            yield f"- preset, seed {round_ + 1}: not reached"
