"""The environments of an actor that belong to one of several tasks."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcrl.envs.episodes import EpisodeEnvs, Finals, Rows, Step
from hpcrl.envs.restore import Restored
from hpcrl.envs.tasks import TASK_LEAF, NamedTask
from hpcrl.envs.world import World
from hpcrl.spaces import Space, Task

#: Of a state: the number of each environment's task, int64.
TASK_OF = "task"
#: Arrays of a state that the environments of every task have.
_OF_ALL = frozenset(("observation", "episode_number", "episode_return", "episode_length", "discounted_return", "rows"))
_OF_ONE = re.compile(r"task_(\d{1,9})/(.+)")


def split_key(key: str) -> tuple[int | None, str]:
    """The task whose environments alone have an array of a state (None where all have it), and its name there."""
    found = _OF_ONE.fullmatch(key)
    return (int(found[1]), found[2]) if found else (None, key)


class TaskEpisodes:
    """`EpisodeEnvs` of one of several tasks; all that is not said here is as there.

    Environments of different tasks keep different things of their running episodes, so that these arrays of a state
    have names of their own. Where observations name their task, that is added here.

    Args:
        world, task, num_envs, first_env, seed, options: of `EpisodeEnvs`; the task may be a `NamedTask`.
    """

    def __init__(self, world: World, task: Task, num_envs: int, first_env: int, seed: int, **options: Any) -> None:
        assert world.task is not None, "a run of one task needs none of this"
        self._number, self.task = world.task, task
        self._prefix = f"task_{world.task}/"
        own = task.unnamed if isinstance(task, NamedTask) else task
        self._envs = EpisodeEnvs(world, own, num_envs, first_env, seed, **options)
        self.num_envs, self.first_env, self.env_index = num_envs, first_env, self._envs.env_index
        self._names: _Names | None = None
        if isinstance(task, NamedTask):
            self._names = _Names(task, self._number, num_envs)
            self._names.put(self._envs.observation)

    @property
    def observation(self) -> NDArray:
        """[B, ...], what the next action answers to; valid until the next step."""
        return self._envs.observation if self._names is None else self._names.observation

    @property
    def lasts(self) -> Finals | None:
        """As `EpisodeEnvs.lasts`."""
        lasts = self._envs.lasts
        if lasts is None or self._names is None:
            return lasts
        return lasts._replace(observations=self._names.named(lasts.observations))

    @property
    def rows(self) -> int:
        """Steps that each environment has made."""
        return self._envs.rows

    def step(self, actions: NDArray) -> Step:
        """As `EpisodeEnvs.step`."""
        step = self._envs.step(actions)
        if self._names is None:
            return step
        self._names.put(step.observation)
        finals = self._names.named(step.final_observations)
        return step._replace(observation=self._names.observation.copy(), final_observations=finals)

    def step_into(self, actions: NDArray, into: Rows) -> Finals:
        """As `EpisodeEnvs.step_into`."""
        if self._names is None:
            return self._envs.step_into(actions, into)
        finals = self._envs.step_into(actions, into._replace(observation=self._names.unnamed))
        self._names.put(self._names.unnamed)
        into.observation[...] = self._names.observation
        return finals._replace(observations=self._names.named(finals.observations)) if len(finals.rows) else finals

    def state(self) -> dict[str, NDArray]:
        """As `EpisodeEnvs.state`; what the environments of every task have, then their task, then their own."""
        state = self._envs.state()
        shared = {key: array for key, array in state.items() if key in _OF_ALL}
        own = {self._prefix + key: array for key, array in state.items() if key not in _OF_ALL}
        return shared | {TASK_OF: np.full(self.num_envs, self._number, np.int64)} | own

    def restore(self, state: dict[str, NDArray]) -> Restored:
        """As `EpisodeEnvs.restore`."""
        mine = {key: array for key, array in state.items() if key in _OF_ALL}
        mine |= {split_key(key)[1]: array for key, array in state.items() if key.startswith(self._prefix)}
        restored = self._envs.restore(mine)
        if self._names is not None:
            self._names.put(self._envs.observation)
        return restored

    def close(self) -> None:
        """Close the environments."""
        self._envs.close()


class _Names:
    """Adds the number of their task to observations.

    Attributes:
        unnamed: [B, ...], room for observations without it.
        observation: uint8 [B, bytes], the newest with it.
    """

    def __init__(self, task: NamedTask, number: int, num_envs: int) -> None:
        self._unnamed, self._named = task.unnamed.observation, task.observation
        self._number = number
        self.unnamed: NDArray = np.zeros((num_envs, *self._unnamed.shape), self._unnamed.dtype)
        self.observation = self._room(num_envs)

    def _room(self, size: int) -> NDArray[np.uint8]:
        """Observations uint8 [size, bytes] that hold nothing but the task."""
        room = np.zeros((size, self._named.nbytes), np.uint8)
        place = next(place for place in self._named.places if place.name == TASK_LEAF)
        room[:, place.first : place.end] = np.array([self._number]).view(np.uint8)
        return room

    def put(self, observations: NDArray) -> None:
        """Make [B, ...] the newest."""
        _copy_bytes(self._unnamed, observations, self.observation)

    def named(self, observations: NDArray) -> NDArray[np.uint8]:
        """Observations [n, ...] with the task: uint8 [n, bytes]."""
        room = self._room(len(observations))
        _copy_bytes(self._unnamed, observations, room)
        return room


def _copy_bytes(space: Space, observations: NDArray, into: NDArray[np.uint8]) -> None:
    """Observations [n, ...] to the beginning of each row of `into`: leaves are packed in order, their task last."""
    stored = np.ascontiguousarray(observations, space.dtype).reshape(len(observations), space.size)
    into[:, : space.nbytes] = stored.view(np.uint8)


def make_episodes(
    world: World, task: Task, num_envs: int, first_env: int, seed: int, **options: Any
) -> EpisodeEnvs | TaskEpisodes:
    """Environments of a run's only task, or of one of its tasks; arguments are those of `EpisodeEnvs`."""
    kind = EpisodeEnvs if world.task is None else TaskEpisodes
    return kind(world, task, num_envs, first_env, seed, **options)
