"""SeededCartPole: Gymnasium's dynamics, a seed for each sub-environment, masks, exact restore."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from hpcrl.envs.native_cartpole import SeededCartPole
from hpcrl.errors import ConfigError, EnvironmentFailure, ShapeError

SEEDS = [7, 0, 2**63 - 1, 2**32, 7, 123456789, 2**32 + 7, 1]


def balance(state: NDArray[np.float64]) -> NDArray[np.int64]:
    """Actions [n] that keep the pole up for hundreds of steps, from states [4, n]."""
    return (np.array([0.1, 0.5, 4.0, 1.0]) @ state > 0).astype(np.int64)


def mask_of(num_envs: int, *indices: int) -> NDArray[np.bool_]:
    mask = np.zeros(num_envs, np.bool_)
    mask[list(indices)] = True
    return mask


@pytest.mark.filterwarnings("ignore:.*CartPole-v0 is out of date")
@pytest.mark.parametrize("sutton_barto", [False, True])
@pytest.mark.parametrize("name", ["CartPole-v0", "CartPole-v1"])
@pytest.mark.parametrize("policy", ["random", "balance"])
def test_whole_episodes_equal_the_single_environments(name: str, policy: str, sutton_barto: bool) -> None:
    spec = gymnasium.spec(name)
    assert spec.max_episode_steps is not None
    num_envs, rng = 9, np.random.default_rng(5)
    env = SeededCartPole(num_envs, spec.max_episode_steps, sutton_barto_reward=sutton_barto)
    singles = [gymnasium.make(name, sutton_barto_reward=sutton_barto) for _ in range(num_envs)]
    env.reset(seed=100)
    for single, state in zip(singles, env.get_state()["state"], strict=True):
        single.reset()
        single.unwrapped.state = state  # type: ignore[attr-defined]
    ends = np.zeros(num_envs, np.int64)
    for step in range(1, 1 + spec.max_episode_steps):
        actions = rng.integers(2, size=num_envs) if policy == "random" else balance(env.state)
        observations, rewards, terminated, truncated, _ = env.step(actions)
        for index in np.flatnonzero(ends == 0):
            single = singles[index]
            expected, *outcome, _ = single.step(actions[index])
            single_state = single.unwrapped.state  # type: ignore[attr-defined]
            np.testing.assert_allclose(env.state[:, index], single_state, rtol=0, atol=1e-12)
            np.testing.assert_array_equal(observations[index], expected)
            assert [rewards[index], terminated[index], truncated[index]] == outcome
        done = terminated | truncated
        ends[done & (ends == 0)] = step
        if ends.all():
            break
        if done.any():
            env.reset(seed=0, options={"reset_mask": done})
    assert ends.all()
    assert (ends == spec.max_episode_steps).any() == (policy == "balance")


def trajectories(block: int, steps: int = 60) -> NDArray[np.float32]:
    """Observations [steps + 1, len(SEEDS), 4] with the seeds dealt in blocks; a finished one starts seed + step."""
    actions = np.random.default_rng(1).integers(2, size=(steps, len(SEEDS)))
    blocks = []
    for first in range(0, len(SEEDS), block):
        part = slice(first, first + block)
        env = SeededCartPole(block)
        seen = [env.reset(seed=SEEDS[part])[0]]
        for step in range(steps):
            observations, _, terminated, truncated, _ = env.step(actions[step, part])
            done = terminated | truncated
            if done.any():
                seeds = np.array(SEEDS[part]) // 2 + step
                observations, _ = env.reset(seed=seeds, options={"reset_mask": done})
            seen.append(observations)
        blocks.append(np.stack(seen))
    return np.concatenate(blocks, axis=1)


@pytest.mark.parametrize("block", [1, 2, 4])
def test_streams_depend_on_their_own_seed_alone(block: int) -> None:
    np.testing.assert_array_equal(trajectories(block), trajectories(len(SEEDS)))


def test_starts_follow_the_seeds() -> None:
    observations, info = SeededCartPole(len(SEEDS)).reset(seed=SEEDS)
    assert observations.dtype == np.float32 and observations.shape == (8, 4) and info == {}
    np.testing.assert_array_equal(observations[0], observations[4])
    assert len(np.unique(observations, axis=0)) == len(SEEDS) - 1
    shifted, _ = SeededCartPole(8).reset(seed=np.roll(SEEDS, 3))
    np.testing.assert_array_equal(shifted, np.roll(observations, 3, axis=0))


def test_an_int_seed_counts_up_and_none_draws() -> None:
    env = SeededCartPole(4)
    counted, _ = env.reset(seed=10)
    drawn, _ = env.reset()
    np.testing.assert_array_equal(counted, env.reset(seed=[10, 11, 12, 13])[0])
    env.reset(seed=10)
    np.testing.assert_array_equal(drawn, env.reset()[0])
    assert (drawn != counted).all()


def test_starts_are_uniform() -> None:
    num_envs = 40000
    env = SeededCartPole(num_envs)
    env.reset(seed=0)
    assert env.state.min() >= -0.05 and env.state.max() < 0.05
    # Standard deviation of the mean of a uniform of width 0.1: 0.0289 / 200.
    np.testing.assert_allclose(env.state.mean(axis=1), 0.0, atol=6 * 0.0289 / 200)
    np.testing.assert_allclose(env.state.var(axis=1), 0.01 / 12, rtol=0.03)
    np.testing.assert_allclose(np.corrcoef(env.state), np.eye(4), atol=0.03)
    np.testing.assert_allclose(np.corrcoef(env.state[0, 1:], env.state[0, :-1])[0, 1], 0.0, atol=0.03)


def test_mask_resets_those_alone() -> None:
    env = SeededCartPole(4)
    env.reset(seed=0)
    for _ in range(3):
        env.step(np.array([0, 1, 0, 1]))
    before = env.get_state()
    options = {"reset_mask": mask_of(4, 1, 3)}
    observations, _ = env.reset(seed=[0, 50, 0, 51], options=options)
    after = env.get_state()
    assert list(options) == ["reset_mask"]
    np.testing.assert_array_equal(after["steps"], [3, 0, 3, 0])
    np.testing.assert_array_equal(after["state"][[0, 2]], before["state"][[0, 2]])
    np.testing.assert_array_equal(observations, after["state"].astype(np.float32))
    np.testing.assert_array_equal(observations[[1, 3]], SeededCartPole(2).reset(seed=[50, 51])[0])
    env.reset(seed=0, options={"reset_mask": mask_of(4)})
    np.testing.assert_array_equal(env.get_state()["state"], after["state"])


def test_rows_begin_as_by_a_mask() -> None:
    env, other = SeededCartPole(4), SeededCartPole(4)
    env.reset(seed=0), other.reset(seed=0)
    env.step(np.array([0, 1, 0, 1])), other.step(np.array([0, 1, 0, 1]))
    expected, _ = other.reset(seed=[0, 50, 0, 2**63 - 1], options={"reset_mask": mask_of(4, 1, 3)})
    starts = env.reset_rows(np.array([1, 3]), np.array([50, 2**63 - 1]))
    assert starts.dtype == np.float32
    np.testing.assert_array_equal(starts, expected[[1, 3]])
    for name, array in env.get_state().items():
        np.testing.assert_array_equal(array, other.get_state()[name])


def test_truncates_at_the_limit() -> None:
    env = SeededCartPole(2, max_episode_steps=5)
    env.reset(seed=0)
    flags = [env.step(np.array([step % 2] * 2))[3].tolist() for step in range(5)]
    assert flags == [[False] * 2] * 4 + [[True] * 2]


def test_finished_or_never_reset_ones_cannot_step() -> None:
    env = SeededCartPole(3, max_episode_steps=4)
    actions = np.zeros(3, np.int64)
    with pytest.raises(EnvironmentFailure, match=r"never reset ones at \[0, 1, 2\]"):
        env.step(actions)
    env.reset(seed=0, options={"reset_mask": mask_of(3, 0, 2)})
    with pytest.raises(EnvironmentFailure, match=r"never reset ones at \[1\]"):
        env.step(actions)
    env.reset(seed=0)
    for _ in range(4):
        env.step(actions)
    before = env.get_state()
    env.reset(seed=0, options={"reset_mask": mask_of(3, 0)})
    with pytest.raises(EnvironmentFailure, match=r"finished or never reset ones at \[1, 2\]"):
        env.step(actions)
    np.testing.assert_array_equal(env.get_state()["state"][1:], before["state"][1:])
    env.reset(seed=0, options={"reset_mask": mask_of(3, 1, 2)})
    env.step(actions)


def test_what_it_returned_is_never_overwritten() -> None:
    env = SeededCartPole(3)
    first, _ = env.reset(seed=0)
    kept: list[tuple[Any, Any]] = [(first, first.copy())]
    for step in range(8):
        state = env.get_state()
        kept += [(array, array.copy()) for array in state.values()]
        kept += [(array, array.copy()) for array in env.step(np.array([0, 1, step % 2]))[:4]]
    env.set_state(state)
    env.step(np.array([0, 0, 0]))
    env.reset(seed=1, options={"reset_mask": mask_of(3, 1)})
    for array, copy in kept:
        np.testing.assert_array_equal(array, copy)


def test_state_round_trip_in_mid_episode() -> None:
    env, other = SeededCartPole(5, 40), SeededCartPole(5, 40)
    env.reset(seed=3)
    for _ in range(15):
        env.step(balance(env.state))
    env.reset(seed=9, options={"reset_mask": mask_of(5, 2)})
    state = env.get_state()
    assert {name: (array.dtype, array.shape) for name, array in state.items()} == {
        "state": (np.float64, (5, 4)),
        "steps": (np.int64, (5,)),
    }
    other.set_state(state)
    for _ in range(25):
        actions = balance(env.state)
        for one, two in zip(env.step(actions), other.step(actions), strict=True):
            np.testing.assert_array_equal(one, two)
    assert other.get_state()["steps"].tolist() == [40, 40, 25, 40, 40]


def test_a_restored_finished_one_stays_finished() -> None:
    env, other = SeededCartPole(4, 30), SeededCartPole(4, 30)
    env.reset(seed=0)
    while not env.step(np.array([0, 1, 0, 1]))[2].any():
        pass
    other.set_state(env.get_state())
    np.testing.assert_array_equal(other.prev_done, env.prev_done)
    with pytest.raises(EnvironmentFailure, match="finished"):
        other.step(np.zeros(4, np.int64))
    other.set_state(SeededCartPole(4).get_state())
    with pytest.raises(EnvironmentFailure, match=r"never reset ones at \[0, 1, 2, 3\]"):
        other.step(np.zeros(4, np.int64))


@pytest.mark.parametrize(
    ("state", "steps"),
    [
        (np.zeros((3, 4)), np.zeros(2, np.int64)),
        (np.zeros((2, 4), np.float32), np.zeros(2, np.int64)),
        (np.zeros((2, 4)), np.zeros(2, np.int32)),
        (np.full((2, 4), np.nan), np.zeros(2, np.int64)),
        (np.zeros((2, 4)), np.array([0, 501])),
        (np.zeros((2, 4)), np.array([-2, 0])),
    ],
)
def test_bad_states(state: Any, steps: Any) -> None:
    with pytest.raises(EnvironmentFailure, match="set_state expected"):
        SeededCartPole(2).set_state({"state": state, "steps": steps})
    with pytest.raises(EnvironmentFailure, match="expected the keys state and steps, got"):
        SeededCartPole(2).set_state({"state": state})


@pytest.mark.parametrize("seed", [-1, [0], [0, 1, 2], [0, -1], [0, 2**63], 2**63 - 1, [0.0, 1.0], [0, None]])
def test_bad_seeds(seed: Any) -> None:
    with pytest.raises(ConfigError, match=r"seeds in \[0, 2\*\*63\), got"):
        SeededCartPole(2).reset(seed=seed)


@pytest.mark.parametrize("mask", [np.ones(3, np.bool_), np.ones(2, np.int64), [True, False]])
def test_bad_masks(mask: Any) -> None:
    with pytest.raises(ShapeError, match=r"reset_mask as bool array \[2\], got"):
        SeededCartPole(2).reset(seed=0, options={"reset_mask": mask})
    with pytest.raises(ConfigError, match=r"expected the option reset_mask, got \['low'\]"):
        SeededCartPole(2).reset(seed=0, options={"low": -0.1})


@pytest.mark.parametrize("action", [[0, 1], np.zeros(3, np.int64), np.zeros((2, 1), np.int64), np.zeros(2)])
def test_actions_of_another_shape_or_dtype(action: Any) -> None:
    env = SeededCartPole(2)
    env.reset(seed=0)
    with pytest.raises(ShapeError, match=r"actions as an integer array \[2\], got"):
        env.step(action)


@pytest.mark.parametrize("action", [[0, 2], [-1, 0]])
def test_actions_out_of_range(action: list[int]) -> None:
    env = SeededCartPole(2)
    env.reset(seed=0)
    before = env.get_state()
    with pytest.raises(ConfigError, match="actions of 0 or 1, got"):
        env.step(np.array(action))
    np.testing.assert_array_equal(env.get_state()["state"], before["state"])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64])
def test_action_dtypes_agree(dtype: Any) -> None:
    env, other = SeededCartPole(2), SeededCartPole(2)
    env.reset(seed=0), other.reset(seed=0)
    env.step(np.array([0, 1])), other.step(np.array([0, 1], dtype))
    np.testing.assert_array_equal(env.state, other.state)


def test_declares_no_autoreset_and_leaves_gymnasiums_alone() -> None:
    assert SeededCartPole.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    vector = gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="vector_entry_point")
    assert vector.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP


@pytest.mark.parametrize(("num_envs", "max_episode_steps"), [(0, 500), (1, 0)])
def test_bad_arguments(num_envs: int, max_episode_steps: int) -> None:
    with pytest.raises(ConfigError, match="of at least 1, got 0"):
        SeededCartPole(num_envs, max_episode_steps)
