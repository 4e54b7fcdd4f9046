"""The loss of a2c against one summed step by step, its masks, and its parts over several learners."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hpcrl.algorithms.a2c import a2c_loss
from hpcrl.algorithms.batch import Batch
from hpcrl.algorithms.loss import STATISTICS, Loss
from hpcrl.config import A2CConfig
from hpcrl.models.policy import Policy
from tests.batches import ON, TERMINATED, Plan, columns, make_batch, plans, spoil
from tests.policies import columns_of, gradient, make_policy

CONFIG = A2CConfig(gamma=0.9, gae_lambda=0.8, value_coef=0.7)
ENTROPY_COEF = 0.3
seeds = st.integers(0, 2**32 - 1)


def loss_of(policy: Policy, batch: Batch, config: A2CConfig = CONFIG) -> Loss:
    return a2c_loss(policy, batch, config, ENTROPY_COEF, None)


def reference(policy: Policy, batch: Batch) -> Loss:
    """Loss and statistics, one step after the other, with advantages that are plain numbers."""
    total, sums = torch.zeros(()), np.zeros(len(STATISTICS))
    for b, column in enumerate(columns_of(policy, batch)):
        for t in np.flatnonzero(column.valid).tolist():
            advantage = column.advantage(t, CONFIG.gamma, CONFIG.gae_lambda)
            target = advantage + column.values[t]
            logits, value = policy(batch.observation[t, b])
            distribution = torch.distributions.Categorical(logits=logits)
            log_prob, entropy = distribution.log_prob(batch.action[t, b]), distribution.entropy()
            value_loss = (target - value) ** 2 / 2
            total = total - log_prob * advantage + CONFIG.value_coef * value_loss - ENTROPY_COEF * entropy
            log_prob, value, value_loss, entropy = (x.item() for x in (log_prob, value, value_loss, entropy))
            log_ratio = log_prob - float(batch.behaviour_log_prob[t, b])
            sums += [
                1,
                -log_prob * advantage,
                value_loss,
                entropy,
                np.exp(log_ratio) - 1 - log_ratio,
                target,
                target**2,
                target - value,
                (target - value) ** 2,
                np.exp(log_ratio),
                0,
            ]
    return Loss(total, torch.tensor(sums, dtype=torch.float32), None)


def assert_same(policy: Policy, got: Loss, expected: Loss) -> None:
    torch.testing.assert_close(got.statistics, expected.statistics, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(got.total, expected.total, rtol=1e-3, atol=1e-3)
    if expected.total.requires_grad:
        torch.testing.assert_close(gradient(policy, got.total), gradient(policy, expected.total), rtol=1e-3, atol=2e-3)


@settings(max_examples=25, deadline=None)
@given(plans(max_time=5), seeds)
def test_loss_gradient_and_statistics_equal_the_sum_over_steps(plan: Plan, seed: int) -> None:
    policy, batch = make_policy(), make_batch(plan, seed)
    assert_same(policy, loss_of(policy, batch), reference(policy, batch))


def test_statistics_are_named_in_their_order() -> None:
    assert STATISTICS == (
        "steps",
        "policy_loss",
        "value_loss",
        "entropy",
        "approx_kl",
        "target",
        "target_squared",
        "error",
        "error_squared",
        "rho",
        "rho_clipped",
    )


@settings(max_examples=15, deadline=None)
@given(plans(max_time=5), seeds)
def test_ignored_rows_add_nothing(plan: Plan, seed: int) -> None:
    policy, batch = make_policy(), make_batch(plan, seed)
    clean, spoilt = loss_of(policy, batch), loss_of(policy, spoil(batch, 1e15))
    assert torch.equal(clean.statistics, spoilt.statistics) and torch.equal(clean.total, spoilt.total)
    torch.testing.assert_close(gradient(policy, clean.total), gradient(policy, spoilt.total))


@pytest.mark.parametrize("garbage", [float("inf"), float("nan")])
def test_rewards_of_ignored_rows_reach_no_gradient(garbage: float) -> None:
    policy, batch = (
        make_policy(),
        make_batch(Plan([[ON, TERMINATED, ON, ON]] * 2, [True] * 2, [False] * 2, 4), 5),
    )
    spoilt = replace(batch, reward=batch.reward.masked_fill(~batch.valid, garbage))
    expected = gradient(policy, loss_of(policy, batch).total)
    torch.testing.assert_close(gradient(policy, loss_of(policy, spoilt).total), expected)


@settings(max_examples=15, deadline=None)
@given(plans(max_envs=5), seeds, st.data())
def test_the_parts_of_several_learners_sum_to_the_whole(plan: Plan, seed: int, data: st.DataObject) -> None:
    policy, batch = make_policy(), make_batch(plan, seed)
    cut = data.draw(st.integers(0, len(plan.ends)))
    parts = [loss_of(policy, columns(batch, first, end)) for first, end in ((0, cut), (cut, len(plan.ends)))]
    whole = loss_of(policy, batch)
    summed = sum(gradient(policy, part.total) for part in parts)
    torch.testing.assert_close(summed, gradient(policy, whole.total), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(parts[0].statistics + parts[1].statistics, whole.statistics, rtol=1e-4, atol=1e-4)


def test_a_learner_without_environments_gives_zeros() -> None:
    policy = make_policy()
    batch = columns(make_batch(Plan([[ON, TERMINATED]], [False], [False], 2), 0), 0, 0)
    loss = loss_of(policy, batch)
    loss.total.backward()
    assert float(loss.total.detach()) == 0 and not loss.statistics.any()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in policy.parameters())


def test_the_normaliser_changes_the_advantages_but_not_the_targets() -> None:
    policy, batch = make_policy(), make_batch(Plan([[ON, TERMINATED, ON]] * 2, [True] * 2, [False] * 2, 3), 5)
    seen: list[Tensor] = []

    def double(advantages: Tensor, valid: Tensor) -> Tensor:
        seen.append(valid)
        return 2 * advantages

    plain = loss_of(policy, batch)
    normalised = a2c_loss(policy, batch, CONFIG, ENTROPY_COEF, double)
    assert torch.equal(seen[0], batch.valid)
    factors = torch.ones(len(STATISTICS))
    factors[STATISTICS.index("policy_loss")] = 2
    torch.testing.assert_close(normalised.statistics, factors * plain.statistics)


@pytest.mark.parametrize("coefficient", ["value_coef", "entropy"])
def test_each_part_has_a_weight_of_its_own(coefficient: str) -> None:
    policy, batch = make_policy(), make_batch(Plan([[ON, TERMINATED, ON]], [False], [False], 3), 5)
    weighed = {"value_coef": 0.0, "entropy": 0.0, coefficient: 1.0}
    config = replace(CONFIG, value_coef=weighed["value_coef"])
    loss = a2c_loss(policy, batch, config, weighed["entropy"], None)
    sums = dict(zip(STATISTICS, loss.statistics.tolist(), strict=True))
    expected = sums["policy_loss"] + weighed["value_coef"] * sums["value_loss"] - weighed["entropy"] * sums["entropy"]
    assert float(loss.total.detach()) == pytest.approx(expected, rel=1e-4)
