"""Behaviour: what is recorded is what was sampled, whoever computed it, and with or without random actions."""

from __future__ import annotations

from typing import Any, cast

import tests.no_mpi  # noqa: F401

# isort: split
import numpy as np
import pytest
import torch
from torch import Tensor

from hpcrl.cluster.inference import QuestionSpec, SharedChannel, group_sizes
from hpcrl.models.exploration import mix_uniform
from hpcrl.roles.inference import AnsweringService, Inference
from hpcrl.unroll import Unroll, aligned_zeros
from tests.playing import BusyWaiter, Playing, no_fence

KINDS = [("sync", False), ("sync", True), ("native", False), ("native", True)]


def lean(playing: Playing) -> Playing:
    """Far from uniform, so that a wrong distribution is seen."""
    with torch.no_grad():
        playing.policy.head.weight.mul_(100)
    return playing


def replayed(playing: Playing, unroll: Unroll, epsilon: float) -> np.ndarray:
    """Log-probabilities that a learner with equal weights finds for an unroll."""
    with torch.no_grad():
        logits, _ = playing.policy(torch.from_numpy(unroll.observation[: unroll.length]))
        logits = mix_uniform(logits, epsilon) if epsilon else logits
        return playing.policy.head.log_prob(logits, torch.from_numpy(unroll.action[: unroll.length])).numpy()


@pytest.mark.parametrize(("vector", "central"), KINDS)
@pytest.mark.parametrize("epsilon", [0.0, 0.3])
def test_a_replay_with_equal_weights_gives_the_recorded_log_probabilities(
    vector: str, central: bool, epsilon: float
) -> None:
    playing = lean(Playing("CartPole-v1", 5, 20, vector=vector, central=central, epsilon=epsilon, time=24))
    gaps = []
    for _ in range(3):
        unroll = playing.fill()
        expected = replayed(playing, unroll, epsilon)
        got = unroll.behaviour_log_prob[: unroll.length]
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
        gaps.append(np.abs(got - replayed(playing, unroll, 0.0)).max())
        assert np.unique(unroll.action).size == 2
    assert (max(gaps) > 0.05) == bool(epsilon)


def test_actions_are_as_frequent_as_the_mixture_says() -> None:
    epsilon, count = 0.4, 0
    playing = lean(Playing("CartPole-v1", 40, 400, vector="native", epsilon=epsilon, time=60))
    difference = variance = 0.0
    for _ in range(3):
        unroll = playing.fill()
        with torch.no_grad():
            logits, _ = playing.policy(torch.from_numpy(unroll.observation[: unroll.length]))
            right = (1 - epsilon) * torch.softmax(logits, -1)[..., 1].numpy() + epsilon / 2
        difference += float((unroll.action[: unroll.length] - right).sum())
        variance += float((right * (1 - right)).sum())
        count += right.size
        # Behaviour without the random part is far from what is seen, else this test could not fail.
        assert np.abs(torch.softmax(logits, -1)[..., 1].numpy() - right).mean() > 0.05
        unlikely = torch.softmax(logits, -1).numpy().min(-1) < 0.1
        chosen = np.take_along_axis(torch.softmax(logits, -1).numpy(), unroll.action[: unroll.length, :, None], -1)
        assert (chosen[..., 0][unlikely] < 0.5).mean() > 0.15
    assert abs(difference) < 4.5 * np.sqrt(variance), count


def test_everything_is_random_at_an_epsilon_of_one() -> None:
    playing = lean(Playing("CartPole-v1", 3, 12, epsilon=1.0))
    unroll = playing.fill()
    np.testing.assert_allclose(unroll.behaviour_log_prob[: unroll.length], np.log(0.5), atol=1e-6)


@pytest.mark.parametrize("num_envs", [1, 2, 5])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_the_learners_answers_give_the_unroll_that_the_actors_own_network_gives(env_id: str, num_envs: int) -> None:
    own, asking = (Playing(env_id, num_envs, 4 * num_envs, 3, central=central) for central in (False, True))
    assert len(asking.groups) == min(2, num_envs)
    assert [group.first_env for group in asking.groups] == [3, 3 + (num_envs + 1) // 2][: len(asking.groups)]
    for _ in range(4):
        one, other = own.fill(version=0), asking.fill(version=0)
        for field in one.spec.fields:
            if field.name not in ("final_observation", "final_index", "row_version"):
                tolerance = 1e-6 if one.action.dtype == np.int64 else 2e-4
                got, expected = getattr(other, field.name), getattr(one, field.name)
                np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance, err_msg=field.name)
        if one.action.dtype == np.int64:
            assert np.array_equal(one.action, other.action)
        finals = [sorted(map(tuple, u.final_index[: u.num_finals].tolist())) for u in (one, other)]
        assert finals[0] == finals[1]


