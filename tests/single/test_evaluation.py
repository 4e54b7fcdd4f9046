"""Evaluation: each episode is its own, however episodes are dealt."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from numpy.typing import NDArray

from hpcrl.envs.episodes import EpisodeEnvs
from hpcrl.envs.factory import describe_task
from hpcrl.envs.world import World
from hpcrl.models.policy import Policy
from hpcrl.noise import Purpose, uniforms
from hpcrl.roles.evaluation import play as play_all
from tests.policies import policy_of

ENV = "CartPole-v1"


@pytest.fixture(scope="module")
def policy() -> Policy:
    made = policy_of(describe_task(World(ENV)), (4,), "tanh", True)
    made.initialise(1)
    with torch.no_grad():  # leans on the pole's angle, so that choices and lengths differ
        made.head.weight.mul_(60)  # type: ignore[attr-defined]
    return made


def play(policy: Policy, episodes: range, seed: int = 7, deterministic: bool = False) -> NDArray[np.float64]:
    """Returns and lengths, float64 [n, 2]."""
    played = play_all(policy, World(ENV), describe_task(World(ENV)), episodes, seed, deterministic)
    return np.stack([played.returns, played.lengths], 1)


@pytest.mark.parametrize("deterministic", [False, True])
def test_episodes_do_not_depend_on_how_they_are_dealt(policy: Policy, deterministic: bool) -> None:
    whole = play(policy, range(20), deterministic=deterministic)
    parts = [play(policy, part, deterministic=deterministic) for part in (range(1), range(1, 8), range(8, 20))]
    assert np.array_equal(np.concatenate(parts), whole)
    assert whole.shape == (20, 2) and len(np.unique(whole[:, 1])) > 3
    assert np.array_equal(whole[:, 0], whole[:, 1])


def test_more_episodes_than_are_played_side_by_side(policy: Policy) -> None:
    whole = play(policy, range(3, 73))
    assert np.array_equal(np.concatenate([play(policy, range(3, 40)), play(policy, range(40, 73))]), whole)
    assert np.isfinite(whole).all()


def test_only_the_first_episode_of_an_environment_counts(policy: Policy) -> None:
    results = play(policy, range(6))
    for number, (total, length) in enumerate(results):
        envs = EpisodeEnvs(World(ENV), describe_task(World(ENV)), 1, number, 7, Purpose.EVALUATION_SEED)
        steps, ended = 0, False
        while not ended:
            noise = uniforms(7, [number], steps, Purpose.EVALUATION_ACTION, policy.head.noise_size)
            parameters, _ = policy.step(torch.from_numpy(envs.observation.copy()), torch.zeros(1, 0))
            action = policy.head.sample(parameters, torch.from_numpy(noise))
            step = envs.step(action.numpy())
            steps, ended = steps + 1, bool(step.terminated[0] or step.truncated[0])
        assert (total, length) == (steps, steps)


def test_the_seed_chooses_the_episodes(policy: Policy) -> None:
    assert np.array_equal(play(policy, range(12)), play(policy, range(12)))
    assert not np.array_equal(play(policy, range(12)), play(policy, range(12), seed=8))


def test_deterministic_takes_the_most_likely_action(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    sampled, greedy = play(policy, range(12)), play(policy, range(12), deterministic=True)
    assert not np.array_equal(sampled, greedy)
    monkeypatch.setattr("hpcrl.roles.evaluation.uniforms", None)
    assert np.array_equal(play(policy, range(12), deterministic=True), greedy)


def test_no_episodes_and_signs_of_life(policy: Policy) -> None:
    assert play(policy, range(0)).shape == (0, 2)
    assert play(policy, range(4, 4)).shape == (0, 2)
    ticks: list[None] = []
    task = describe_task(World(ENV))
    played = play_all(policy, World(ENV), task, range(5), 7, False, lambda: ticks.append(None))
    assert len(ticks) == played.lengths.max()


class Unpaid(CartPoleEnv):
    """Pays no number."""

    def step(self, action: Any) -> Any:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, float("nan"), terminated, truncated, info


gym.register("hpcrl-tests/Unpaid-v0", Unpaid)  # type: ignore[arg-type]


def test_a_return_that_is_no_number_ends_an_episode_too(policy: Policy) -> None:
    steps = iter(range(2000))

    def tick() -> None:
        if next(steps, None) is None:
            raise TimeoutError

    task = describe_task(World("hpcrl-tests/Unpaid-v0"))
    played = play_all(policy, World("hpcrl-tests/Unpaid-v0"), task, range(2), 7, False, tick)
    assert np.isnan(played.returns).all()
    assert (played.lengths > 1).all()


def test_the_policy_is_left_as_it_was(policy: Policy) -> None:
    before = [parameter.detach().clone() for parameter in policy.parameters()]
    state = torch.random.get_rng_state()
    play(policy, range(5))
    assert all(torch.equal(one, two) for one, two in zip(before, policy.parameters(), strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)
