"""How environments are put back into the middle of an episode: by their own state, by replay, or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from hpcrl.envs.sequential import SequentialEnvs
from hpcrl.errors import CheckpointError

#: Wrappers without state of their own, beyond the time limit that is restored apart.
_TRANSPARENT = (gym.wrappers.TimeLimit, gym.wrappers.OrderEnforcing, gym.wrappers.PassiveEnvChecker)


@dataclass(frozen=True)
class Restored:
    """Environments restored by their own state, by replaying the episode, or begun anew."""

    by_state: int = 0
    by_replay: int = 0
    begun_anew: int = 0

    def __add__(self, other: Restored) -> Restored:
        return Restored(
            self.by_state + other.by_state, self.by_replay + other.by_replay, self.begun_anew + other.begun_anew
        )


class Snapshots(Protocol):
    """Saves and restores the running episodes of a vector environment."""

    def reset_seed(self, episode_seeds: NDArray[np.int64]) -> Any:
        """What to give to `envs.reset` for these seeds, int64 [B]."""

    def record(self, actions: NDArray) -> None:
        """Note the actions [B, ...] of the next step."""

    def forget(self, rows: NDArray[np.intp]) -> None:
        """The episodes in `rows` are over."""

    def state(self) -> dict[str, NDArray]:
        """Arrays that `restore` needs, environment first."""

    def restore(
        self, state: dict[str, NDArray], episode_seeds: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], Restored]:
        """Go back to `state`; which environments [B] stand there now."""

    def begin(self, rows: NDArray[np.intp], episode_seeds: NDArray[np.int64]) -> NDArray:
        """Begin new episodes in `rows`; their first observations [n, ...]."""


def make_snapshots(envs: VectorEnv) -> Snapshots:
    """The most exact way that `envs` offers."""
    if hasattr(envs, "get_state") and hasattr(envs, "set_state"):
        return _VectorStateSnapshots(envs)
    if not isinstance(envs, SequentialEnvs):
        return _NoSnapshots(envs)
    return _StateSnapshots(envs) if all(map(_has_state, envs.envs)) else _ReplaySnapshots(envs)


class _NoSnapshots:
    """A vector environment with one generator for all: every episode begins anew."""

    def __init__(self, envs: VectorEnv) -> None:
        self._envs = envs

    def reset_seed(self, episode_seeds: NDArray[np.int64]) -> Any:
        return int(episode_seeds[0])

    def record(self, actions: NDArray) -> None:
        pass

    def forget(self, rows: NDArray[np.intp]) -> None:
        pass

    def state(self) -> dict[str, NDArray]:
        return {}

    def restore(
        self, state: dict[str, NDArray], episode_seeds: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], Restored]:
        return np.zeros(len(episode_seeds), np.bool_), Restored(begun_anew=len(episode_seeds))

    def begin(self, rows: NDArray[np.intp], episode_seeds: NDArray[np.int64]) -> NDArray:
        observation, _ = self._envs.reset(seed=self.reset_seed(episode_seeds))
        return observation[rows]


class _SeededSnapshots:
    """Common to the vector environments that take a seed for each sub-environment."""

    def reset_seed(self, episode_seeds: NDArray[np.int64]) -> Any:
        return [int(seed) for seed in episode_seeds]

    def record(self, actions: NDArray) -> None:
        pass

    def forget(self, rows: NDArray[np.intp]) -> None:
        pass


class _VectorStateSnapshots(_SeededSnapshots):
    """The vector environment has `get_state` and `set_state` itself, arrays of environment first."""

    def __init__(self, envs: Any) -> None:
        self._envs = envs

    def state(self) -> dict[str, NDArray]:
        return {f"state_{key}": value for key, value in self._envs.get_state().items()}

    def restore(
        self, state: dict[str, NDArray], episode_seeds: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], Restored]:
        self._envs.set_state(_own_state(state))
        return np.ones(len(episode_seeds), np.bool_), Restored(by_state=len(episode_seeds))

    def begin(self, rows: NDArray[np.intp], episode_seeds: NDArray[np.int64]) -> NDArray:
        raise AssertionError("a restored environment needs no new episode")


class _StateSnapshots(_SeededSnapshots):
    """Every sub-environment has `get_state` and `set_state`; the time limit around it is ours to restore."""

    def __init__(self, envs: SequentialEnvs) -> None:
        self._envs = envs

    def state(self) -> dict[str, NDArray]:
        states = [env.unwrapped.get_state() for env in self._envs.envs]  # type: ignore[attr-defined]
        limits = [_time_limit(env) for env in self._envs.envs]
        elapsed = [limit._elapsed_steps or 0 if limit else 0 for limit in limits]
        stacked = {f"state_{key}": np.stack([state[key] for state in states]) for key in states[0]}
        return stacked | {"elapsed_steps": np.array(elapsed, np.int64)}

    def restore(
        self, state: dict[str, NDArray], episode_seeds: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], Restored]:
        own = _own_state(state)
        for row, env in enumerate(self._envs.envs):
            env.unwrapped.set_state({key: value[row] for key, value in own.items()})  # type: ignore[attr-defined]
            if limit := _time_limit(env):
                limit._elapsed_steps = int(state["elapsed_steps"][row])
        return np.ones(len(episode_seeds), np.bool_), Restored(by_state=len(episode_seeds))

    def begin(self, rows: NDArray[np.intp], episode_seeds: NDArray[np.int64]) -> NDArray:
        raise AssertionError("a restored environment needs no new episode")


class _ReplaySnapshots(_SeededSnapshots):
    """Replays the running episodes from their seeds, if environments are deterministic given seed and actions."""

    def __init__(self, envs: SequentialEnvs) -> None:
        self._envs = envs
        self._log: list[NDArray] = []  # actions [B, ...] of each step since the oldest running episode began
        self._start = np.zeros(envs.num_envs, np.int64)  # where in the log each running episode begins
        self._trim_at = 0

    def record(self, actions: NDArray) -> None:
        self._log.append(np.array(actions))

    def forget(self, rows: NDArray[np.intp]) -> None:
        self._start[rows] = len(self._log)
        if len(self._log) >= self._trim_at:
            self._trim()

    def _trim(self) -> None:
        oldest = int(self._start.min())
        del self._log[:oldest]
        self._start -= oldest
        # Trimming moves the whole list, so it waits until about half of it may be waste.
        self._trim_at = 2 * len(self._log) + 512

    def state(self) -> dict[str, NDArray]:
        counts = len(self._log) - self._start
        episodes = [step[row] for row, start in enumerate(self._start) for step in self._log[start:]]
        stored = self._envs.stored_action
        actions = np.array(episodes, stored.dtype).reshape(-1, *stored.shape)
        return {"replay_counts": counts, "replay_actions": actions}

    def restore(
        self, state: dict[str, NDArray], episode_seeds: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], Restored]:
        counts, actions = state["replay_counts"], state["replay_actions"]
        if counts.sum() != len(actions) or (counts < 0).any():
            raise CheckpointError(f"the checkpoint names {counts.sum()} actions to replay but holds {len(actions)}")
        episodes = np.split(actions, np.cumsum(counts)[:-1])
        rows = zip(episode_seeds, episodes, state["observation"], strict=True)
        reached = np.array([self._replay(row, *episode) for row, episode in enumerate(rows)])
        self._remember(episodes)
        return reached, Restored(by_replay=int(reached.sum()), begun_anew=int((~reached).sum()))

    def _replay(self, row: int, seed: np.int64, actions: NDArray, stored: NDArray) -> bool:
        """Play `actions` from the episode's seed on; whether that leads to the `stored` observation."""
        observation = self._envs.replay(row, int(seed), actions)
        if observation is None:
            return False
        return np.array_equal(observation, stored, equal_nan=stored.dtype.kind == "f")

    def _remember(self, episodes: list[NDArray]) -> None:
        longest = max(len(episode) for episode in episodes)
        log = np.zeros((longest, len(episodes), *episodes[0].shape[1:]), episodes[0].dtype)
        for row, episode in enumerate(episodes):
            log[longest - len(episode) :, row] = episode
        self._log = list(log)
        self._start = np.array([longest - len(episode) for episode in episodes], np.int64)

    def begin(self, rows: NDArray[np.intp], episode_seeds: NDArray[np.int64]) -> NDArray:
        return self._envs.reset_rows(rows, episode_seeds)


def _has_state(env: gym.Env) -> bool:
    while isinstance(env, gym.Wrapper):
        if not isinstance(env, _TRANSPARENT):
            return False
        env = env.env
    return hasattr(env, "get_state") and hasattr(env, "set_state")


def _time_limit(env: gym.Env) -> Any:
    while isinstance(env, gym.Wrapper):
        if isinstance(env, gym.wrappers.TimeLimit):
            return env
        env = env.env
    return None


def _own_state(state: dict[str, NDArray]) -> dict[str, NDArray]:
    return {key.removeprefix("state_"): value for key, value in state.items() if key.startswith("state_")}
