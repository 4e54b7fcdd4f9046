"""MemoryCue: contract, length, rewards, what a policy without memory can reach, exact restore."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray

from hpcrl.envs.memory_cue import MemoryCue
from hpcrl.envs.registration import register_environments
from hpcrl.errors import ConfigError, EnvironmentFailure


def play(env: MemoryCue, cue: int, action: int) -> Iterator[tuple[NDArray[np.float32], float, bool]]:
    """Observation before, reward and end of every step of an episode with this cue that repeats an action."""
    observation = first_of(env, cue)
    ended = False
    while not ended:
        before = observation
        observation, reward, ended, truncated, info = env.step(action)
        assert not truncated and info == {}
        yield before, reward, ended
    assert not observation.any()


def first_of(env: MemoryCue, cue: int) -> NDArray[np.float32]:
    """Reset until the cue is the one that is wanted."""
    for _ in range(1000):
        if (observation := env.reset()[0]).argmax() == cue:
            return observation
    raise AssertionError(f"cue {cue} does not occur")


@pytest.mark.parametrize("arguments", [{}, {"num_cues": 2, "num_blanks": 0}, {"num_cues": 7, "num_blanks": 3}])
def test_passes_gymnasiums_checker(arguments: dict[str, Any]) -> None:
    register_environments()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make("MemoryCue-v0", **arguments).unwrapped)


def test_an_episode_by_hand() -> None:
    env = MemoryCue(num_cues=3, num_blanks=2)
    cue, blank, question = [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]
    steps = list(play(env, 1, 1))
    assert [before.tolist() for before, _, _ in steps] == [cue, blank, blank, question]
    assert [reward for _, reward, _ in steps] == [0, 0, 0, 1]
    assert [ended for _, _, ended in steps] == [False, False, False, True]
    assert all(before.dtype == np.float32 for before, _, _ in steps)


@pytest.mark.parametrize(("num_cues", "num_blanks"), [(4, 16), (2, 0), (5, 1)])
def test_length_and_rewards_for_every_cue_and_answer(num_cues: int, num_blanks: int) -> None:
    env = MemoryCue(num_cues, num_blanks)
    env.reset(seed=0)
    for cue in range(num_cues):
        for action in range(num_cues):
            rewards = [reward for _, reward, _ in play(env, cue, action)]
            assert rewards == [0.0] * (num_blanks + 1) + [float(action == cue)]


def test_the_episode_has_18_steps_by_default() -> None:
    assert MemoryCue().episode_length == 18 and MemoryCue().action_space == gymnasium.spaces.Discrete(4)


def test_only_the_last_action_counts() -> None:
    env, rng = MemoryCue(), np.random.default_rng(0)
    for seed in range(8):
        cue = int(env.reset(seed=seed)[0].argmax())
        rewards = [env.step(action)[1] for action in rng.integers(4, size=17)]
        assert rewards == [0.0] * 17 and env.step(cue)[1] == 1.0


def test_without_memory_a_quarter_is_the_best() -> None:
    """Of all maps from observations to actions, the best earns the most that each observation allows by itself."""
    env = MemoryCue()
    env.reset(seed=0)
    earned: dict[bytes, NDArray[np.float64]] = defaultdict(lambda: np.zeros(4))
    for cue in range(4):
        for action in range(4):
            for before, reward, _ in play(env, cue, action):
                earned[before.tobytes()][action] += reward / 4
    assert sum(by_action.max() for by_action in earned.values()) == 0.25
    assert len(earned) == 6


def test_cues_are_uniform_and_follow_from_the_seed() -> None:
    env, other = MemoryCue(), MemoryCue()
    env.reset(seed=0)
    counts = np.sum([env.reset()[0] for _ in range(4000)], axis=0)
    # Six standard deviations of a binomial count.
    assert np.abs(counts[:4] - 1000).max() < 6 * np.sqrt(750) and counts[4] == 0
    cues = [env.reset(seed=seed)[0] for seed in range(20)]
    np.testing.assert_array_equal(cues, [other.reset(seed=seed)[0] for seed in range(20)])


def test_observations_belong_to_whoever_got_them() -> None:
    env = MemoryCue(num_blanks=1)
    for before, _, _ in play(env, 2, 0):
        before[:] = 7
    assert [np.flatnonzero(before).tolist() for before, _, _ in play(env, 3, 0)] == [[3], [], [4]]


@pytest.mark.parametrize("steps", [0, 1, 16, 17])
def test_state_round_trip(steps: int) -> None:
    env, other = MemoryCue(), MemoryCue()
    cue = int(env.reset(seed=5)[0].argmax())
    for _ in range(steps):
        env.step(0)
    state = env.get_state()
    assert {name: (array.dtype, array.shape) for name, array in state.items()} == {
        "cue": (np.int64, ()),
        "steps": (np.int64, ()),
    }
    rest = [env.step(cue) for _ in range(18 - steps)]
    other.set_state(state)
    for expected in rest:
        observation, *others = other.step(cue)
        np.testing.assert_array_equal(observation, expected[0])
        assert others == list(expected[1:])
    assert rest[-1][1:3] == (1.0, True) and (state["cue"], state["steps"]) == (cue, steps)


def test_a_finished_state_stays_finished() -> None:
    env = MemoryCue()
    env.set_state({"cue": np.array(1), "steps": np.array(18)})
    with pytest.raises(EnvironmentFailure, match="got a finished one"):
        env.step(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_cues": 1}, "expected num_cues of at least 2, got 1"),
        ({"num_cues": 2.5}, "expected an integer num_cues of at least 2, got 2.5"),
        ({"num_blanks": -1}, "expected num_blanks of at least 0, got -1"),
        ({"render_mode": "human"}, "expected render_mode None, got 'human'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MemoryCue(**arguments)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"cue": np.array(0)}, r"the keys cue and steps, got \['cue'\]"),
        ({"cue": np.array(0, np.int32), "steps": np.array(0)}, r"cue as int64 \[\], got int32 \[\]"),
        ({"cue": np.array(0), "steps": np.array([0])}, r"steps as int64 \[\], got int64 \[1\]"),
        ({"cue": np.array(4), "steps": np.array(0)}, "cue of 0 to 3, got 4"),
        ({"cue": np.array(-1), "steps": np.array(0)}, "cue of 0 to 3, got -1"),
        ({"cue": np.array(0), "steps": np.array(19)}, "steps of 0 to 18, got 19"),
    ],
)
def test_bad_states(state: dict[str, Any], message: str) -> None:
    env = MemoryCue()
    env.set_state({"cue": np.array(2), "steps": np.array(3)})
    with pytest.raises(EnvironmentFailure, match=f"set_state expected {message}"):
        env.set_state(state)
    assert env.get_state() == {"cue": 2, "steps": 3}


def test_use_before_reset_and_bad_actions() -> None:
    env = MemoryCue()
    with pytest.raises(EnvironmentFailure, match="never reset"):
        env.step(0)
    with pytest.raises(EnvironmentFailure, match="get_state expected"):
        env.get_state()
    env.reset(seed=0)
    for action in (4, -1, 0.5, None):
        with pytest.raises(EnvironmentFailure, match="expected an action of 0 to 3"):
            env.step(action)  # type: ignore[arg-type]
