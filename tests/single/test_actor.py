"""The actor: no step is lost between unrolls or by a cut, and what it records is what it did."""

from __future__ import annotations

from itertools import pairwise

import tests.no_mpi  # noqa: F401

# isort: split
import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from hpcrl.algorithms.batch import Batch, evaluate
from hpcrl.algorithms.returns import generalised_advantages
from hpcrl.envs.episodes import EpisodeEnvs
from hpcrl.envs.world import World
from hpcrl.roles.batching import finished_episodes
from hpcrl.unroll import Unroll
from tests.playing import SEED, TIME, Playing, stacked, whole
from tests.policies import read_off
from tests.reference import Column

ROWS = (
    "action",
    "reward",
    "terminated",
    "truncated",
    "valid",
    "behaviour_log_prob",
    "episode_number",
    "episode_return",
    "episode_length",
)
#: Pendulum, but every episode is truncated after two steps.
SHORT = "hpcrl-tests/ShortPendulum-v0"
gym.register(SHORT, "gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=2)


def together(unrolls: list[Unroll]) -> dict[str, np.ndarray]:
    """The rows acted in several unrolls, one after the other."""
    rows = {name: np.concatenate([getattr(u, name)[: u.length] for u in unrolls]) for name in ROWS}
    return rows | {"observation": np.concatenate([u.observation[: u.length] for u in unrolls])}


@pytest.mark.parametrize("env_id", ["CartPole-v1", "GridNavigation-v0", "Pendulum-v1"])
def test_unrolls_follow_one_another_without_a_gap(env_id: str) -> None:
    playing = Playing(env_id, 3, 6)
    unrolls = [playing.fill(version) for version in range(6)]
    for before, after in pairwise(unrolls):
        assert np.array_equal(before.observation[TIME], after.observation[0])
        assert after.first_env_step == before.first_env_step + TIME
    rows = together(unrolls)
    ended = rows["terminated"] | rows["truncated"]
    assert np.array_equal(rows["episode_number"][1:] - rows["episode_number"][:-1], ended[:-1])
    expected = np.where(ended[:-1], 0, rows["episode_length"][:-1]) + 1
    assert np.array_equal(rows["episode_length"][1:], expected)
    assert playing.waiter.ticks == 6 * TIME and playing.envs.rows == 6 * TIME


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_unrolls_hold_what_the_environments_did(env_id: str) -> None:
    playing = Playing(env_id, 3, 6)
    other = EpisodeEnvs(World(env_id), playing.spec.task, 3, 0, SEED)
    for _ in range(4):
        unroll = playing.fill()
        for t in range(TIME):
            assert np.array_equal(unroll.observation[t], other.observation)
            step = other.step(unroll.action[t])
            for name in (
                "terminated",
                "truncated",
                "valid",
                "episode_number",
                "episode_return",
                "episode_length",
            ):
                assert np.array_equal(getattr(unroll, name)[t], getattr(step, name))
            assert np.array_equal(unroll.reward[t], step.reward.astype(np.float32))
        assert unroll.length == TIME and np.array_equal(unroll.observation[TIME], other.observation)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_recorded_log_probabilities_are_those_of_a_replay(env_id: str) -> None:
    playing = Playing(env_id, 3, 6)
    unroll = playing.fill()
    with torch.no_grad():
        parameters, _ = playing.policy(torch.from_numpy(unroll.observation[:TIME]))
        replayed = playing.policy.head.log_prob(parameters, torch.from_numpy(unroll.action))
    np.testing.assert_allclose(unroll.behaviour_log_prob, replayed.numpy(), rtol=1e-5, atol=1e-6)
    assert np.unique(unroll.action).size > 1


def test_actions_do_not_depend_on_how_environments_are_dealt() -> None:
    undivided = Playing("CartPole-v1", 4, 8)
    all_four = [undivided.fill(), undivided.fill()]
    halves = []
    for first in (0, 2):
        playing = Playing("CartPole-v1", 2, 4, first)
        halves.append(together([playing.fill(), playing.fill()]))
    for name, expected in together(all_four).items():
        got = np.concatenate([half[name] for half in halves], 1)
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7, err_msg=name)


