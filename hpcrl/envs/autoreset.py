"""One internal layout for every autoreset mode of Gymnasium's vector environments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from hpcrl.errors import ConfigError, EnvironmentFailure


class Transition(NamedTuple):
    """One step of B environments.

    Attributes:
        observation: [B, ...], what the next action answers to; already of the next episode where one ended and
            the mode resets at once.
        reward: [B].
        terminated, truncated: bool [B].
        valid: bool [B], false where the environment ignored the action to reset itself.
        final_observations: [n, ...], last observations of the episodes of `final_rows`.
        final_rows: int [n], environments whose episode was truncated in this step, ascending.
    """

    observation: NDArray
    reward: NDArray
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    final_observations: NDArray
    final_rows: NDArray[np.intp]


#: Gives the seeds, int64 [n], of the next episodes of the environments in rows [n].
NextSeeds = Callable[[NDArray[np.intp]], NDArray[np.int64]]


class Stepper(Protocol):
    """Steps a vector environment and begins new episodes in it."""

    def step(self, actions: NDArray) -> Transition: ...


class _DisabledStepper:
    """Resets each environment itself, with a seed for every episode."""

    def __init__(self, envs: VectorEnv, next_seeds: NextSeeds) -> None:
        self._envs, self._next_seeds = envs, next_seeds
        self._all_valid = np.ones(envs.num_envs, np.bool_)

    def step(self, actions: NDArray) -> Transition:
        observation, reward, terminated, truncated, _ = self._envs.step(actions)
        ended = terminated | truncated
        rows = np.flatnonzero(ended)
        if not rows.size:
            return Transition(observation, reward, terminated, truncated, self._all_valid, observation[rows], rows)
        final_rows = np.flatnonzero(truncated & ~terminated)
        finals = observation[final_rows]
        # The reset clears the environment's own arrays, which these may be.
        terminated, truncated = terminated.copy(), truncated.copy()
        seeds = np.zeros(self._envs.num_envs, np.int64)
        seeds[rows] = self._next_seeds(rows)
        per_env: Any = seeds.tolist()  # a list where the base class promises an int only
        observation, _ = self._envs.reset(seed=per_env, options={"reset_mask": ended})
        return Transition(observation, reward, terminated, truncated, self._all_valid, finals, final_rows)


class _NextStepStepper:
    """The step after an end ignores its action and returns the first observation of the next episode."""

    def __init__(self, envs: VectorEnv, next_seeds: NextSeeds) -> None:
        self._envs, self._next_seeds = envs, next_seeds
        self._ended = np.zeros(envs.num_envs, np.bool_)

    def step(self, actions: NDArray) -> Transition:
        observation, reward, terminated, truncated, _ = self._envs.step(actions)
        valid = ~self._ended
        # What an environment reports for the row that it ignored is no end of an episode.
        terminated, truncated = terminated & valid, truncated & valid
        self._ended = terminated | truncated
        if self._ended.any():
            self._next_seeds(np.flatnonzero(self._ended))
        final_rows = np.flatnonzero(truncated & ~terminated)
        return Transition(observation, reward, terminated, truncated, valid, observation[final_rows], final_rows)


class _SameStepStepper:
    """The step that ends an episode returns the first observation of the next; the last one is in the info."""

    def __init__(self, envs: VectorEnv, next_seeds: NextSeeds) -> None:
        self._envs, self._next_seeds = envs, next_seeds
        self._all_valid = np.ones(envs.num_envs, np.bool_)

    def step(self, actions: NDArray) -> Transition:
        observation, reward, terminated, truncated, info = self._envs.step(actions)
        ended = terminated | truncated
        final_rows = np.flatnonzero(truncated & ~terminated)
        if ended.any():
            self._next_seeds(np.flatnonzero(ended))
        if final_rows.size and "final_obs" not in info:
            raise EnvironmentFailure("an environment in SAME_STEP mode must give info['final_obs'] at a truncation")
        finals = [info["final_obs"][row] for row in final_rows]
        final_observations = np.stack(finals) if finals else observation[final_rows]
        return Transition(observation, reward, terminated, truncated, self._all_valid, final_observations, final_rows)


_STEPPERS: dict[AutoresetMode, Callable[[VectorEnv, NextSeeds], Stepper]] = {
    AutoresetMode.DISABLED: _DisabledStepper,
    AutoresetMode.NEXT_STEP: _NextStepStepper,
    AutoresetMode.SAME_STEP: _SameStepStepper,
}


def make_stepper(envs: VectorEnv, next_seeds: NextSeeds) -> Stepper:
    """The stepper for the autoreset mode that the environment's metadata names; ConfigError for one unknown."""
    mode = envs.metadata.get("autoreset_mode")
    try:
        return _STEPPERS[AutoresetMode(mode)](envs, next_seeds)
    except ValueError:
        known = ", ".join(known.value for known in AutoresetMode)
        name = type(envs).__name__
        raise ConfigError(f"{name} must name its autoreset mode, one of {known}, got {mode!r}") from None
