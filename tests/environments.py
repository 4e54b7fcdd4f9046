"""Environments with a flaw, for tests; Gymnasium finds them as `tests.environments:NAME`."""

from __future__ import annotations

import random
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
