"""Environments with a flaw, for tests; Gymnasium finds them as `tests.environments:NAME`."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleEnv, CartPoleVectorEnv


class Restless(gym.Env[np.ndarray, int]):
    """Draws from outside its own generator, so that no replay leads back to where it was."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        return self._observe(), 1.0, False, False, {}

    def _observe(self) -> np.ndarray:
        return np.array([random.random(), random.random()], np.float32)


class Exploding(Restless):
    """Pays what no loss survives."""

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        return self._observe(), float("nan"), False, False, {}


class Sleeping(Restless):
    """Never comes back from a step."""

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        time.sleep(10_000)
        raise AssertionError("unreachable")


gym.register("NextStep-v0", entry_point=CartPoleEnv, vector_entry_point=CartPoleVectorEnv)
gym.register("Sleeping-v0", entry_point=Sleeping)
gym.register("Restless-v0", entry_point=Restless, max_episode_steps=50)
gym.register("Exploding-v0", entry_point=Exploding, max_episode_steps=50)


class Breaking(gym.Env[np.ndarray, Any]):
    """Breaks in the episodes of seeds that end in 7; else counts its steps, and ends after ten.

    Observations are the seed and the number of steps, float32 [2].

    Args:
        where: "step" (the third one), "reset", or "close".
        how: "raise", "sleep", "stubborn" (sleeps, and catches every Exception), "crash", "exit", or "fork" (and exit).
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, where: str = "step", how: str = "raise") -> None:
        self._where, self._how = where, how
        self._seed, self._steps = 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        self._seed, self._steps = seed or 0, 0
        self._break_if(self._where == "reset")
        return self._observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._steps += 1
        self._break_if(self._where == "step" and self._steps == 3)
        return self._observe(), float(action), self._steps == 10, False, {}

    def close(self) -> None:
        self._break_if(self._where == "close")

    def _observe(self) -> np.ndarray:
        return np.array([self._seed, self._steps], np.float32)

    def _break_if(self, due: bool) -> None:
        if not due or self._seed % 10 != 7:
            return
        if self._how == "raise":
            raise KeyError("at home")
        if self._how == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self._how == "exit" or (self._how == "fork" and os.fork()):
            os._exit(3)
        while True:
            try:
                time.sleep(10_000)
            except Exception:
                if self._how != "stubborn":
                    raise


class Surroundings(gym.Env[str, str]):
    """Observes the process that it is in, as JSON, and then the actions that it gets; says hello on stderr."""

    observation_space = gym.spaces.Text(10_000_000)
    action_space = gym.spaces.Text(10_000_000)

    def __init__(self) -> None:
        print("hello from", os.getpid(), file=sys.stderr, flush=True)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict]:
        return json.dumps({"variables": dict(os.environ), "modules": sorted(sys.modules), "options": options}), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict]:
        return action, 0.0, False, False, {"action_mask": action[:3], "unasked": lambda: None}


class Slow(Restless):
    """Takes a tenth of a second for a step, and no CPU time."""

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        time.sleep(0.1)
        return super().step(action)
