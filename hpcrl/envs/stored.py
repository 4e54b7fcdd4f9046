"""A vector environment of others, seen through the stored forms of its observations and actions."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from hpcrl.envs.codec import ActionReader, ObservationWriter, action_space
from hpcrl.envs.sequential import stored_observation
from hpcrl.spaces import ACTION_MASK, Space

_FINAL = "final_obs"


class StoredForm:
    """Steps a vector environment with stored actions, and stores what it observes; the rest is the environment's own.

    Args:
        envs: a vector environment in any autoreset mode.
        mask_size: choices of an action, where its infos tell which are allowed; else 0.

    Attributes:
        stored_observation, stored_action: the stored forms.
    """

    def __init__(self, envs: VectorEnv, mask_size: int = 0) -> None:
        self._envs, self._is_masked = envs, mask_size > 0
        self.num_envs, self.metadata = envs.num_envs, envs.metadata
        self.single_observation_space = envs.single_observation_space
        self.single_action_space = envs.single_action_space
        self.stored_observation: Space = stored_observation(envs.single_observation_space, mask_size)
        self.stored_action = action_space(envs.single_action_space)
        stored = self.stored_observation
        self._memory: NDArray = np.zeros((self.num_envs, *stored.shape), stored.dtype)
        self._writer = ObservationWriter(envs.single_observation_space, stored, self._memory)
        self._reader = ActionReader(envs.single_action_space, self.stored_action)

    def step(self, actions: NDArray) -> tuple[NDArray, NDArray, NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """As VectorEnv.step; observations are valid until the next step or reset."""
        observations, rewards, terminated, truncated, info = self._envs.step(self._reader.batch(actions))
        self._writer.write_batch(observations, info)
        if _FINAL in info:
            info = info | {_FINAL: self._stored_finals(info)}
        return self._memory, rewards, terminated, truncated, info

    def _stored_finals(self, info: dict[str, Any]) -> list[NDArray | None]:
        """What the info holds of last observations, row by row."""
        stored: list[NDArray | None] = [None] * self.num_envs
        memory = np.zeros_like(self._memory)
        space = self._envs.single_observation_space
        writer = ObservationWriter(space, self.stored_observation, memory)
        for row in np.flatnonzero(info[f"_{_FINAL}"]).tolist():
            own = {ACTION_MASK: info["final_info"][ACTION_MASK][row]} if self._is_masked else {}
            writer.write(row, info[_FINAL][row], own)
            stored[row] = memory[row]
        return stored

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[NDArray, dict[str, Any]]:
        """As VectorEnv.reset."""
        observations, info = self._envs.reset(seed=seed, options=options)
        self._writer.write_batch(observations, info)
        return self._memory, info

    def first_info(self, seed: int) -> dict[str, Any]:
        """As SequentialEnvs.first_info, but for an action mask alone: other things may have any form in these infos."""
        info = self._envs.reset(seed=seed)[1]
        return {ACTION_MASK: info[ACTION_MASK][0]} if ACTION_MASK in info else {}

    def close(self) -> None:
        """Close the environment."""
        self._envs.close()
