"""The actor: no step is lost between unrolls or by a cut, and what it records is what it did."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import tests.no_mpi  # noqa: F401

# isort: split
import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from hpcrl.activity import Activity
from hpcrl.algorithms.batch import Batch, evaluate
from hpcrl.algorithms.returns import generalised_advantages
from hpcrl.envs.episodes import EpisodeEnvs
from hpcrl.envs.factory import describe_task
from hpcrl.models.policy import Policy
from hpcrl.roles.actor import Actor
from hpcrl.roles.batching import Batcher, finished_episodes
from hpcrl.signals import Requests
from hpcrl.unroll import Unroll, UnrollSpec
from tests.reference import Column

SEED, TIME = 5, 8
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


class Waiter:
    """What an actor needs of a waiter while it acts."""

    def __init__(self) -> None:
        self.activity, self.ticks = Activity(), 0

    def tick(self) -> None:
        self.ticks += 1


class Playing:
    """An actor, and what it was made of."""

    def __init__(self, env_id: str, num_envs: int, num_finals: int, first_env: int = 0, rank: int = 3) -> None:
        task = describe_task(env_id, "sync")
        self.policy = Policy(task, (6,), "tanh", False)
        self.policy.initialise(2)
        self.requests, self.waiter = Requests(), Waiter()
        self.envs = EpisodeEnvs(env_id, "sync", task, num_envs, first_env, SEED)
        self.spec = UnrollSpec(task, TIME, num_envs, first_env, num_finals)
        self._actor = Actor(rank, self.envs, self.policy, SEED, self.requests, cast(Any, self.waiter))

    def fill(self, version: int = 0) -> Unroll:
        """One unroll, over memory that held something else before."""
        unroll = Unroll(self.spec)
        unroll.buffer[:] = 1
        self._actor.fill(unroll, version)
        return unroll


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
    other = EpisodeEnvs(env_id, "sync", playing.spec.task, 3, 0, SEED)
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
    whole = [unroll for playing in [Playing("CartPole-v1", 4, 8)] for unroll in (playing.fill(), playing.fill())]
    halves = []
    for first in (0, 2):
        playing = Playing("CartPole-v1", 2, 4, first)
        halves.append(together([playing.fill(), playing.fill()]))
    for name, expected in together(whole).items():
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


def test_an_actor_without_environments_fills_nothing() -> None:
    unroll = Playing("CartPole-v1", 0, 0).fill(version=4)
    assert (unroll.policy_version, unroll.length, unroll.valid.size) == (4, TIME, 0)


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
    whole_playing, cut_playing = Playing(SHORT, 2, 2 * TIME), Playing(SHORT, 2, num_finals)
    whole = together([whole_playing.fill() for _ in range(3)])
    pieces = [cut_playing.fill()]
    while sum(piece.length for piece in pieces) < 3 * TIME:
        pieces.append(cut_playing.fill())
        assert pieces[-1].first_env_step == sum(piece.length for piece in pieces[:-1])
        assert np.array_equal(pieces[-1].observation[0], pieces[-2].observation[pieces[-2].length])
    for name, got in together(pieces).items():
        np.testing.assert_array_equal(got[: 3 * TIME], whole[name], err_msg=name)


def read_off(observation: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros(*observation.shape[:-1], 2), observation[..., 0]


def advantages(batch: Batch, lambda_: float) -> Tensor:
    _, values, next_values, continues = evaluate(read_off, batch)
    return generalised_advantages(batch.reward, values, next_values, continues, 0.9, lambda_)


def test_learning_from_pieces_is_exact() -> None:
    whole, cut = Playing(SHORT, 2, 2 * TIME), Playing(SHORT, 2, 3)
    expected = advantages(Batcher([whole.spec]).stack([whole.fill()]), 0.8)
    got: list[Tensor] = []
    while sum(map(len, got)) < TIME:
        unroll = cut.fill()
        batch = Batcher([cut.spec]).stack([unroll])
        got.append(advantages(batch, 0.8)[: unroll.length])
        for b in range(2):
            column = Column(batch, b, lambda row: row[0])
            slow = [column.advantage(t, 0.9, 0.8) for t in range(unroll.length)]
            np.testing.assert_allclose(got[-1][:, b], slow, rtol=1e-4, atol=1e-4)
    # The episodes are as long as the pieces, so that no cut goes through one.
    torch.testing.assert_close(torch.cat(got)[:TIME], expected)


def test_unrolls_of_several_actors_are_stacked_side_by_side() -> None:
    first, second, nobody = Playing(SHORT, 2, 4), Playing(SHORT, 3, 9, first_env=2), Playing(SHORT, 0, 0)
    players = [first, nobody, second]
    batcher = Batcher([playing.spec for playing in players])
    for _ in range(2):
        unrolls = [playing.fill() for playing in players]
        batch = batcher.stack(unrolls)
        for name in (
            "observation",
            "action",
            "reward",
            "behaviour_log_prob",
            "terminated",
            "truncated",
            "valid",
        ):
            expected = np.concatenate([getattr(unroll, name) for unroll in unrolls], 1)
            assert np.array_equal(getattr(batch, name).numpy(), expected)
        ends = batch.truncated & ~batch.terminated
        assert sorted(batch.final_index.tolist()) == ends.nonzero().tolist()
        for (t, b), final in zip(batch.final_index.tolist(), batch.final_observation, strict=True):
            unroll, column = (unrolls[0], b) if b < 2 else (unrolls[2], b - 2)
            place = unroll.final_index[: unroll.num_finals].tolist().index([t, column])
            assert np.array_equal(final.numpy(), unroll.final_observation[place])


def test_episodes_are_found_where_they_end() -> None:
    playing = Playing(SHORT, 2, 2 * TIME, first_env=6)
    playing.fill()
    episodes = finished_episodes(playing.fill())
    assert sorted(episodes["env_index"].tolist()) == [6] * 4 + [7] * 4
    assert sorted(set(episodes["env_step"].tolist())) == [TIME + t for t in (2, 4, 6, 8)]
    assert set(episodes["number"].tolist()) == {4, 5, 6, 7} and set(episodes["length"].tolist()) == {2}
    assert (episodes["return"] < 0).all()
