"""SequentialEnvs does what Gymnasium's SyncVectorEnv does."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from hpcrl.envs.factory import make_vector_env
from hpcrl.envs.sequential import SequentialEnvs
from hpcrl.envs.world import World

NUM_ENVS = 3


class Picture(gym.Env[NDArray[np.uint8], NDArray[np.float32]]):
    """Observations of two axes, rewards of one element, and a flag of numpy."""

    observation_space = gym.spaces.Box(0, 255, (2, 3), np.uint8)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    shape = (2, 3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        super().reset(seed=seed)
        return self._observation(), {"seed": seed}

    def _observation(self) -> NDArray[np.uint8]:
        return self.np_random.integers(256, size=self.shape, dtype=np.uint8)

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.uint8], Any, Any, bool, dict[str, Any]]:
        return self._observation(), np.float32(action.sum()), np.bool_(self.np_random.random() < 0.2), False, {"a": 1}


class Number(gym.Wrapper[NDArray[Any], Any, NDArray[Any], Any]):
    """An observation without axes."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space: Any = gym.spaces.Box(-np.inf, np.inf, (), np.float32)

    def reset(self, **kwargs: Any) -> Any:
        observation, info = super().reset(**kwargs)
        return observation[0], info

    def step(self, action: Any) -> Any:
        observation, *outcome = super().step(action)
        return observation[0], *outcome


def make(name: str) -> gym.Env[Any, Any]:
    if name == "picture":
        return Picture()
    if name == "number":
        return Number(gym.make("CartPole-v1"))
    return gym.make(name)


def begin(envs: VectorEnv[Any, Any, Any], rows: NDArray[np.intp], seeds: NDArray[np.int64]) -> NDArray[Any]:
    """Observations of all, after new episodes in some."""
    mask, all_seeds = np.zeros(NUM_ENVS, np.bool_), np.full(NUM_ENVS, 5)
    mask[rows], all_seeds[rows] = True, seeds
    per_env: Any = all_seeds.tolist()
    return np.array(envs.reset(seed=per_env, options={"reset_mask": mask})[0])


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1", "picture", "number"])
def test_equals_gymnasiums(name: str) -> None:
    ours = SequentialEnvs([lambda: make(name)] * NUM_ENVS)
    theirs = SyncVectorEnv([lambda: make(name)] * NUM_ENVS, autoreset_mode=AutoresetMode.DISABLED)
    assert (ours.observation_space, ours.metadata) == (theirs.observation_space, theirs.metadata)
    np.testing.assert_array_equal(ours.reset(seed=4)[0], theirs.reset(seed=4)[0])
    ours.action_space.seed(1)
    num_ends = 0
    for step in range(250):
        actions = ours.action_space.sample()
        for one, two in zip(ours.step(actions)[:4], theirs.step(actions)[:4], strict=True):
            np.testing.assert_array_equal(one, two)
            assert one.dtype == two.dtype
        ended = np.flatnonzero(theirs._autoreset_envs)
        if len(ended):
            num_ends += 1
            seeds = 1000 * step + ended
            expected = begin(theirs, ended, seeds)
            if step % 2:
                np.testing.assert_array_equal(ours.reset_rows(ended, seeds), expected[ended])
            else:
                np.testing.assert_array_equal(begin(ours, ended, seeds), expected)
    assert num_ends


@pytest.mark.parametrize("seed", [3, [3, 9, 4], None])
def test_resets_of_all(seed: Any) -> None:
    ours: VectorEnv[Any, Any, Any] = make_vector_env(World("CartPole-v1"), NUM_ENVS)
    theirs = SyncVectorEnv([lambda: make("CartPole-v1")] * NUM_ENVS)
    assert isinstance(ours, SequentialEnvs)
    for envs in (ours, theirs):
        envs.reset(seed=7)
    observation, info = ours.reset(seed=seed)
    np.testing.assert_array_equal(observation, theirs.reset(seed=seed)[0])
    assert info == {}


def test_an_environments_error_comes_through() -> None:
    class Broken(Picture):
        def step(self, action: Any) -> Any:
            raise KeyError("at home")

    envs = SequentialEnvs([Picture, Broken])
    envs.reset(seed=1)
    with pytest.raises(KeyError, match="at home"):
        envs.step(np.zeros((2, 2), np.float32))


@pytest.mark.parametrize("shape", [(1, 3), (2, 1), (3,), ()])
def test_observations_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    envs = SequentialEnvs([Picture, Picture])
    envs.reset(seed=1)
    for env in envs.envs:
        env.unwrapped.shape = shape  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"dimension|shape"):
        envs.step(np.zeros((2, 2), np.float32))
