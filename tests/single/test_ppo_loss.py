"""The loss of ppo against one summed row by row, its targets, and a whole epoch against the gradient of a2c."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from hpcrl.algorithms import ppo
from hpcrl.algorithms.a2c import a2c_loss
from hpcrl.algorithms.batch import Batch
from hpcrl.algorithms.loss import STATISTICS, Loss, Targets
from hpcrl.algorithms.minibatches import columns, minibatches
from hpcrl.algorithms.ppo import clip_range_at, is_too_far, ppo_loss, ppo_targets
from hpcrl.config import A2CConfig, PPOConfig
from hpcrl.models.heads import make_head
from hpcrl.models.policy import Policy
from hpcrl.models.sequence import Evaluation, Sequence
from hpcrl.spaces import Space
from tests.batches import NUM_ACTIONS, ON, TERMINATED, TRUNCATED, Plan, make_batch, plans, spoil
from tests.policies import columns_of, gradient, log_prob, make_policy

OPTIONS: dict[str, Any] = {"gamma": 0.9, "gae_lambda": 0.8, "value_coef": 0.7, "unroll_length": 99}
CONFIG = PPOConfig(**OPTIONS, clip_range=0.3)
ENTROPY_COEF = 0.3
SMALL = Plan([[ON, TERMINATED, ON], [TRUNCATED, ON, ON]], [True, False], [False, False], 3)
seeds = st.integers(0, 2**32 - 1)
Rows = NDArray[np.float64]


class Table:
    """A network whose outputs are given for each row, and are what is learned: float32 [T, B, actions] and [T, B]."""

    def __init__(self, batch: Batch, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = batch.reward.shape
        self.logits = torch.randn(*shape, NUM_ACTIONS, generator=generator).requires_grad_()
        self.values = torch.randn(shape, generator=generator).mul_(3).requires_grad_()
        self.head = make_head(Space("discrete", (), "int64", NUM_ACTIONS), 1)

    def over(self, sequence: Sequence) -> Evaluation:
        assert sequence.starts.shape == self.values.shape and not len(sequence.final_index)
        return Evaluation(self.logits, self.values, self.values[0, :0])


def acted_near(batch: Batch, now: Tensor, seed: int, spread: float = 0.4) -> Batch:
    """The batch as if acted by a policy whose ratios to `now`, log-probabilities, are e^(spread * normal number)."""
    noise = torch.from_numpy(np.random.default_rng([seed, 2]).normal(0, spread, batch.reward.shape))
    return replace(batch, behaviour_log_prob=(now + noise.float()) * batch.valid)


def alone(sums: Tensor) -> Tensor:
    """The sum over one learner."""
    return sums


def random_targets(batch: Batch, seed: int) -> Targets:
    """Advantages and values float32 [T, B], 0 in ignored rows."""
    numbers = torch.from_numpy(np.random.default_rng([seed, 3]).normal(0, 2, (2, *batch.reward.shape))).float()
    return Targets(*(numbers * batch.valid))


class Reference(NamedTuple):
    """A loss, its gradients [T, B, actions] and [T, B] by what the network gave, and its statistics by name."""

    total: float
    logits: Rows
    values: Rows
    sums: dict[str, float]


def reference(table: Table, batch: Batch, targets: Targets, config: PPOConfig) -> Reference:
    """All of it in plain numbers, one row after the other."""
    logits, values = (x.detach().double().numpy() for x in (table.logits, table.values))
    by_logits, by_values = np.zeros_like(logits), np.zeros_like(values)
    sums, total, low, high = dict.fromkeys(STATISTICS, 0.0), 0.0, 1 - config.clip_range, 1 + config.clip_range
    for t, b in np.argwhere(batch.valid.numpy()):
        advantage, target, recorded = (
            float(x[t, b]) for x in (targets.advantages, targets.values, batch.behaviour_log_prob)
        )
        p = np.exp(logits[t, b] - logits[t, b].max())
        p /= p.sum()
        action = int(batch.action[t, b])
        log_ratio = math.log(p[action]) - recorded
        ratio = math.exp(log_ratio)
        policy_loss = -min(ratio * advantage, min(max(ratio, low), high) * advantage)
        pushed_out = ratio > high if advantage > 0 else ratio < low
        score = np.eye(NUM_ACTIONS)[action] - p
        if not pushed_out:
            by_logits[t, b] -= advantage * ratio * score
        entropy = -float((p * np.log(p)).sum())
        by_logits[t, b] += ENTROPY_COEF * p * (np.log(p) + entropy)

        error, slope = target - values[t, b], -(target - values[t, b])
        value_loss = error**2 / 2
        if config.value_clip_range is not None:
            old = target - advantage
            moved = values[t, b] - old
            clipped_error = target - (old + min(max(moved, -config.value_clip_range), config.value_clip_range))
            if clipped_error**2 / 2 > value_loss:
                value_loss = clipped_error**2 / 2
                slope = -clipped_error if abs(moved) < config.value_clip_range else 0.0
        by_values[t, b] = config.value_coef * slope
        total += policy_loss + config.value_coef * value_loss - ENTROPY_COEF * entropy
        row = {
            "steps": 1,
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "approx_kl": ratio - 1 - log_ratio,
            "target": target,
            "target_squared": target**2,
            "error": error,
            "error_squared": error**2,
            "rho": ratio,
            "rho_clipped": not low <= ratio <= high,
        }
        sums = {name: sums[name] + row[name] for name in STATISTICS}
    return Reference(total, by_logits, by_values, sums)


@pytest.mark.parametrize("value_clip_range", [None, 0.5, 50.0])
@settings(max_examples=40, deadline=None)
@given(plan=plans(max_time=5), seed=seeds)
def test_loss_gradient_and_statistics_equal_the_sum_over_rows(
    value_clip_range: float | None, plan: Plan, seed: int
) -> None:
    config = replace(CONFIG, value_clip_range=value_clip_range)
    batch = make_batch(plan, seed)
    table = Table(batch, seed)
    batch = acted_near(batch, table.head.log_prob(table.logits.detach(), batch.action), seed)
    targets = random_targets(batch, seed)
    loss = ppo_loss(cast(Policy, table), batch, config, ENTROPY_COEF, None, targets)
    expected = reference(table, batch, targets, config)

    def close(got: Tensor, wanted: Rows | float | list[float]) -> None:
        np.testing.assert_allclose(got.detach().double().numpy(), wanted, rtol=1e-4, atol=1e-4)

    close(loss.total, expected.total)
    close(loss.statistics, [expected.sums[name] for name in STATISTICS])
    by_logits, by_values = torch.autograd.grad(loss.total, [table.logits, table.values])
    close(by_logits, expected.logits)
    close(by_values, expected.values)


@pytest.mark.parametrize(
    ("value", "loss", "slope"),
    # Targets are 3, values were 1 then, and the clip is 0.5.
    [(1.0, 2.0, -2.0), (1.25, 1.53125, -1.75), (2.0, 1.125, 0.0), (0.0, 4.5, -3.0), (6.0, 4.5, 3.0)],
)
def test_a_value_that_moved_too_far_towards_its_target_is_pushed_no_further(
    value: float, loss: float, slope: float
) -> None:
    values = torch.tensor([[value]], requires_grad=True)
    targets = Targets(torch.tensor([[2.0]]), torch.tensor([[3.0]]))
    total = 0.5 * (3 - values) ** 2 + ppo.clipped_value_excess(values, targets, 0.5)
    (by_value,) = torch.autograd.grad(total.sum(), values)
    assert (total.item(), by_value.item()) == pytest.approx((loss, slope))


@settings(max_examples=20, deadline=None)
@given(plan=plans(max_time=5), seed=seeds)
def test_targets_are_advantages_and_values_of_now_whatever_is_evaluated_at_once(plan: Plan, seed: int) -> None:
    policy, batch = make_policy(), make_batch(plan, seed)
    targets = ppo_targets(policy, spoil(batch, 1e15), CONFIG)
    assert not targets.values.requires_grad and not targets.advantages.requires_grad
    for b, column in enumerate(columns_of(policy, batch)):
        for t, valid in enumerate(column.valid):
            advantage = column.advantage(t, CONFIG.gamma, CONFIG.gae_lambda) if valid else 0.0
            value = advantage + column.values[t] if valid else 0.0
            assert float(targets.advantages[t, b]) == pytest.approx(advantage, rel=1e-3, abs=1e-3)
            assert float(targets.values[t, b]) == pytest.approx(value, rel=1e-3, abs=1e-3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo, "_NUMBERS_AT_ONCE", 2 * 256 * len(batch.reward))
        seen: list[int] = []
        policy.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
        for whole, in_parts in zip(targets, ppo_targets(policy, batch, CONFIG), strict=True):
            torch.testing.assert_close(whole, in_parts)
    assert len(seen) == -(-len(plan.ends) // 2)


@pytest.mark.parametrize("whole_columns", [False, True])
@settings(max_examples=15, deadline=None)
@given(plan=plans(max_time=5), seed=seeds)
def test_an_epoch_with_the_weights_that_acted_has_the_gradient_of_a2c(
    whole_columns: bool, plan: Plan, seed: int
) -> None:
    """And a minibatch, where there is one only, that of the batch."""
    policy, batch = make_policy(), make_batch(plan, seed)
    batch = replace(batch, behaviour_log_prob=log_prob(policy, batch))
    targets = ppo_targets(policy, batch, CONFIG)
    expected = gradient(policy, a2c_loss(policy, batch, A2CConfig(**OPTIONS), ENTROPY_COEF, None).total)
    num_envs = batch.reward.shape[1]
    for count in (1, num_envs):
        config = replace(CONFIG, epochs=1, minibatches=count, num_envs=num_envs)
        parts = list(minibatches(batch, targets, config, 5, whole_columns, alone))
        assert len(parts) == count
        losses = [ppo_loss(policy, part, config, ENTROPY_COEF, None, own) for part, own, _ in parts]
        summed = sum(gradient(policy, loss.total) for loss in losses)
        torch.testing.assert_close(summed, expected, rtol=1e-3, atol=2e-3)
        assert sum(float(loss.statistics[STATISTICS.index("rho_clipped")]) for loss in losses) == 0


@pytest.mark.parametrize("whole_columns", [False, True])
@settings(max_examples=15, deadline=None)
@given(plan=plans(max_time=4, max_envs=5), seed=seeds, data=st.data())
def test_the_parts_of_several_learners_sum_to_the_whole(
    whole_columns: bool, plan: Plan, seed: int, data: st.DataObject
) -> None:
    """Of every minibatch; learners may have nothing of it."""
    policy, batch = make_policy(), make_batch(plan, seed)
    batch = acted_near(batch, log_prob(policy, batch), seed)
    num_envs = batch.reward.shape[1]
    config = replace(CONFIG, epochs=2, minibatches=num_envs, num_envs=num_envs, value_clip_range=1.0)
    cut = data.draw(st.integers(0, num_envs))

    def losses(of: slice) -> list[Loss]:
        own = columns(batch, of)
        targets = ppo_targets(policy, own, config)
        parts = minibatches(own, targets, config, 5, whole_columns, alone)
        return [ppo_loss(policy, part, config, ENTROPY_COEF, None, theirs) for part, theirs, _ in parts]

    for one, other, whole in zip(
        losses(slice(0, cut)), losses(slice(cut, num_envs)), losses(slice(0, num_envs)), strict=True
    ):
        torch.testing.assert_close(one.statistics + other.statistics, whole.statistics, rtol=1e-4, atol=1e-3)
        summed = gradient(policy, one.total) + gradient(policy, other.total)
        torch.testing.assert_close(summed, gradient(policy, whole.total), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("garbage", [1e30, float("inf"), float("nan")])
@settings(max_examples=10, deadline=None)
@given(plan=plans(max_time=5), seed=seeds)
def test_ignored_rows_add_nothing(garbage: float, plan: Plan, seed: int) -> None:
    policy, batch = make_policy(), make_batch(plan, seed)
    batch = acted_near(batch, log_prob(policy, batch), seed)
    spoilt = replace(spoil(batch, garbage), observation=spoil(batch, 1e15).observation)
    config = replace(CONFIG, value_clip_range=0.5)
    clean, dirty = (
        ppo_loss(policy, each, config, ENTROPY_COEF, None, ppo_targets(policy, each, config))
        for each in (batch, spoilt)
    )
    assert torch.equal(clean.statistics, dirty.statistics) and torch.equal(clean.total, dirty.total)
    torch.testing.assert_close(gradient(policy, clean.total), gradient(policy, dirty.total))


def test_infinite_values_of_ignored_rows_reach_no_gradient() -> None:
    batch = make_batch(SMALL, 0)
    table = Table(batch, 0)
    assert not batch.valid.all()
    with torch.no_grad():
        table.values.masked_fill_(~batch.valid, math.inf)
    config = replace(CONFIG, value_clip_range=0.5)
    loss = ppo_loss(cast(Policy, table), batch, config, ENTROPY_COEF, None, random_targets(batch, 0))
    (by_values,) = torch.autograd.grad(loss.total, table.values)
    assert loss.total.isfinite() and by_values.isfinite().all() and not by_values[~batch.valid].any()


def test_a_learner_without_rows_gives_zeros_and_still_sums() -> None:
    policy, calls = make_policy(), []
    batch = columns(make_batch(SMALL, 0), slice(0, 0))

    def total(sums: Tensor) -> Tensor:
        calls.append(sums.tolist())
        return sums + torch.tensor([[2.0], [1.0], [5.0]])

    for whole_columns in (False, True):
        config = replace(CONFIG, epochs=1, minibatches=2, num_envs=2, value_clip_range=0.5)
        targets = ppo_targets(policy, batch, config)
        for part, own, normalise in minibatches(batch, targets, config, 5, whole_columns, total):
            loss = ppo_loss(policy, part, config, ENTROPY_COEF, normalise, own)
            loss.total.backward()
            assert float(loss.total.detach()) == 0 and not loss.statistics.any()
    assert calls == [[[0.0] * 2] * 3] * 2
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in policy.parameters())


def test_advantages_are_standardised_anew_for_every_minibatch_and_value_targets_are_not() -> None:
    policy, batch = make_policy(), make_batch(SMALL, 4)
    batch = replace(batch, behaviour_log_prob=log_prob(policy, batch))
    targets = ppo_targets(policy, batch, CONFIG)
    seen: list[Tensor] = []

    def shift(advantages: Tensor, valid: Tensor) -> Tensor:
        assert torch.equal(valid, batch.valid)
        seen.append(advantages)
        return advantages + 1

    plain = ppo_loss(policy, batch, CONFIG, ENTROPY_COEF, None, targets)
    for _ in range(2):
        shifted = ppo_loss(policy, batch, CONFIG, ENTROPY_COEF, shift, targets)
        expected = plain.statistics.clone()
        expected[STATISTICS.index("policy_loss")] -= batch.valid.sum()
        torch.testing.assert_close(shifted.statistics, expected)
    assert all(torch.equal(advantages, targets.advantages) for advantages in seen) and len(seen) == 2


def test_who_hands_in_no_targets_gets_those_of_now_and_the_clip_of_the_configuration() -> None:
    policy = make_policy()
    batch = acted_near(make_batch(SMALL, 4), log_prob(policy, make_batch(SMALL, 4)), 4)
    make: Callable[..., Loss] = ppo_loss
    default = make(policy, batch, CONFIG, ENTROPY_COEF, None)
    given_all = make(policy, batch, CONFIG, ENTROPY_COEF, None, ppo_targets(policy, batch, CONFIG), CONFIG.clip_range)
    assert torch.equal(default.statistics, given_all.statistics) and torch.equal(default.total, given_all.total)
    tight = make(policy, batch, CONFIG, ENTROPY_COEF, None, None, 0.01)
    also_tight = make(policy, batch, replace(CONFIG, clip_range=0.01), ENTROPY_COEF, None)
    assert torch.equal(tight.statistics, also_tight.statistics) and torch.equal(tight.total, also_tight.total)
    assert not torch.equal(tight.total, default.total)
    place = STATISTICS.index("rho_clipped")
    assert tight.statistics[place] > default.statistics[place]


def test_the_clip_range_changes_linearly_where_a_last_one_is_given() -> None:
    fixed, falling = PPOConfig(total_env_steps=1000), PPOConfig(total_env_steps=1000, clip_range_final=0.0)
    assert [clip_range_at(fixed, steps) for steps in (0, 500, 2000)] == [0.2] * 3
    assert [clip_range_at(falling, steps) for steps in (0, 500, 1000, 2000)] == pytest.approx([0.2, 0.1, 0.0, 0.0])


def test_the_policy_is_too_far_beyond_one_and_a_half_times_the_target_on_average() -> None:
    near, far = ({"approx_kl": 40 * kl, "steps": 40.0} for kl in (0.0149, 0.0151))
    config = PPOConfig(target_kl=0.01)
    assert is_too_far(config, far) and not is_too_far(config, near)
    assert not is_too_far(PPOConfig(), {"approx_kl": 1e9, "steps": 1.0})
    assert not is_too_far(config, {"approx_kl": 0.0, "steps": 0.0})
