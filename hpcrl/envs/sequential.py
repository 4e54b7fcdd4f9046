"""Sub-environments one after the other, with less around them than Gymnasium's SyncVectorEnv."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray


class SequentialEnvs(SyncVectorEnv):
    """SyncVectorEnv without autoreset and without infos, for Box and Discrete observations.

    Observations are written to the same memory at every step and reset.
    """

    def __init__(self, env_fns: Sequence[Callable[[], gym.Env]]) -> None:
        super().__init__(env_fns, copy=False, autoreset_mode=AutoresetMode.DISABLED)
        shape: tuple[int, ...] = self.single_observation_space.shape or ()
        self._memory: NDArray = np.zeros((self.num_envs, *shape), self.single_observation_space.dtype)
        # One array beside the other: a third of the time of np.stack.
        self._joined = self._memory.reshape(-1, *shape[1:]) if shape else None

    def step(self, actions: NDArray) -> tuple[NDArray, NDArray, NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Steps every sub-environment; none may be finished.

        Args:
            actions: [num_envs, ...].

        Returns:
            Observations [num_envs, ...], valid until the next step; rewards, float64 [num_envs]; terminated and
            truncated, bool [num_envs]; and an empty info.
        """
        steps = [env.step(action) for env, action in zip(self.envs, actions, strict=True)]
        observations, rewards, terminated, truncated, _ = zip(*steps, strict=True)
        if self._joined is None:
            self._memory[:] = observations
        else:
            np.concatenate(observations, out=self._joined)
        return (
            self._memory,
            np.array(rewards, np.float64).reshape(self.num_envs),
            np.array(terminated, np.bool_),
            np.array(truncated, np.bool_),
            {},
        )

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[NDArray, dict[str, Any]]:
        """As SyncVectorEnv.reset, `reset_mask` included, with an empty info."""
        options = dict(options or {})
        mask = options.pop("reset_mask", np.ones(self.num_envs, np.bool_))
        if seed is None or isinstance(seed, int):
            seed = [seed if seed is None else seed + row for row in range(self.num_envs)]
        for row, env, row_seed, chosen in zip(range(self.num_envs), self.envs, seed, mask, strict=True):
            if chosen:
                self._memory[row], _ = env.reset(seed=row_seed, options=options or None)
        return self._memory, {}

    def reset_rows(self, rows: NDArray[np.intp], seeds: NDArray[np.int64]) -> NDArray:
        """Starts an episode in each of `rows` [n] from `seeds` [n]; their first observations [n, ...]."""
        for row, seed in zip(rows.tolist(), seeds.tolist(), strict=True):
            self._memory[row], _ = self.envs[row].reset(seed=seed)
        return self._memory[rows]
