"""An environment whose steps sleep, so that many ranks share few cores: `tests.sleeping:Nap-v0` for Gymnasium."""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import numpy as np

STEP_S = 2e-3


class Nap(gym.Env[np.ndarray, int]):
    """Every step sleeps; episodes have 100 steps."""

    observation_space = gym.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.zeros(4, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        time.sleep(STEP_S)
        return np.zeros(4, np.float32), 1.0, False, False, {}


gym.register("Nap-v0", entry_point=Nap, max_episode_steps=100)
