"""The losses of impala and appo against ones summed step by step, against a2c's, and what they keep for later."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hpcrl.algorithms.appo import clipped_surrogate
from hpcrl.algorithms.batch import Batch
from hpcrl.algorithms.loss import STATISTICS, Loss, Targets
from hpcrl.algorithms.registry import LOSSES
from hpcrl.config import CONFIGS, A2CConfig, A3CConfig, ActorCriticConfig, AppoConfig, ImpalaConfig
from hpcrl.models.exploration import mix_uniform
from hpcrl.models.policy import Policy
from tests.batches import NUM_ACTIONS, ON, TERMINATED, TRUNCATED, Plan, columns, make_batch, plans, spoil
from tests.policies import columns_of, gradient, log_prob, make_policy
from tests.reference import Correction

OPTIONS = {"gamma": 0.9, "gae_lambda": 0.8, "value_coef": 0.7}
CLIPS = {"rho_bar": 1.1, "c_bar": 0.9, "pg_rho_bar": 0.8}
CONFIG_OF: dict[str, ActorCriticConfig] = {
    "a2c": A2CConfig(**OPTIONS),
    "a3c": A3CConfig(**OPTIONS),
    "impala": ImpalaConfig(**OPTIONS, **CLIPS),
    "appo": AppoConfig(**OPTIONS, **CLIPS),
}
ENTROPY_COEF = 0.3
SMALL = Plan([[ON, TERMINATED, ON], [TRUNCATED, ON, ON]], [True, False], [False, False], 3)
seeds = st.integers(0, 2**32 - 1)
off_policy = pytest.mark.parametrize("algorithm", ["impala", "appo"])


def loss_of(policy: Policy, batch: Batch, algorithm: str, **changes: object) -> Loss:
    config = replace(CONFIG_OF[algorithm], **changes)  # type: ignore[arg-type]
    return LOSSES[algorithm](policy, batch, config, ENTROPY_COEF, None)


def acted_near(policy: Policy, batch: Batch, seed: int, spread: float = 0.5) -> Batch:
    """The batch as if acted by a policy whose ratios are e^(spread * normal number)."""
    noise = np.random.default_rng([seed, 2]).normal(0, spread, batch.reward.shape).astype(np.float32)
    return replace(batch, behaviour_log_prob=log_prob(policy, batch) + torch.from_numpy(noise))


def reference(policy: Policy, batch: Batch, algorithm: str, learned: Targets | None = None) -> Loss:
    """Loss and statistics, one step after the other, with plain numbers for constants; `learned` are given targets."""
    config = CONFIG_OF[algorithm]
    assert isinstance(config, ImpalaConfig)
    total, sums = torch.zeros(()), np.zeros(len(STATISTICS))
    behaviour, now = batch.behaviour_log_prob.double(), log_prob(policy, batch).double()
    for b, column in enumerate(columns_of(policy, batch)):
        correction = Correction((now[:, b] - behaviour[:, b]).exp().tolist(), config.rho_bar, config.c_bar)
        for t in np.flatnonzero(column.valid).tolist():
            advantage = column.vtrace_advantage(t, config.gamma, config.gae_lambda, correction)
            target = column.vtrace_target(t, config.gamma, config.gae_lambda, correction)
            if learned is not None:
                advantage, target = float(learned.advantages[t, b]), float(learned.values[t, b])
            logits, value = policy(batch.observation[t, b])
            distribution = torch.distributions.Categorical(logits=logits)
            chosen, entropy = distribution.log_prob(batch.action[t, b]), distribution.entropy()
            rho = correction.rhos[t]
            if isinstance(config, AppoConfig):
                ratio = torch.exp(chosen - float(behaviour[t, b]))
                clipped = ratio.clamp(1 - config.clip_range, 1 + config.clip_range)
                policy_loss = -min(ratio * advantage, clipped * advantage)
            else:
                policy_loss = -chosen * min(config.pg_rho_bar, rho) * advantage
            error = target - value
            total = total + policy_loss + config.value_coef * error**2 / 2 - ENTROPY_COEF * entropy
            policy_loss, error, entropy = (x.item() for x in (policy_loss, error, entropy))
            kl = rho - 1 - math.log(rho)
            sums[:-2] += [1, policy_loss, error**2 / 2, entropy, kl, target, target**2, error, error**2]
            sums[-2:] += [rho, math.log(rho) > math.log(config.pg_rho_bar) + 1e-4]
    return Loss(total, torch.tensor(sums, dtype=torch.float32), None)


def assert_same(policy: Policy, got: Loss, expected: Loss) -> None:
    torch.testing.assert_close(got.statistics, expected.statistics, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(got.total, expected.total, rtol=1e-3, atol=1e-3)
    if expected.total.requires_grad:
        torch.testing.assert_close(gradient(policy, got.total), gradient(policy, expected.total), rtol=1e-3, atol=2e-3)


def test_every_algorithm_has_a_loss() -> None:
    assert set(LOSSES) == set(CONFIGS)


@off_policy
@settings(max_examples=25, deadline=None)
@given(plans(max_time=4), seeds)
def test_loss_gradient_and_statistics_equal_the_sum_over_steps(algorithm: str, plan: Plan, seed: int) -> None:
    policy = make_policy()
    batch = acted_near(policy, make_batch(plan, seed), seed)
    assert_same(policy, loss_of(policy, batch, algorithm), reference(policy, batch, algorithm))


@pytest.mark.parametrize("lambda_", [0.8, 1.0])
@pytest.mark.parametrize(("algorithm", "other"), [("impala", "a2c"), ("appo", "impala")])
@settings(max_examples=10, deadline=None)
@given(plan=plans(max_time=5), seed=seeds)
def test_acted_with_the_same_weights_the_gradients_are_equal(
    lambda_: float, algorithm: str, other: str, plan: Plan, seed: int
) -> None:
    policy = make_policy()
    batch = acted_near(policy, make_batch(plan, seed), seed, spread=0)
    unclipped = {"rho_bar": 1.0, "c_bar": 1.0, "pg_rho_bar": 1.0}
    pieces = [
        loss_of(policy, batch, name, gae_lambda=lambda_, **({} if name == "a2c" else unclipped))
        for name in (algorithm, other)
    ]
    mine, theirs = (gradient(policy, loss.total) for loss in pieces)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    steps, rho, clipped = (float(pieces[0].statistics[STATISTICS.index(n)]) for n in ("steps", "rho", "rho_clipped"))
    assert (rho, clipped) == (pytest.approx(steps, rel=1e-5), 0)


@off_policy
@pytest.mark.parametrize("garbage", [1e30, float("inf"), float("nan")])
@settings(max_examples=10, deadline=None)
@given(plan=plans(max_time=5), seed=seeds)
def test_ignored_rows_add_nothing(algorithm: str, garbage: float, plan: Plan, seed: int) -> None:
    policy = make_policy()
    batch = acted_near(policy, make_batch(plan, seed), seed)
    spoilt = replace(spoil(batch, garbage), observation=spoil(batch, 1e15).observation)
    clean, spoilt_loss = loss_of(policy, batch, algorithm), loss_of(policy, spoilt, algorithm)
    assert torch.equal(clean.statistics, spoilt_loss.statistics) and torch.equal(clean.total, spoilt_loss.total)
    torch.testing.assert_close(gradient(policy, clean.total), gradient(policy, spoilt_loss.total))


@off_policy
@settings(max_examples=10, deadline=None)
@given(plan=plans(max_envs=5), seed=seeds, data=st.data())
def test_the_parts_of_several_learners_sum_to_the_whole(
    algorithm: str, plan: Plan, seed: int, data: st.DataObject
) -> None:
    policy = make_policy()
    batch = acted_near(policy, make_batch(plan, seed), seed)
    cut = data.draw(st.integers(0, len(plan.ends)))
    spans = ((0, cut), (cut, len(plan.ends)))
    parts = [loss_of(policy, columns(batch, first, end), algorithm) for first, end in spans]
    whole = loss_of(policy, batch, algorithm)
    summed = sum(gradient(policy, part.total) for part in parts)
    torch.testing.assert_close(summed, gradient(policy, whole.total), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(parts[0].statistics + parts[1].statistics, whole.statistics, rtol=1e-4, atol=1e-3)


@off_policy
def test_a_learner_without_environments_gives_zeros_and_still_normalises(algorithm: str) -> None:
    policy, calls = make_policy(), []
    batch = columns(make_batch(SMALL, 0), 0, 0)

    def normalise(advantages: Tensor, valid: Tensor) -> Tensor:
        calls.append(valid.shape)
        return advantages

    first = LOSSES[algorithm](policy, batch, CONFIG_OF[algorithm], ENTROPY_COEF, normalise)
    assert calls == [(3, 0)]
    later = LOSSES[algorithm](policy, batch, CONFIG_OF[algorithm], ENTROPY_COEF, normalise, first.targets)
    for loss in (first, later):
        loss.total.backward()
        assert float(loss.total.detach()) == 0 and not loss.statistics.any()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in policy.parameters())


@off_policy
def test_advantages_are_standardised_before_they_are_weighed(algorithm: str) -> None:
    policy = make_policy()
    batch = acted_near(policy, make_batch(SMALL, 4), 4)
    ignored = ~batch.valid

    def shift(advantages: Tensor, valid: Tensor) -> Tensor:
        assert torch.equal(valid, batch.valid) and not advantages[ignored].any()
        return advantages + 1

    config = replace(CONFIG_OF[algorithm], clip_range=100.0) if algorithm == "appo" else CONFIG_OF[algorithm]
    plain, shifted = (LOSSES[algorithm](policy, batch, config, ENTROPY_COEF, how) for how in (None, shift))
    now = log_prob(policy, batch)
    rho = (now - batch.behaviour_log_prob).exp()
    weights = rho if algorithm == "appo" else now * rho.clamp(max=CLIPS["pg_rho_bar"])
    expected = plain.statistics.clone()
    expected[STATISTICS.index("policy_loss")] -= weights[batch.valid].sum()
    torch.testing.assert_close(shifted.statistics, expected)


@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate", "slope"),
    [
        (1.0, 2.0, 2.0, 2.0),
        (1.1, 2.0, 2.2, 2.0),
        (1.1, -2.0, -2.2, -2.0),
        (1.5, 2.0, 2.4, 0.0),
        (1.5, -2.0, -3.0, -2.0),
        (0.5, 2.0, 1.0, 2.0),
        (0.5, -2.0, -1.6, 0.0),
    ],
)
def test_the_surrogate_stops_pushing_a_ratio_out_of_its_range(
    ratio: float, advantage: float, surrogate: float, slope: float
) -> None:
    """`slope` is its derivative by the ratio: the ratio may always be pushed back."""
    given = torch.tensor([[ratio]], requires_grad=True)
    got = clipped_surrogate(given, torch.tensor([[advantage]]), 0.2)
    (by_ratio,) = torch.autograd.grad(got.sum(), given)
    assert (got.item(), by_ratio.item()) == pytest.approx((surrogate, slope), rel=1e-5)


def test_an_advantage_that_is_no_number_shows_in_the_gradient() -> None:
    given = torch.ones(1, 2, requires_grad=True)
    got = clipped_surrogate(given, torch.tensor([[math.nan, 1.0]]), 0.2)
    (by_ratio,) = torch.autograd.grad(got.sum(), given)
    assert by_ratio.isnan().tolist() == [[True, False]]


def count_rows(policy: Policy) -> list[int]:
    """Rows of every forward pass from now on."""
    rows: list[int] = []
    policy.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[:-1].numel()))
    return rows


@pytest.mark.parametrize("algorithm", list(CONFIG_OF))
def test_one_forward_pass_gives_a_loss(algorithm: str) -> None:
    policy, batch = make_policy(), make_batch(SMALL, 4)
    rows = count_rows(policy)
    loss_of(policy, batch, algorithm)
    assert rows == [4 * 2 + 1]


def test_appo_keeps_its_targets_over_the_updates_from_a_batch() -> None:
    policy = make_policy()
    batch = acted_near(policy, make_batch(SMALL, 4), 4)
    calls: list[Callable] = []

    def shift(advantages: Tensor, valid: Tensor) -> Tensor:
        calls.append(shift)
        return advantages + 1

    first = LOSSES["appo"](policy, batch, CONFIG_OF["appo"], ENTROPY_COEF, shift)
    assert first.targets is not None and not first.targets.advantages.requires_grad
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05)
    rows = count_rows(policy)
    second = LOSSES["appo"](policy, batch, CONFIG_OF["appo"], ENTROPY_COEF, shift, first.targets)
    assert rows == [3 * 2] and len(calls) == 1
    assert second.targets is not None and all(map(torch.equal, second.targets, first.targets))
    assert_same(policy, second, reference(policy, batch, "appo", first.targets))
    fresh = LOSSES["appo"](policy, batch, CONFIG_OF["appo"], ENTROPY_COEF, shift)
    assert fresh.targets is not None and not torch.allclose(fresh.targets.values, first.targets.values)


@pytest.mark.parametrize("algorithm", ["a2c", "impala"])
def test_the_others_make_new_targets_for_every_update(algorithm: str) -> None:
    policy, batch = make_policy(), make_batch(SMALL, 4)
    once = loss_of(policy, batch, algorithm)
    nonsense = Targets(torch.full((3, 2), 1e9), torch.full((3, 2), 1e9))
    again = LOSSES[algorithm](policy, batch, CONFIG_OF[algorithm], ENTROPY_COEF, None, nonsense)
    assert once.targets is None and torch.equal(once.statistics, again.statistics)


@pytest.mark.parametrize("algorithm", list(CONFIG_OF))
def test_without_an_entropy_bonus_its_gradient_is_left_out(algorithm: str) -> None:
    policy, batch = make_policy(), make_batch(SMALL, 4)
    none, small = (LOSSES[algorithm](policy, batch, CONFIG_OF[algorithm], coef, None) for coef in (0.0, 1e-12))
    torch.testing.assert_close(gradient(policy, none.total), gradient(policy, small.total))
    assert torch.equal(none.statistics, small.statistics)


@pytest.mark.parametrize("epsilon", [0.1, 0.6])
def test_the_gradient_corrects_for_actions_mixed_with_uniform_ones(epsilon: float) -> None:
    """Over all actions, drawn from the mixture, the mean gradient of impala is that of a2c over the policy's own."""
    policy, lone = make_policy(), make_batch(Plan([[TERMINATED]] * NUM_ACTIONS, [False] * 3, [False] * 3, 1), 8)
    batch = replace(
        lone, observation=lone.observation[:, :1].expand(2, 3, 2), action=torch.arange(NUM_ACTIONS).unsqueeze(0)
    )
    own = log_prob(policy, batch)
    with torch.no_grad():
        logits = mix_uniform(policy(batch.observation[:-1])[0], epsilon)
    mixed = policy.head.log_prob(logits, batch.action)
    means = []
    for algorithm, acted, changes in (
        ("a2c", own, {}),
        ("impala", mixed, {"rho_bar": 99.0, "c_bar": 99.0, "pg_rho_bar": 99.0}),
    ):
        recorded = replace(batch, behaviour_log_prob=acted)
        losses = [
            loss_of(policy, columns(recorded, action, action + 1), algorithm, value_coef=0.0, **changes).total
            for action in range(NUM_ACTIONS)
        ]
        means.append(sum(p * (gradient(policy, loss)) for p, loss in zip(acted.exp()[0], losses, strict=True)))
    torch.testing.assert_close(means[0], means[1], rtol=1e-4, atol=1e-5)
