"""A task that asks for memory: a cue is shown once, and asked for many steps later."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from hpcrl.errors import ConfigError, EnvironmentFailure


class MemoryCue(gymnasium.Env[NDArray[np.float32], np.int64]):
    """See one of `num_cues` cues, see nothing for `num_blanks` steps, then name the cue.

    Observation: float32 [num_cues + 1], the cue one-hot in the first step, zeros in the blank steps, and in the last
    number 1 in the step that asks for the answer, where all else is 0. So without memory an answer is right with
    probability 1 / num_cues, whatever the policy. Actions: the cues' numbers; they have no effect before the answer.
    The reward is 1 for the right answer and 0 otherwise. An episode terminates with the answer, after
    num_blanks + 2 steps. `reset` draws the cue uniformly.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium declares it so)

    def __init__(self, num_cues: int = 4, num_blanks: int = 16, render_mode: str | None = None) -> None:
        """Builds the task.

        Args:
            num_cues: at least 2.
            num_blanks: steps between the cue and the answer, 0 or more.
            render_mode: None; nothing can be rendered.

        Raises:
            ConfigError: an argument is out of range.
        """
        if render_mode is not None:
            raise ConfigError(f"MemoryCue expected render_mode None, got {render_mode!r}.")
        self.num_cues = _checked_number("num_cues", num_cues, 2)
        self.num_blanks = _checked_number("num_blanks", num_blanks, 0)
        self.episode_length = self.num_blanks + 2
        self.action_space = spaces.Discrete(self.num_cues)
        self.observation_space = spaces.Box(0.0, 1.0, (self.num_cues + 1,), np.float32)
        table = np.eye(self.num_cues + 2, self.num_cues + 1, dtype=np.float32)
        self._cues, self._question, self._blank = table[: self.num_cues], table[self.num_cues], table[-1]
        self._cue: int | None = None
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Starts an episode; returns the cue, float32 [num_cues + 1], and an empty info."""
        super().reset(seed=seed, options=options)
        self._cue = int(self.np_random.integers(self.num_cues))
        self._steps = 0
        return self._cues[self._cue].copy(), {}

    def step(self, action: np.int64 | int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Makes one step.

        Args:
            action: the number of a cue.

        Returns:
            The observation, float32 [num_cues + 1], zeros after the answer; the reward, terminated, False (there is
            no truncation) and an empty info.

        Raises:
            EnvironmentFailure: there is no episode under way, or the action is no cue's number.
        """
        if self._cue is None or self._steps >= self.episode_length:
            got = "one that was never reset" if self._cue is None else "a finished one"
            raise EnvironmentFailure(f"MemoryCue.step expected an episode under way, got {got}.")
        if not self.action_space.contains(action):
            raise EnvironmentFailure(f"MemoryCue.step expected an action of 0 to {self.num_cues - 1}, got {action!r}.")
        self._steps += 1
        if self._steps <= self.num_blanks:
            return self._blank.copy(), 0.0, False, False, {}
        if self._steps < self.episode_length:
            return self._question.copy(), 0.0, False, False, {}
        return self._blank.copy(), float(action == self._cue), True, False, {}

    def get_state(self) -> dict[str, NDArray[np.int64]]:
        """Returns what an episode needs to go on: `cue`, int64 [], and `steps`, int64 [].

        The generator of `reset` isn't part of it: reset with a seed to make the next episode reproducible.

        Raises:
            EnvironmentFailure: the environment was never reset.
        """
        if self._cue is None:
            raise EnvironmentFailure("MemoryCue.get_state expected an environment that was reset, got none.")
        return {"cue": np.array(self._cue, np.int64), "steps": np.array(self._steps, np.int64)}

    def set_state(self, state: Mapping[str, NDArray[np.int64]]) -> None:
        """Goes on from a `get_state` of an environment with the same arguments.

        Args:
            state: `cue`, int64 [], and `steps`, int64 [].

        Raises:
            EnvironmentFailure: the state has other keys, shapes or dtypes, or can't occur in this environment.
        """
        if set(state) != {"cue", "steps"}:
            raise EnvironmentFailure(f"MemoryCue.set_state expected the keys cue and steps, got {sorted(state)}.")
        cue = _checked_entry("cue", state["cue"], self.num_cues - 1)
        steps = _checked_entry("steps", state["steps"], self.episode_length)
        self._cue, self._steps = cue, steps


def _checked_number(name: str, value: int, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise ConfigError(f"MemoryCue expected an integer {name} of at least {least}, got {value!r}.") from None
    if number < least:
        raise ConfigError(f"MemoryCue expected {name} of at least {least}, got {number}.")
    return number


def _checked_entry(name: str, value: NDArray[np.int64], most: int) -> int:
    """The number in an entry of a state, int64 []."""
    array = np.asarray(value)
    if array.shape != () or array.dtype != np.int64:
        raise EnvironmentFailure(
            f"MemoryCue.set_state expected {name} as int64 [], got {array.dtype} {list(array.shape)}."
        )
    if not 0 <= int(array) <= most:
        raise EnvironmentFailure(f"MemoryCue.set_state expected {name} of 0 to {most}, got {int(array)}.")
    return int(array)
