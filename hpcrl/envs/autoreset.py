"""One internal layout for every autoreset mode of Gymnasium's vector environments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from hpcrl.errors import ConfigError, EnvironmentFailure

#: What a vector environment without autoreset may tell in its info, bool [B] each.
LIFE_LOST, BROKEN = "life_lost", "broken"


class Transition(NamedTuple):
    """One step of B environments.

    Attributes:
        observation: [B, ...], what the next action answers to; already of the next episode where one ended and
            the mode resets at once. Valid until the next step.
        reward: [B].
        terminated, truncated: bool [B].
        valid: bool [B], false where the environment ignored the action to reset itself, or broke; None where none did.
        ended_rows: int [n], environments whose episode ended in this step, ascending; not where only a life was lost.
        begun_rows: int [n], environments whose next step belongs to another episode: those, and the ones that
            broke.
        final_observations: [m, ...], last observations of the episodes of `final_rows`.
        final_rows: int [m], environments whose episode was truncated and not terminated, ascending.
        last_observations: [n, ...], last observations of the episodes of `ended_rows`; None unless they are kept.
    """

    observation: NDArray
    reward: NDArray
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    valid: NDArray[np.bool_] | None
    ended_rows: NDArray[np.intp]
    begun_rows: NDArray[np.intp]
    final_observations: NDArray
    final_rows: NDArray[np.intp]
    last_observations: NDArray | None = None


#: Gives the seeds, int64 [n], of the next episodes of the environments in rows [n].
NextSeeds = Callable[[NDArray[np.intp]], NDArray[np.int64]]


class Stepper(Protocol):
    """Steps a vector environment and begins new episodes in it."""

    def step(self, actions: NDArray) -> Transition: ...


class _DisabledStepper:
    """Resets each environment itself, with a seed for every episode.

    An info may hold `life_lost`, bool [B]: the episode terminates for who learns, and goes on; and `broken`, bool [B]:
    the environment did not make the step, and waits for a reset.
    """

    def __init__(self, envs: Any, next_seeds: NextSeeds, keep_lasts: bool) -> None:
        self._envs, self._next_seeds, self._keep_lasts = envs, next_seeds, keep_lasts
        self._begin = self._begin_rows if hasattr(envs, "reset_rows") else self._begin_by_mask

    def step(self, actions: NDArray) -> Transition:
        observation, reward, terminated, truncated, info = self._envs.step(actions)
        over, broken = terminated | truncated, info.get(BROKEN)
        if LIFE_LOST in info:
            over &= ~info[LIFE_LOST]
        ended = over.nonzero()[0]
        begun = ended if broken is None else (over | broken).nonzero()[0]
        valid = None if broken is None else ~broken
        if not len(begun):
            none = observation[:0]
            lasts = none if self._keep_lasts else None
            return Transition(observation, reward, terminated, truncated, valid, ended, begun, none, begun, lasts)
        final_rows = _only_truncated(terminated, truncated)
        finals = observation[final_rows]
        lasts = observation[ended] if self._keep_lasts else None
        # A reset by mask clears the environment's own arrays, which these may be.
        terminated, truncated = terminated.copy(), truncated.copy()
        observation = self._begin(observation, begun, self._next_seeds(begun))
        return Transition(observation, reward, terminated, truncated, valid, ended, begun, finals, final_rows, lasts)

    def _begin_rows(self, observation: NDArray, rows: NDArray[np.intp], seeds: NDArray[np.int64]) -> NDArray:
        """Only the environments that begin an episode are touched; only our own offer it."""
        observation[rows] = self._envs.reset_rows(rows, seeds)
        return observation

    def _begin_by_mask(self, _: NDArray, rows: NDArray[np.intp], seeds: NDArray[np.int64]) -> NDArray:
        mask, all_seeds = np.zeros(self._envs.num_envs, np.bool_), np.zeros(self._envs.num_envs, np.int64)
        mask[rows], all_seeds[rows] = True, seeds
        return self._envs.reset(seed=all_seeds.tolist(), options={"reset_mask": mask})[0]


class _NextStepStepper:
    """The step after an end ignores its action and returns the first observation of the next episode."""

    def __init__(self, envs: Any, next_seeds: NextSeeds, keep_lasts: bool) -> None:
        self._envs, self._next_seeds, self._keep_lasts = envs, next_seeds, keep_lasts
        self._ended = np.zeros(envs.num_envs, np.bool_)

    def step(self, actions: NDArray) -> Transition:
        observation, reward, terminated, truncated, _ = self._envs.step(actions)
        valid = ~self._ended
        # What an environment reports for the row that it ignored is no end of an episode.
        terminated, truncated = terminated & valid, truncated & valid
        self._ended = terminated | truncated
        rows = self._ended.nonzero()[0]
        if len(rows):
            self._next_seeds(rows)
        final_rows = _only_truncated(terminated, truncated)
        finals = observation[final_rows]
        lasts = observation[rows] if self._keep_lasts else None
        return Transition(observation, reward, terminated, truncated, valid, rows, rows, finals, final_rows, lasts)


class _SameStepStepper:
    """The step that ends an episode returns the first observation of the next; the last one is in the info."""

    def __init__(self, envs: Any, next_seeds: NextSeeds, keep_lasts: bool) -> None:
        self._envs, self._next_seeds, self._keep_lasts = envs, next_seeds, keep_lasts

    def step(self, actions: NDArray) -> Transition:
        observation, reward, terminated, truncated, info = self._envs.step(actions)
        rows = (terminated | truncated).nonzero()[0]
        final_rows = _only_truncated(terminated, truncated)
        if len(rows):
            self._next_seeds(rows)
        if (final_rows.size or (rows.size and self._keep_lasts)) and "final_obs" not in info:
            raise EnvironmentFailure("an environment in SAME_STEP mode must give info['final_obs'] at a truncation")
        finals = _pick(info, final_rows, observation)
        lasts = _pick(info, rows, observation) if self._keep_lasts else None
        return Transition(observation, reward, terminated, truncated, None, rows, rows, finals, final_rows, lasts)


def _pick(info: dict[str, Any], rows: NDArray[np.intp], observation: NDArray) -> NDArray:
    """The final observations of `rows`, as a SAME_STEP environment tells them."""
    return np.stack([info["final_obs"][row] for row in rows]) if len(rows) else observation[:0]


def _only_truncated(terminated: NDArray[np.bool_], truncated: NDArray[np.bool_]) -> NDArray[np.intp]:
    return (truncated > terminated).nonzero()[0]


_STEPPERS: dict[AutoresetMode, Callable[[Any, NextSeeds, bool], Stepper]] = {
    AutoresetMode.DISABLED: _DisabledStepper,
    AutoresetMode.NEXT_STEP: _NextStepStepper,
    AutoresetMode.SAME_STEP: _SameStepStepper,
}


def make_stepper(envs: Any, next_seeds: NextSeeds, keep_lasts: bool = False) -> Stepper:
    """The stepper for the autoreset mode that the environment's metadata names; ConfigError for one unknown.

    Args:
        envs: a vector environment.
        next_seeds: begins episodes.
        keep_lasts: whether transitions tell the last observations of all episodes.
    """
    mode = envs.metadata.get("autoreset_mode")
    try:
        return _STEPPERS[AutoresetMode(mode)](envs, next_seeds, keep_lasts)
    except ValueError:
        known = ", ".join(known.value for known in AutoresetMode)
        name = type(envs).__name__
        raise ConfigError(f"{name} must name its autoreset mode, one of {known}, got {mode!r}") from None
