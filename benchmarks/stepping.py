"""Environments alone: `python -m benchmarks.stepping KIND NUM_ENVS SECONDS PROCESSES`, one JSON line.

KIND is `hpcrl` (its own sequential environments, reset from a seed for every episode), `native` (its CartPole in numpy,
the same way) or `gymnasium` (SyncVectorEnv with its own autoreset). Actions are random and drawn before.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np
from gymnasium.vector import SyncVectorEnv

from benchmarks.processes import on_every_core
from hpcrl.envs.factory import make_vector_env
from hpcrl.envs.world import World

_ENV = "CartPole-v1"
_DRAWN = 256


def own_step(world: World, num_envs: int) -> Callable[[np.ndarray], int]:
    """Steps hpcrl's own environments with given actions, each episode from a seed of its own; env steps of a call."""
    envs = make_vector_env(world, num_envs)
    seeds = np.arange(num_envs)
    envs.reset(seed=seeds.tolist())

    def step(actions: np.ndarray) -> int:
        _, _, terminated, truncated, _ = envs.step(actions)
        ended = (terminated | truncated).nonzero()[0]
        if len(ended):
            seeds[ended] += num_envs
            envs.reset_rows(ended, seeds[ended])
        return num_envs

    return step


def _gymnasium(num_envs: int) -> Callable[[np.ndarray], int]:
    import gymnasium

    envs = SyncVectorEnv([lambda: gymnasium.make(_ENV)] * num_envs)
    envs.reset(seed=1)
    ended = np.zeros(num_envs, np.bool_)

    def step(actions: np.ndarray) -> int:
        nonlocal ended
        # The step after an episode's end is its reset.
        num_resets = np.count_nonzero(ended)
        _, _, terminated, truncated, _ = envs.step(actions)
        ended = terminated | truncated
        return num_envs - num_resets

    return step


def rate(kind: str, num_envs: int, seconds: float) -> float:
    """Env steps per second of this process."""
    vector = {"hpcrl": "sync", "native": "native"}.get(kind)
    step = _gymnasium(num_envs) if vector is None else own_step(World(_ENV, vector), num_envs)
    actions = np.random.default_rng(1).integers(0, 2, (_DRAWN, num_envs))
    for row in actions[:20]:
        step(row)
    steps, calls, start = 0, 0, time.perf_counter()
    while time.perf_counter() < start + seconds:
        steps += step(actions[calls % _DRAWN])
        calls += 1
    return steps / (time.perf_counter() - start)


def main() -> None:
    """Step in some processes at once; print the sum of their rates."""
    kind, num_envs, seconds, processes = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    rates = on_every_core(rate, (kind, num_envs, seconds), processes)
    print(json.dumps({"env_steps_per_s": sum(rates)}))


if __name__ == "__main__":
    main()
