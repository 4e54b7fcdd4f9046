"""Sub-environments one after the other, with less around them than Gymnasium's SyncVectorEnv."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from hpcrl.envs.codec import ActionReader, ObservationWriter, action_space, observation_space, with_action_mask
from hpcrl.spaces import Space

_NO_INFO: dict[str, Any] = {}


class SequentialEnvs(SyncVectorEnv):
    """SyncVectorEnv without autoreset and without infos, whose observations and actions are in their stored form.

    Observations are written to the same memory at every step and reset.

    Args:
        env_fns: make the sub-environments.
        mask_size: choices of an action, where the sub-environments tell in their infos which are allowed; else 0.

    Attributes:
        stored_observation, stored_action: the stored forms.
    """

    def __init__(self, env_fns: Sequence[Callable[[], gym.Env]], mask_size: int = 0) -> None:
        super().__init__(env_fns, copy=False, autoreset_mode=AutoresetMode.DISABLED)
        self.stored_observation = stored_observation(self.single_observation_space, mask_size)
        self.stored_action = action_space(self.single_action_space)
        stored = self.stored_observation
        self._memory: NDArray = np.zeros((self.num_envs, *stored.shape), stored.dtype)
        self._writer = ObservationWriter(self.single_observation_space, stored, self._memory)
        self._reader = ActionReader(self.single_action_space, self.stored_action)
        # One array beside the other: a third of the time of np.stack.
        is_joined = stored.kind == "box" and bool(stored.shape)
        self._joined = self._memory.reshape(-1, *stored.shape[1:]) if is_joined else None

    def step(self, actions: NDArray) -> tuple[NDArray, NDArray, NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Steps every sub-environment; none may be finished.

        Args:
            actions: [num_envs, ...] in their stored form.

        Returns:
            Observations [num_envs, ...], valid until the next step; rewards, float64 [num_envs]; terminated and
            truncated, bool [num_envs]; and an empty info.
        """
        steps = [env.step(action) for env, action in zip(self.envs, self._reader.rows(actions), strict=True)]
        return self._gather(steps)

    def _gather(
        self, steps: Sequence[Any]
    ) -> tuple[NDArray, NDArray, NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """What all sub-environments returned of a step, as `step` returns it."""
        observations, rewards, terminated, truncated, infos = zip(*steps, strict=True)
        if self._joined is not None:
            np.concatenate(observations, out=self._joined, casting="same_kind")
        else:
            self._write(observations, infos)
        return (
            self._memory,
            np.array(rewards, np.float64).reshape(self.num_envs),
            np.array(terminated, np.bool_),
            np.array(truncated, np.bool_),
            _NO_INFO,
        )

    def _write(self, observations: Sequence[Any], infos: Sequence[Mapping[str, Any]]) -> None:
        for row, (observation, info) in enumerate(zip(observations, infos, strict=True)):
            self._writer.write(row, observation, info)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[NDArray, dict[str, Any]]:
        """As SyncVectorEnv.reset, `reset_mask` included, with an empty info."""
        options = dict(options or {})
        mask = options.pop("reset_mask", np.ones(self.num_envs, np.bool_))
        if seed is None or isinstance(seed, int):
            seed = [seed if seed is None else seed + row for row in range(self.num_envs)]
        for row, env, row_seed, chosen in zip(range(self.num_envs), self.envs, seed, mask, strict=True):
            if chosen:
                self._writer.write(row, *env.reset(seed=row_seed, options=options or None))
        return self._memory, {}

    def first_info(self, seed: int) -> dict[str, Any]:
        """What the first sub-environment tells beside its first observation; it must be reset again after this."""
        return self.envs[0].reset(seed=seed)[1]

    def reset_rows(self, rows: NDArray[np.intp], seeds: NDArray[np.int64]) -> NDArray:
        """Starts an episode in each of `rows` [n] from `seeds` [n]; their first observations [n, ...]."""
        for row, seed in zip(rows.tolist(), seeds.tolist(), strict=True):
            self._writer.write(row, *self.envs[row].reset(seed=seed))
        return self._memory[rows]

    def replay(self, row: int, seed: int, actions: NDArray) -> NDArray | None:
        """Plays an episode in one sub-environment again.

        Args:
            row: of the sub-environment.
            seed: of the episode.
            actions: [n, ...] in their stored form.

        Returns:
            the observation [...] that it leads to; None where the episode ends on the way.
        """
        env = self.envs[row]
        self._writer.write(row, *env.reset(seed=seed))
        for action in self._reader.rows(actions):
            observation, _, terminated, truncated, info = env.step(action)
            if terminated or truncated:
                return None
            self._writer.write(row, observation, info)
        return self._memory[row]


def stored_observation(space: gym.Space, mask_size: int) -> Space:
    """How observations are stored, with a mask of so many choices where that comes in the infos (else 0)."""
    stored = observation_space(space)
    return with_action_mask(stored, mask_size) if mask_size else stored
