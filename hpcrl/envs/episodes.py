"""The environments of one actor: seeded episode by episode, with true returns, and a state that can be saved."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpcrl.envs.autoreset import Transition, make_stepper
from hpcrl.envs.factory import make_vector_env
from hpcrl.envs.rebuilding import FragileEnvs
from hpcrl.envs.restarts import Restarts
from hpcrl.envs.restore import Restored, Snapshots, make_snapshots
from hpcrl.envs.world import World
from hpcrl.noise import Purpose, seeds
from hpcrl.spaces import Task
from hpcrl.unroll import Unroll


class Rows(NamedTuple):
    """Where a step of B environments is written: one row of an unroll (fields as there), or of a part of its columns.

    Attributes:
        observation: [B, ...], what the next action answers to: an unroll's row t + 1, the others being row t.
    """

    observation: NDArray
    reward: NDArray
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    ended: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    episode_number: NDArray[np.int64]
    episode_return: NDArray[np.float64]
    episode_length: NDArray[np.int64]
    discounted_return: NDArray[np.float64] | None = None


def unroll_rows(unroll: Unroll, columns: slice) -> list[Rows]:
    """Views [T] of an unroll's rows, of some of its columns; making them costs as much as a step, so keep them."""
    names = Rows._fields[1:] if unroll.spec.memory.discounted_returns else Rows._fields[1:-1]
    fields = (unroll.observation[1:], *(getattr(unroll, name) for name in names))
    return [Rows(*row) for row in zip(*(field[:, columns] for field in fields), strict=True)]


class Finals(NamedTuple):
    """Last observations [n, ...] of episodes, of the truncated ones alone in a step; and their environments, ascending.

    The environments are int [n], rows of the step.
    """

    observations: NDArray
    rows: NDArray[np.intp]


class Step(NamedTuple):
    """One step of B environments: `Rows` and `Finals` together."""

    observation: NDArray
    reward: NDArray
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    ended: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    episode_number: NDArray[np.int64]
    episode_return: NDArray[np.float64]
    episode_length: NDArray[np.int64]
    final_observations: NDArray
    final_rows: NDArray[np.intp]


