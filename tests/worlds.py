"""Environments with every kind of space, mask and end, for tests; Gymnasium finds them as `tests.worlds:NAME-v0`.

- `Identity-ACTION`: the observation tells the right action.
- `Any-OBSERVATION-ACTION`: random observations of a kind, actions of another, episodes of various lengths and ends.
- `Masked-info-ACTION`, `Masked-observation-ACTION`: some actions are forbidden; says which, in the info or beside the
  observation.
- `Scripted-OBSERVATION-MODE`: the episodes of `SCRIPT`; its vector form resets in that mode.

OBSERVATION is one of `OBSERVATIONS` (of `SCRIPTED_OBSERVATIONS`), ACTION one of `ACTIONS` (of `MASKABLE`), MODE a name
of `AutoresetMode` in small letters. All have a vector form of their own (`--vector native`), in mode NEXT_STEP where
the name says none. All is deterministic given `reset(seed)`. An action outside the action space raises ValueError.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from numpy.typing import NDArray

OBSERVATIONS: Mapping[str, Space] = {
    "vector": Box(-2, 2, (5,), np.float64),
    "image": Box(0, 255, (36, 36, 1), np.uint8),
    "volume": Box(-1, 1, (3, 4, 2), np.float32),
    "discrete": Discrete(6, start=3),
    "multi_discrete": MultiDiscrete([3, 5, 2], start=[0, -1, 4]),
    "multi_binary": MultiBinary([2, 3]),
    "dict": Dict(
        camera=Box(0, 255, (36, 36, 1), np.uint8), speed=Box(-1, 1, (3,), np.float32), gear=Discrete(4, start=-1)
    ),
    "tuple": Tuple([Box(-1, 1, (2, 2), np.float32), MultiBinary(3), Discrete(2)]),
    "nested": Dict(
        body=Dict(camera=Box(0, 255, (40, 36, 3), np.uint8), joints=Box(-3, 3, (4,), np.float64)),
        cards=Tuple([MultiDiscrete([4, 13]), Dict(turn=Discrete(3))]),
    ),
}
ACTIONS: Mapping[str, Space] = {
    "discrete": Discrete(4),
    "discrete_start": Discrete(3, start=-2),
    "multi_discrete": MultiDiscrete([3, 2, 4]),
    "multi_discrete_start": MultiDiscrete([2, 3], start=[5, -1]),
    "multi_binary": MultiBinary(3),
    "box": Box(np.array([-1, 0], np.float32), np.array([1, 3], np.float32)),
    "tuple": Tuple([Discrete(3, start=1), Box(-1, 1, (2,), np.float32)]),
    "dict": Dict(wheels=MultiDiscrete([3, 2]), arm=Box(-2, 2, (1, 2), np.float32)),
}
#: Actions of choices alone, which a mask can forbid.
MASKABLE = ("discrete", "discrete_start", "multi_discrete")
SCRIPTED_OBSERVATIONS = ("vector", "dict")


def draw(space: Space, rng: np.random.Generator) -> Any:
    """A uniform element of a bounded space."""
    match space:
        case Dict():
            return {name: draw(part, rng) for name, part in space.spaces.items()}
        case Tuple():
            return tuple(draw(part, rng) for part in space.spaces)
        case Discrete():
            return np.int64(space.start + rng.integers(space.n))
        case MultiDiscrete():
            return (space.start + rng.integers(space.nvec)).astype(space.dtype)
        case MultiBinary():
            return rng.integers(2, size=space.shape, dtype=np.int8)
        case Box() if np.issubdtype(space.dtype, np.integer):
            return rng.integers(space.low, space.high, dtype=space.dtype.type, endpoint=True)
        case Box():
            return rng.uniform(space.low, space.high).astype(space.dtype)
    raise TypeError(f"expected one of the spaces of this file, got {space}")


def score(space: Space, action: Any, right: Any) -> float:
    """How right an action is: the share of its numbers that are right, the mean of the parts of a Dict or Tuple.

    For a Box minus the mean squared distance, at least -1.
    """
    match space:
        case Dict():
            return float(np.mean([score(part, action[name], right[name]) for name, part in space.spaces.items()]))
        case Tuple():
            return float(np.mean([score(*three) for three in zip(space.spaces, action, right, strict=True)]))
        case Box():
            return -min(1.0, float(np.mean(np.square(np.subtract(action, right, dtype=np.float64)))))
    return float(np.mean(np.equal(action, right)))


def mean_number(element: Any) -> float:
    """The mean over the leaves of the mean of their numbers."""
    if isinstance(element, (dict, tuple)):
        return float(
            np.mean([mean_number(part) for part in (element.values() if isinstance(element, dict) else element)])
        )
    return float(np.mean(element))


class World(gym.Env[Any, Any]):
    """Common to all: actions are checked."""

    def _check(self, action: Any) -> None:
        if not self.action_space.contains(action):
            raise ValueError(f"the action {action!r} is not in {self.action_space}")


class Identity(World):
    """The observation tells the right action, a random one in each step: flattened as Gymnasium does, float32.

    The reward is the `score`; an episode is truncated after 10 steps.
    """

    EPISODE_LENGTH = 10

    def __init__(self, action: str) -> None:
        self.action_space = copy.deepcopy(ACTIONS[action])
        flat: Any = gym.spaces.flatten_space(self.action_space)
        self.observation_space = Box(np.float32(flat.low), np.float32(flat.high), dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return self._ask()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._check(action)
        reward = score(self.action_space, action, self._right)
        self._steps += 1
        observation, info = self._ask()
        return observation, reward, False, self._steps == self.EPISODE_LENGTH, info

    @property
    def best_return(self) -> float:
        """Of an episode of right actions."""
        return self.EPISODE_LENGTH * score(self.action_space, self._right, self._right)

    def _ask(self) -> tuple[Any, dict[str, Any]]:
        """The next observation, and its info."""
        self._right = draw(self.action_space, self.np_random)
        return self._tell(), {}

    def _tell(self) -> NDArray[np.float32]:
        flat: Any = gym.spaces.flatten(self.action_space, self._right)
        return flat.astype(np.float32)


class Masked(Identity):
    """As `Identity`, with a random mask in each step; a forbidden action raises ValueError, the right one is allowed.

    The mask is int8 [n] with a number for each choice, those of a MultiDiscrete one after the other; at least one is
    allowed of each.

    Args:
        action: one of `MASKABLE`.
        place: "info", or "observation": beside it, in a Dict.
    """

    def __init__(self, action: str, place: str) -> None:
        super().__init__(action)
        space: Any = self.action_space
        self._choices = np.atleast_1d(space.n if isinstance(space, Discrete) else space.nvec)
        self._place = place
        if place == "observation":
            mask = Box(0, 1, (int(self._choices.sum()),), np.int8)
            self.observation_space = Dict(observation=self.observation_space, action_mask=mask)

    def _check(self, action: Any) -> None:
        super()._check(action)
        if not self._mask[self._numbers(action)].all():
            raise ValueError(f"the action {action!r} is forbidden by the mask {self._mask}")

    def _ask(self) -> tuple[Any, dict[str, Any]]:
        self._right = draw(self.action_space, self.np_random)
        self._mask = self.np_random.integers(2, size=self._choices.sum(), dtype=np.int8)
        self._mask[self._numbers(self._right)] = 1
        mask = self._mask.copy()
        if self._place == "info":
            return self._tell(), {"action_mask": mask}
        return {"observation": self._tell(), "action_mask": mask}, {}

    def _numbers(self, action: Any) -> NDArray[np.int64]:
        """Where in the mask the choices of an action are."""
        space: Any = self.action_space
        return np.cumsum(self._choices) - self._choices + np.atleast_1d(action - space.start)


class AnyWorld(World):
    """Random observations of one kind, actions of another; the reward is the action's `mean_number`.

    An episode has 2 to 12 steps and is terminated, truncated or both; `reset` draws its length and end.
    """

    def __init__(self, observation: str, action: str) -> None:
        self.observation_space = copy.deepcopy(OBSERVATIONS[observation])
        self.action_space = copy.deepcopy(ACTIONS[action])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps_left = int(self.np_random.integers(2, 12, endpoint=True))
        self._end = int(self.np_random.integers(3))
        return draw(self.observation_space, self.np_random), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._check(action)
        self._steps_left -= 1
        ends = self._steps_left == 0
        observation = draw(self.observation_space, self.np_random)
        return observation, mean_number(action), ends and self._end != 0, ends and self._end != 1, {}


class Episode(NamedTuple):
    """How a scripted episode goes: a reward for each step, and how the last one ends it."""

    rewards: tuple[float, ...]
    terminated: bool
    truncated: bool


SCRIPT = (
    Episode((1, 2, 4), terminated=True, truncated=False),
    Episode((8,), terminated=False, truncated=True),
    Episode((16, -32), terminated=True, truncated=True),
    Episode((64, 0, 0, 128, 0.5), terminated=False, truncated=True),
    Episode((-256,), terminated=True, truncated=False),
)


def scripted_episode(seed: int, resets: int = 0) -> int:
    """The number in `SCRIPT` of the episode that begins with a reset by `seed` and then `resets` without one."""
    return (seed + resets) % len(SCRIPT)


class Scripted(World):
    """The episodes of `SCRIPT`, whatever the action: a seed says which, and without one the next follows.

    Observes its number in `SCRIPT` and the steps made: as float32 [2], or as a Dict of a number and float32 [1].
    """

    def __init__(self, observation: str) -> None:
        self._is_dict = observation == "dict"
        steps = Box(0, np.inf, (1 if self._is_dict else 2,), np.float32)
        self.observation_space = Dict(episode=Discrete(len(SCRIPT)), steps=steps) if self._is_dict else steps
        self.action_space = Discrete(2)
        self._number = -1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._number = scripted_episode(self._number + 1 if seed is None else seed)
        self._steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._check(action)
        episode = SCRIPT[self._number]
        reward = episode.rewards[self._steps]
        self._steps += 1
        ends = self._steps == len(episode.rewards)
        return self._observation(), reward, ends and episode.terminated, ends and episode.truncated, {}

    def _observation(self) -> Any:
        if self._is_dict:
            return {"episode": np.int64(self._number), "steps": np.array([self._steps], np.float32)}
        return np.array([self._number, self._steps], np.float32)


def vector_form(
    world: Callable[..., World], num_envs: int = 1, mode: AutoresetMode = AutoresetMode.NEXT_STEP, **arguments: Any
) -> VectorEnv:
    """Worlds as one vector environment, which does not show that it consists of single ones."""
    return VectorWrapper(SyncVectorEnv([partial(world, **arguments)] * num_envs, autoreset_mode=mode))


def _register(name: str, world: type[World], mode: AutoresetMode = AutoresetMode.NEXT_STEP, **arguments: str) -> None:
    native = partial(vector_form, world, mode=mode)
    gym.register(f"{name}-v0", entry_point=world, vector_entry_point=native, kwargs=arguments)  # type: ignore[arg-type]


for _action in ACTIONS:
    _register(f"Identity-{_action}", Identity, action=_action)
for _observation, _action in itertools.product(OBSERVATIONS, ACTIONS):
    _register(f"Any-{_observation}-{_action}", AnyWorld, observation=_observation, action=_action)
for _place, _action in itertools.product(("info", "observation"), MASKABLE):
    _register(f"Masked-{_place}-{_action}", Masked, action=_action, place=_place)
for _observation, _mode in itertools.product(SCRIPTED_OBSERVATIONS, AutoresetMode):
    _register(f"Scripted-{_observation}-{_mode.name.lower()}", Scripted, _mode, observation=_observation)
