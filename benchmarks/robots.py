"""HalfCheetah-v5 with 2 x 64 tanh, learning included, against other libraries and stepping without any learning.

`python -m benchmarks.robots KIND NUM_ENVS SECONDS PROCESSES` steps environments alone and prints one JSON line. KIND is
`hpcrl` (its own sequential environments, reset from a seed for every episode) or `gymnasium` (SyncVectorEnv).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from benchmarks import children
from benchmarks.contestants import ALONE, BOTH, COLUMNS, TWO_AHEAD, Contestant, Layout, Peer
from benchmarks.processes import on_every_core
from benchmarks.settings import CORES, Settings
from benchmarks.stepping import own_step
from benchmarks.tables import RATE, Measurement, Table
from hpcrl.envs.world import World

_ENV = "HalfCheetah-v5"
_NUM_ENVS = 64
_NORMALISED = ("--normalise-observations", "--normalise-returns", "--reward-clip", 10)
_ROBOT = ("--env", _ENV, "--num-envs", _NUM_ENVS, *_NORMALISED)
_PPO = ("--preset", "half-cheetah")
#: Name: algorithm, options, layouts, and the length as a share of the others'.
_OURS: Mapping[str, tuple[str, Sequence[object], Sequence[Layout], float]] = {
    "impala, 64 envs": ("impala", (*_ROBOT, "--batch-envs", _NUM_ENVS), (TWO_AHEAD, BOTH), 1.0),
    "a2c, 64 envs, T 32": ("a2c", (*_ROBOT, "--unroll-length", 32), (TWO_AHEAD, BOTH), 1.0),
    "ppo, 64 envs, T 64, 4 epochs of 4": (
        "ppo",
        (*_ROBOT, "--unroll-length", 64, "--epochs", 4, "--minibatches", 4),
        (BOTH,),
        1.0,
    ),
    "ppo, preset half-cheetah, 8 envs, 10 epochs of 32": ("ppo", _PPO, (ALONE, BOTH), 0.25),
}
#: Those of ours that are set against other libraries where time is short.
BEST = [f"{name}, {BOTH.name}" for name in _OURS if "preset" not in name]
_NORMALISE = ("--env", _ENV, "--normalise")
_PPO_AS_OURS = ("--algorithm", "PPO", "--set", "n_steps=64", "batch_size=1024", "n_epochs=4")
_APPO = "values of its example mujoco_appo, but 1 process with 32 envs that sends 128 steps of each; 2 x 64 tanh"
PEERS: Mapping[str, Peer] = {
    "SB3 A2C, 64 envs, T 5": Peer(
        "stable_baselines3", "sb3.py", _NUM_ENVS, _NORMALISE, "its defaults: T 5, RMSprop; VecNormalize, 1 thread"
    ),
    "SB3 PPO, 64 envs, T 64, 4 epochs of 4": Peer(
        "stable_baselines3",
        "sb3.py",
        _NUM_ENVS,
        (*_NORMALISE, *_PPO_AS_OURS),
        "T 64, 4 epochs of 4 minibatches of 1024, its defaults otherwise; VecNormalize, 1 thread",
    ),
    "Sample Factory APPO, 2 x 8 envs, T 64": Peer(
        "sample_factory",
        "sample_factory_appo.py",
        16,
        ("--env", "mujoco_halfcheetah"),
        "values of its example for MuJoCo (HalfCheetah-v4 there): T 64, batches of 1024, 2 epochs of 4, not async_rl",
    ),
    "RLlib APPO, 1 x 32 envs": Peer("ray", "rllib.py", 32, ("--env", _ENV, "--algorithm", "APPO"), _APPO),
}
_STEPPERS = {"hpcrl": "SequentialEnvs", "gymnasium": "SyncVectorEnv"}
#: Env steps of CartPole that take as long as one of a robot.
_CARTPOLES = 2
_DRAWN = 256


def table(settings: Settings) -> Table:
    """Our algorithms, the peers that are installed, and both kinds of stepping."""
    workloads: dict[str, Callable[[int], Measurement]] = {}
    for name, (algorithm, options, layouts, share) in _OURS.items():
        env_steps = round(share * settings.env_steps / _CARTPOLES)
        for layout in layouts:
            workloads[f"{name}, {layout.name}"] = Contestant(algorithm, options, layout, env_steps).measure
    against = []
    for name, peer in PEERS.items():
        if (python := settings.python_with(peer.module)) is not None:
            workloads[name] = partial(peer.measure, python, settings)
            against.append(name)
    for kind, name in _STEPPERS.items():
        against.append(f"{name}, {CORES} processes, random actions")
        workloads[against[-1]] = partial(_step, kind, settings)
    return Table("robots", f"{_ENV}, 2 x 64 tanh, {CORES} cores, learning included", workloads, against, COLUMNS)


def _step(kind: str, settings: Settings, _: int) -> Measurement:
    words = ["-m", "benchmarks.robots", kind, _NUM_ENVS // CORES, settings.seconds, CORES]
    done = children.run([sys.executable, *map(str, words)], 60 + 2 * settings.seconds)
    return {**json.loads(done.output.splitlines()[-1]), "cores": done.cores, "peak_mb": done.peak_mb}


def _gymnasium(num_envs: int) -> Callable[[np.ndarray], object]:
    import gymnasium

    envs = gymnasium.vector.SyncVectorEnv([partial(gymnasium.make, _ENV)] * num_envs)
    envs.reset(seed=1)
    # One step in 1001 is a reset, which counts for it.
    return envs.step


def rate(kind: str, num_envs: int, seconds: float) -> float:
    """Env steps per second of this process, actions being random and drawn before."""
    step = own_step(World(_ENV, "sync"), num_envs) if kind == "hpcrl" else _gymnasium(num_envs)
    actions = np.random.default_rng(1).uniform(-1, 1, (_DRAWN, num_envs, 6)).astype(np.float32)
    for row in actions[:20]:
        step(row)
    calls, start = 0, time.perf_counter()
    while time.perf_counter() < start + seconds:
        step(actions[calls % _DRAWN])
        calls += 1
    return calls * num_envs / (time.perf_counter() - start)


def main() -> None:
    """Step in some processes at once; print the sum of their rates."""
    kind, num_envs, seconds, processes = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    print(json.dumps({RATE: sum(on_every_core(rate, (kind, num_envs, seconds), processes))}))


if __name__ == "__main__":
    main()