def test_the_header() -> None:
    playing = Playing("CartPole-v1", 3, 6)
    first = playing.fill(version=17)
    playing.requests.save = True
    second = playing.fill(version=18)
    playing.requests.stop = "SIGINT"
    third = playing.fill(version=18)
    assert (first.actor, first.policy_version, first.first_env_step, first.length) == (3, 17, 0, TIME)
    assert (second.policy_version, second.first_env_step) == (18, TIME)
    assert [(u.save_requested, u.stop_requested) for u in (first, second, third)] == [(0, 0), (1, 0), (0, 1)]


@pytest.mark.parametrize(("num_envs", "num_finals", "length"), [(2, 2, 2), (2, 4, 4), (2, 5, 4), (2, 6, 6), (2, 8, 8)])
def test_an_unroll_is_cut_where_the_next_step_may_not_fit(num_envs: int, num_finals: int, length: int) -> None:
    unroll = Playing(SHORT, num_envs, num_finals).fill()
    assert unroll.length == length and unroll.num_finals == num_envs * length // 2
    assert not unroll.valid[length:].any() and unroll.valid[:length].all()
    assert sorted(map(tuple, unroll.final_index[: unroll.num_finals].tolist())) == [
        (t, b) for t in range(1, length, 2) for b in range(num_envs)
    ]


@pytest.mark.parametrize("num_finals", [2, 3, 5])
def test_pieces_that_were_cut_lose_no_step(num_finals: int) -> None:
    uncut_playing, cut_playing = Playing(SHORT, 2, 2 * TIME), Playing(SHORT, 2, num_finals)
    uncut = together([uncut_playing.fill() for _ in range(3)])
    pieces = [cut_playing.fill()]
    while sum(piece.length for piece in pieces) < 3 * TIME:
        pieces.append(cut_playing.fill())
        assert pieces[-1].first_env_step == sum(piece.length for piece in pieces[:-1])
        assert np.array_equal(pieces[-1].observation[0], pieces[-2].observation[pieces[-2].length])
    for name, got in together(pieces).items():
        np.testing.assert_array_equal(got[: 3 * TIME], uncut[name], err_msg=name)


def advantages(batch: Batch, lambda_: float) -> Tensor:
    _, values, next_values, continues = evaluate(read_off, batch)
    return generalised_advantages(batch.reward, values, next_values, continues, 0.9, lambda_)


def test_learning_from_pieces_is_exact() -> None:
    uncut, cut = Playing(SHORT, 2, 2 * TIME), Playing(SHORT, 2, 3)
    expected = advantages(stacked(whole(uncut.fill())), 0.8)
    got: list[Tensor] = []
    while sum(map(len, got)) < TIME:
        unroll = cut.fill()
        batch = stacked(whole(unroll))
        got.append(advantages(batch, 0.8)[: unroll.length])
        for b in range(2):
            column = Column(batch, b, lambda row: row[0])
            slow = [column.advantage(t, 0.9, 0.8) for t in range(unroll.length)]
            np.testing.assert_allclose(got[-1][:, b], slow, rtol=1e-4, atol=1e-4)
    # The episodes are as long as the pieces, so that no cut goes through one.
    torch.testing.assert_close(torch.cat(got)[:TIME], expected)


def test_episodes_are_found_where_they_end() -> None:
    playing = Playing(SHORT, 2, 2 * TIME, first_env=6)
    playing.fill()
    episodes = finished_episodes(playing.fill())
    assert sorted(episodes["env_index"].tolist()) == [6] * 4 + [7] * 4
    assert sorted(set(episodes["env_step"].tolist())) == [TIME + t for t in (2, 4, 6, 8)]
    assert set(episodes["number"].tolist()) == {4, 5, 6, 7} and set(episodes["length"].tolist()) == {2}
    assert (episodes["return"] < 0).all()
