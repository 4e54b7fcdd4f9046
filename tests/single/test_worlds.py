"""The worlds for tests: Gymnasium's contract, the same from a seed, ends, masks and autoreset modes."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import iterate

from tests.worlds import ACTIONS, MASKABLE, OBSERVATIONS, SCRIPT, SCRIPTED_OBSERVATIONS, draw, scripted_episode

IDENTITY = [f"Identity-{action}" for action in ACTIONS]
MASKED = [f"Masked-{place}-{action}" for place in ("info", "observation") for action in MASKABLE]
# Each observation and each action once.
SOME = [f"Any-{observation}-{list(ACTIONS)[n % len(ACTIONS)]}" for n, observation in enumerate(OBSERVATIONS)]


def make(name: str) -> Any:
    return gym.make(f"tests.worlds:{name}-v0", disable_env_checker=True).unwrapped


def same(one: Any, two: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[name], two[name]) for name in one)
    if isinstance(one, tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return np.array_equal(one, two)


@pytest.mark.parametrize("name", [*IDENTITY, *SOME, "Scripted-vector-disabled", "Scripted-dict-disabled"])
@pytest.mark.filterwarnings("error", "ignore:.*:UserWarning")
def test_passes_gymnasiums_checker(name: str) -> None:
    check_env(make(name), skip_render_check=True)


def test_all_combinations_can_be_made_in_both_forms() -> None:
    for observation in OBSERVATIONS:
        for action in ACTIONS:
            env = make(f"Any-{observation}-{action}")
            first = env.reset(seed=1)[0]
            assert env.observation_space == OBSERVATIONS[observation] and env.action_space == ACTIONS[action]
            assert env.observation_space.contains(first)
            native = gym.make_vec(f"tests.worlds:Any-{observation}-{action}-v0", 2, "vector_entry_point")
            assert native.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
            assert same(next(iterate(native.observation_space, native.reset(seed=1)[0])), first)


@pytest.mark.parametrize("name", [*IDENTITY, *SOME])
def test_a_seed_tells_all(name: str) -> None:
    one, two = make(name), make(name)
    for seed in (3, 4):
        assert same(one.reset(seed=seed), two.reset(seed=seed))
        ended, rng = False, np.random.default_rng(seed)
        while not ended:
            action = draw(one.action_space, rng)
            step = one.step(action)
            assert same(step, two.step(action)) and one.observation_space.contains(step[0])
            ended = step[2] or step[3]


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.filterwarnings("ignore:.*Casting input x")
def test_identity_pays_the_right_action_best(action: str) -> None:
    env = make(f"Identity-{action}")
    observation, _ = env.reset(seed=0)
    rng = np.random.default_rng(1)
    best, other = 0.0, 0.0
    for step in range(10):
        right = gym.spaces.unflatten(env.action_space, observation)
        observation, reward, terminated, truncated, _ = env.step(right)
        best += reward
        assert (terminated, truncated) == (False, step == 9)
    env.reset(seed=0)
    for _ in range(10):
        other += env.step(draw(env.action_space, rng))[1]
    assert best == pytest.approx(env.best_return, abs=1e-6) and other < best - 1
    with pytest.raises(ValueError, match="is not in"):
        env.step(99)


def test_any_world_ends_in_every_way_at_every_length() -> None:
    env, seen = make("Any-discrete-discrete"), set()
    for seed in range(300):
        env.reset(seed=seed)
        length, ends = 0, (False, False)
        while not any(ends):
            ends, length = env.step(1)[2:4], length + 1
        seen.add((length, ends))
    assert len(seen) == 11 * 3


@pytest.mark.parametrize("name", MASKED)
def test_forbidden_actions_are_refused_and_allowed_ones_are_not(name: str) -> None:
    env = make(name)
    rng, refused = np.random.default_rng(0), 0
    observation, info = env.reset(seed=0)
    for _ in range(200):
        assert env.observation_space.contains(observation)
        mask = info["action_mask"] if "info" in name else observation["action_mask"]
        action = draw(env.action_space, rng)
        choices = np.split(mask, np.cumsum(np.atleast_1d(getattr(env.action_space, "nvec", [len(mask)])))[:-1])
        assert mask.dtype == np.int8 and all(part.any() for part in choices)
        numbers = np.atleast_1d(action - env.action_space.start)
        if all(part[number] for part, number in zip(choices, numbers, strict=True)):
            observation, reward, _, _, info = env.step(action)
            assert 0 <= reward <= 1
        else:
            refused += 1
            with pytest.raises(ValueError, match="forbidden"):
                env.step(action)
    assert 20 < refused < 180


@pytest.mark.parametrize("observation", SCRIPTED_OBSERVATIONS)
@pytest.mark.parametrize("mode", AutoresetMode)
def test_scripted_vector_forms_follow_the_script(mode: AutoresetMode, observation: str) -> None:
    envs = gym.make_vec(
        f"tests.worlds:Scripted-{observation}-{mode.name.lower()}-v0", 2, vectorization_mode="vector_entry_point"
    )
    assert envs.metadata["autoreset_mode"] == mode
    envs.reset(seed=4)
    rewards: list[list[float]] = [[], []]
    ended = np.zeros(2, np.bool_)
    for _ in range(40):
        if mode == AutoresetMode.DISABLED and ended.any():
            envs.reset(options={"reset_mask": ended})
        ignored = ended & (mode == AutoresetMode.NEXT_STEP)
        _, reward, terminated, truncated, info = envs.step(np.zeros(2, np.int64))
        ended = terminated | truncated
        assert ("final_obs" in info) == (mode == AutoresetMode.SAME_STEP and ended.any())
        for row in np.flatnonzero(~ignored).tolist():
            rewards[row].append(float(reward[row]))
    for first, paid in enumerate(rewards, 4):
        script = [SCRIPT[scripted_episode(first, k)] for k in range(20)]
        assert paid == [reward for episode in script for reward in episode.rewards][: len(paid)]
        assert len(paid) > 20


@pytest.mark.parametrize("seed", range(len(SCRIPT)))
def test_a_scripted_episode_is_its_seeds(seed: int) -> None:
    env = make("Scripted-vector-disabled")
    for _ in range(2):
        observation, _ = env.reset(seed=seed)
        assert observation.tolist() == [seed, 0]
        steps = [env.step(0) for _ in SCRIPT[seed].rewards]
        assert tuple(step[1] for step in steps) == SCRIPT[seed].rewards
        assert [any(step[2:4]) for step in steps] == [False] * (len(steps) - 1) + [True]
        assert steps[-1][2:4] == (SCRIPT[seed].terminated, SCRIPT[seed].truncated)
    assert env.reset()[0].tolist() == [scripted_episode(seed, 1), 0]