def test_every_row_has_the_version_of_the_weights_that_acted() -> None:
    playing = lean(Playing("CartPole-v1", 3, 24, central=True))
    weights = [parameter.detach().clone() for parameter in playing.policy.parameters()]
    logits: list[Tensor] = []

    def serve_and_learn() -> bool:
        asked = playing.service.serve()
        if asked:
            # New weights after every answer.
            playing.learner_updates += 1
            with torch.no_grad():
                playing.policy.head.bias.add_(torch.tensor([0.3, 0.0]))
        return asked

    playing.waiter.chores[:] = [serve_and_learn]
    playing.learner_updates = 40
    unroll = playing.fill(version=7)
    versions = unroll.row_version
    assert versions.shape == (unroll.length, 3) and versions[0].min() == unroll.policy_version >= 40
    # Both groups ask before either waits, so the first answer is to both.
    assert np.array_equal(versions[:, 0], versions[:, 1]) and (versions[1:] > versions[:-1]).all()
    with torch.no_grad():
        for parameter, before in zip(playing.policy.parameters(), weights, strict=True):
            parameter.copy_(before)
        for t in range(unroll.length):
            for b in range(3):
                base, _ = playing.policy(torch.from_numpy(unroll.observation[t, b]))
                logits.append(base + torch.tensor([0.3, 0.0]) * float(versions[t, b] - 40))
    log_prob = playing.policy.head.log_prob(torch.stack(logits), torch.from_numpy(unroll.action.reshape(-1)))
    np.testing.assert_allclose(unroll.behaviour_log_prob.reshape(-1), log_prob, atol=1e-5)


class Counting:
    """Inference that insists on an answer to every question before the next."""

    def __init__(self, inner: Inference) -> None:
        self._inner, self.open = inner, set[int]()

    def begin(self) -> None:
        self._inner.begin()

    def ask(self, group: int, observation: Tensor, state: Tensor) -> None:
        assert group not in self.open, "a question while another is out"
        self.open.add(group)
        self._inner.ask(group, observation, state)

    def answer(self, group: int) -> tuple[Tensor, int | None]:
        self.open.remove(group)
        return self._inner.answer(group)


@pytest.mark.parametrize("num_finals", [3, 5, 12])
def test_no_question_is_left_open_by_an_unroll_even_where_it_is_cut(num_finals: int) -> None:
    import gymnasium as gym

    short = "hpcrl-tests/TwoStepPendulum-v0"
    if short not in gym.registry:
        gym.register(short, "gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=2)
    playing = Playing(short, 3, num_finals, central=True)
    counting = Counting(playing.inference)
    cast(Any, playing.actor)._inference = counting
    lengths = []
    for _ in range(4):
        lengths.append(playing.fill().length)
        assert not counting.open
        assert all(channel.is_answered() for channel in playing.channels)
    assert (min(lengths) < 8) == (num_finals < 12)


def test_groups_are_two_halves() -> None:
    assert [list(group_sizes(count)) for count in range(6)] == [[], [1], [1, 1], [2, 1], [2, 2], [3, 2]]


def test_questions_of_several_actors_are_answered_in_one_pass_each_with_its_own() -> None:
    playing = lean(Playing("CartPole-v1", 1, 1))
    specs = [QuestionSpec(playing.spec.task.observation, size, 2) for size in (3, 1, 2)]
    memories = [aligned_zeros(spec.nbytes) for spec in specs]
    asking = [SharedChannel(spec, memory, no_fence) for spec, memory in zip(specs, memories, strict=True)]
    answering = [SharedChannel(spec, memory, no_fence) for spec, memory in zip(specs, memories, strict=True)]
    passes = []

    def pass_once(observation: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        passes.append(len(observation))
        return playing.policy.step(observation, state)

    class Network:
        step = staticmethod(pass_once)
        refresh = staticmethod(lambda: None)
        value = None

    version = 0
    service = AnsweringService(cast(Any, Network()), answering, lambda: version, cast(Any, BusyWaiter()))
    rng = np.random.default_rng(0)
    assert not service.serve() and passes == []
    for version, who in enumerate([(0, 2), (1,), (0, 1, 2), (2, 0)]):
        before = [channel.parameters.copy() for channel in asking]
        for index in who:
            asking[index].observation[:] = rng.normal(size=asking[index].observation.shape)
            asking[index].ask()
            assert not asking[index].is_answered()
        assert service.serve() and not service.serve()
        assert passes.pop() == sum(specs[index].num_envs for index in who) and passes == []
        for index, channel in enumerate(asking):
            assert channel.is_answered()
            if index not in who:
                assert np.array_equal(channel.parameters, before[index])
                continue
            asked = torch.from_numpy(channel.observation.copy())
            expected = playing.policy.step(asked, torch.zeros(len(asked), 0))[0].numpy()
            np.testing.assert_allclose(channel.parameters, expected, rtol=1e-5, atol=1e-6)
            assert channel.version.tolist() == [version]