class EpisodeSeeds:
    """Seeds of the episodes of B environments: a function of (run seed, global index, episode number), made ahead.

    One draw costs as much as a hundred, and short episodes end at nearly every step.
    """

    _AHEAD = 32

    def __init__(self, seed: int, env_index: NDArray[np.int64], purpose: Purpose) -> None:
        self._seed, self._env_index, self._purpose = seed, env_index, purpose
        self._first = np.zeros(len(env_index), np.int64)  # number of each environment's first episode in the table
        self._latest = np.zeros(len(env_index), np.int64)
        self._table = np.zeros((len(env_index), 0), np.int64)

    def of(self, rows: NDArray[np.intp], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Seeds int64 [n] of the episodes `numbers` [n] of the environments in `rows` [n]."""
        self._latest[rows] = numbers
        offset = numbers - self._first[rows]
        # A negative offset is a huge one without its sign.
        if offset.view(np.uint64).max() >= self._table.shape[1]:
            self._draw()
            offset = np.zeros_like(rows)
        return self._table[rows, offset]

    def _draw(self) -> None:
        """Begin the table anew at the latest episodes, in all rows: the others will soon need it too."""
        self._first = self._latest.copy()
        ahead = self._first[:, None] + np.arange(self._AHEAD)
        self._table = seeds(self._seed, self._env_index[:, None], ahead, self._purpose)


class EpisodeEnvs:
    """B environments, global indices first_env .. first_env + B - 1.

    Every episode begins with the seed of (run seed, global index, episode number), whatever the rank.

    Args:
        gamma: discount of the discounted returns, which are kept where there is room for them.
        restarts: counts environments that break; by default each of these objects has its own.
        keep_lasts: whether the last observation of every episode is told.

    Attributes:
        observation: [B, ...], what the next action answers to.
        rows: steps that each environment has made, a plain count; the counter of the action noise.
        lasts: of the episodes that ended in the newest step; None unless they are told.
    """

    def __init__(
        self,
        world: World,
        task: Task,
        num_envs: int,
        first_env: int,
        seed: int,
        purpose: Purpose = Purpose.EPISODE_SEED,
        gamma: float = 1.0,
        restarts: Restarts | None = None,
        keep_lasts: bool = False,
    ) -> None:
        self.lasts: Finals | None = None
        self.num_envs, self.first_env, self.task = num_envs, first_env, task
        self.env_index = np.arange(first_env, first_env + num_envs)
        self.rows = 0
        self._seeds = EpisodeSeeds(seed, self.env_index, purpose)
        self._all_rows = np.arange(num_envs)
        self._episode_number = np.zeros(num_envs, np.int64)
        self._episode_return = np.zeros(num_envs, np.float64)
        self._episode_length = np.zeros(num_envs, np.int64)
        self._gamma, self._discounted_return = gamma, np.zeros(num_envs, np.float64)
        self.observation: NDArray = np.zeros((num_envs, *task.observation.shape), task.observation.dtype)
        # Episodes that could not be begun, within a step: they count once the step before them is written down.
        self._given_up = np.zeros(num_envs, np.int64)
        self._is_stepping = False
        self._envs: Any = None
        if num_envs:
            self._envs = make_vector_env(world, num_envs, task, restarts)
            if isinstance(self._envs, FragileEnvs):
                self._envs.belong_to(self.env_index, self._episode_number, self._seeds_anew)
            self._stepper = make_stepper(self._envs, self._next_seeds, keep_lasts)
            self._snapshots: Snapshots = make_snapshots(self._envs)
            self.observation = self._first_observation(self._envs)

    def _first_observation(self, envs: Any) -> NDArray:
        episode_seeds = self._seeds.of(self._all_rows, self._episode_number)
        observation, _ = envs.reset(seed=self._snapshots.reset_seed(episode_seeds))
        return observation

    def _next_seeds(self, rows: NDArray[np.intp]) -> NDArray[np.int64]:
        """Begin the next episode of the environments in `rows`; its seeds."""
        self._snapshots.forget(rows)
        return self._seeds.of(rows, self._episode_number[rows] + 1)

    def _seeds_anew(self, rows: NDArray[np.intp]) -> NDArray[np.int64]:
        """Give up the episodes of `rows`, which could not be begun, for the next; their seeds."""
        if not self._is_stepping:
            self._episode_number[rows] += 1
            return self._seeds.of(rows, self._episode_number[rows])
        self._given_up[rows] += 1
        return self._seeds.of(rows, self._episode_number[rows] + 1 + self._given_up[rows])

    def step(self, actions: NDArray) -> Step:
        """`step_into` memory of its own."""
        size, observation = self.num_envs, self.task.observation
        into = Rows(
            observation=np.empty((size, *observation.shape), observation.dtype),
            reward=np.empty(size, np.float32),
            terminated=np.empty(size, np.bool_),
            truncated=np.empty(size, np.bool_),
            ended=np.empty(size, np.bool_),
            valid=np.empty(size, np.bool_),
            episode_number=np.empty(size, np.int64),
            episode_return=np.empty(size, np.float64),
            episode_length=np.empty(size, np.int64),
        )
        finals = self.step_into(actions, into)
        return Step(*into[:-1], *finals)

    def step_into(self, actions: NDArray, into: Rows) -> Finals:
        """Act in every environment and write down what came of it.

        Args:
            actions: [B, ...] in their stored form; for the environment, those outside the bounds of a box are clipped.
            into: overwritten.
        """
        assert self._envs is not None, "an actor without environments has nothing to step"
        self._snapshots.record(actions)
        self._is_stepping = True
        transition = self._stepper.step(actions)
        self._is_stepping = False
        self.rows += 1
        self.observation = transition.observation
        into.observation[...] = transition.observation
        into.reward[...] = transition.reward
        into.terminated[...] = transition.terminated
        into.truncated[...] = transition.truncated
        into.ended[...] = False
        into.ended[transition.ended_rows] = True
        self._count(transition, into)
        if transition.last_observations is not None:
            self.lasts = Finals(transition.last_observations, transition.ended_rows)
        return Finals(transition.final_observations, transition.final_rows)

    def _count(self, transition: Transition, into: Rows) -> None:
        """Add a step to the running episodes, write down where they stand, and begin those after an end."""
        number, return_, length = self._episode_number, self._episode_return, self._episode_length
        if transition.valid is None:
            return_ += transition.reward
            length += 1
            into.valid[...] = True
        else:
            return_ += np.where(transition.valid, transition.reward, 0.0)
            length += transition.valid
            into.valid[...] = transition.valid
        into.episode_number[...] = number
        into.episode_return[...] = return_
        into.episode_length[...] = length
        if into.discounted_return is not None:
            self._discount(transition, into.discounted_return)
        if len(begun := transition.begun_rows):
            number[begun] += 1 + self._given_up[begun]
            self._given_up[begun] = 0
            return_[begun] = 0.0
            length[begun] = 0

    def _discount(self, transition: Transition, into: NDArray[np.float64]) -> None:
        """Add a step to the discounted returns, and begin those after an end or a life lost."""
        total = self._discounted_return
        total *= self._gamma
        total += transition.reward if transition.valid is None else np.where(transition.valid, transition.reward, 0.0)
        into[...] = total
        total[transition.terminated | transition.truncated] = 0.0
        total[transition.begun_rows] = 0.0

    def state(self) -> dict[str, NDArray]:
        """Where every environment stands; each array's first axis is the environment, but for ragged ones.

        Ragged: `replay_actions` [sum of replay_counts, ...] holds the running episodes' actions one after the other.
        """
        state = {
            "observation": np.array(self.observation, self.task.observation.dtype),
            "episode_number": self._episode_number.copy(),
            "episode_return": self._episode_return.copy(),
            "episode_length": self._episode_length.copy(),
            "discounted_return": self._discounted_return.copy(),
            "rows": np.full(self.num_envs, self.rows, np.int64),
        }
        if self._envs is not None:
            state |= self._snapshots.state()
        return state

    def restore(self, state: dict[str, NDArray]) -> Restored:
        """Put every environment where `state` (this actor's part) says; how many were restored by which means.

        Raises:
            CheckpointError: the state doesn't fit these environments.
        """
        if self._envs is None:
            return Restored()
        self.rows = int(state["rows"].max())
        self._episode_number[:] = state["episode_number"]
        self._episode_return[:] = state["episode_return"]
        self._episode_length[:] = state["episode_length"]
        self._discounted_return[:] = state["discounted_return"]
        self._first_observation(self._envs)
        episode_seeds = self._seeds.of(self._all_rows, self._episode_number)
        reached, restored = self._snapshots.restore(state, episode_seeds)
        self.observation = state["observation"].copy()
        if lost := np.flatnonzero(~reached).tolist():
            self._begin_anew(np.array(lost))
        return restored

    def _begin_anew(self, rows: NDArray[np.intp]) -> None:
        """Give up the running episodes of `rows`, which could not be restored, for new ones."""
        assert self._envs is not None
        new_seeds = self._next_seeds(rows)
        self._episode_number[rows] += 1
        self._episode_return[rows] = 0.0
        self._episode_length[rows] = 0
        self._discounted_return[rows] = 0.0
        self.observation[rows] = self._snapshots.begin(rows, new_seeds)

    def close(self) -> None:
        """Close the environments."""
        if self._envs is not None:
            self._envs.close()
