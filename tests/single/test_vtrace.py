"""V-trace against the sums of the paper, published numbers, and the properties that it must have."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hpcrl.algorithms.batch import Batch, evaluate
from hpcrl.algorithms.returns import VTrace, generalised_advantages, importance_ratios, vtrace
from hpcrl.models.exploration import mix_uniform
from tests.batches import ON, TERMINATED, TRUNCATED, Plan, join, make_batch, plans, spoil
from tests.policies import read_off
from tests.reference import Column, Correction

VECTORS = json.loads((Path(__file__).parents[1] / "data" / "vtrace_vectors.json").read_text())

seeds = st.integers(0, 2**32 - 1)
fractions = st.sampled_from([0.0, 0.5, 0.9, 1.0])
clips = st.sampled_from([0.4, 1.0, 1.7, math.inf])


def log_rhos_of(batch: Batch, seed: int) -> Tensor:
    rng = np.random.default_rng([seed, 1])
    return torch.from_numpy(rng.normal(0, 0.8, batch.reward.shape).astype(np.float32))


def trace(
    batch: Batch, log_rhos: Tensor | None, gamma: float, lambda_: float, rho_bar: float = 1.0, c_bar: float = 1.0
) -> VTrace:
    """Without ratios: on-policy."""
    _, values, next_values, continues = evaluate(read_off, batch)
    log_rhos = torch.zeros_like(batch.reward) if log_rhos is None else log_rhos
    return vtrace(batch.reward, values, next_values, continues, log_rhos, gamma, lambda_, rho_bar, c_bar)


def columns_of(batch: Batch) -> list[Column]:
    return [Column(batch, b, lambda row: row[0]) for b in range(batch.reward.shape[1])]


def assert_equal_where_valid(batch: Batch, got: VTrace, expected: VTrace) -> None:
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine[batch.valid], theirs[batch.valid], rtol=1e-4, atol=2e-4)


@settings(max_examples=120, deadline=None)
@given(plans(), seeds, fractions, fractions, clips, clips)
def test_vtrace_equals_the_sum_of_the_paper(
    plan: Plan, seed: int, gamma: float, lambda_: float, rho_bar: float, c_bar: float
) -> None:
    batch = make_batch(plan, seed)
    log_rhos = log_rhos_of(batch, seed)
    expected = torch.zeros(2, *batch.reward.shape)
    for b, column in enumerate(columns_of(batch)):
        correction = Correction(log_rhos[:, b].double().exp().tolist(), rho_bar, c_bar)
        for t in np.flatnonzero(column.valid).tolist():
            expected[0, t, b] = column.vtrace_target(t, gamma, lambda_, correction)
            expected[1, t, b] = column.vtrace_advantage(t, gamma, lambda_, correction)
    assert_equal_where_valid(batch, trace(batch, log_rhos, gamma, lambda_, rho_bar, c_bar), VTrace(*expected))


@settings(max_examples=40, deadline=None)
@given(plans(), seeds, fractions, fractions, st.floats(1, 3), st.floats(1, 3))
def test_on_policy_it_is_generalised_advantage_estimation(
    plan: Plan, seed: int, gamma: float, lambda_: float, rho_bar: float, c_bar: float
) -> None:
    batch = make_batch(plan, seed)
    _, values, next_values, continues = evaluate(read_off, batch)
    expected = generalised_advantages(batch.reward, values, next_values, continues, gamma, lambda_)
    got = trace(batch, None, gamma, lambda_, rho_bar, c_bar)
    assert_equal_where_valid(batch, VTrace(got.targets - values, got.advantages), VTrace(expected, expected))


@settings(max_examples=40, deadline=None)
@given(plans(), seeds, fractions)
def test_on_policy_with_lambda_one_the_targets_are_n_step_returns(plan: Plan, seed: int, gamma: float) -> None:
    batch = make_batch(plan, seed)
    returns, advantages = torch.zeros(2, *batch.reward.shape)
    for b, column in enumerate(columns_of(batch)):
        for t in np.flatnonzero(column.valid).tolist():
            returns[t, b] = column.n_step_return(t, gamma)
            advantages[t, b] = returns[t, b] - column.values[t]
    assert_equal_where_valid(batch, trace(batch, None, gamma, 1.0), VTrace(returns, advantages))


@pytest.mark.parametrize("end", [TERMINATED, TRUNCATED])
@settings(max_examples=30, deadline=None)
@given(lengths=st.tuples(st.integers(1, 4), st.integers(1, 4)), seed=seeds, lambda_=fractions)
def test_two_trajectories_in_a_row_equal_the_two_apart(
    end: str, lengths: tuple[int, int], seed: int, lambda_: float
) -> None:
    first, second = (
        make_batch(Plan([[ON] * (length - 1) + [last]], [False], [False], length), seed + place)
        for place, (length, last) in enumerate(zip(lengths, (end, ON), strict=True))
    )
    rhos = [log_rhos_of(first, seed), log_rhos_of(second, seed + 1)]
    parts = [trace(part, rho, 0.9, lambda_, 1.3, 0.8) for part, rho in zip((first, second), rhos, strict=True)]
    joined = trace(join(first, second), torch.cat(rhos), 0.9, lambda_, 1.3, 0.8)
    for whole, *apart in zip(joined, *parts, strict=True):
        torch.testing.assert_close(whole, torch.cat(apart))


@pytest.mark.parametrize("lambda_", [0.0, 0.95, 1.0])
@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_truncation_bootstraps_with_the_final_observation_and_cuts_the_trace(lambda_: float, seed: int) -> None:
    batch = make_batch(Plan([[ON, TRUNCATED, ON, TRUNCATED]], [False], [False], 4), 0)
    batch = replace(
        batch,
        reward=torch.zeros(4, 1),
        observation=torch.tensor([1.0, 1, 100, 100, -7])[:, None, None].expand(5, 1, 2),
        final_index=torch.tensor([[3, 0], [1, 0]]),
        final_observation=torch.tensor([[100.0, 0], [1.0, 0]]),
    )
    got = trace(batch, log_rhos_of(batch, seed), 1.0, lambda_, 2.0, 2.0)
    assert got.advantages.flatten().tolist() == [0, 0, 0, 0]
    assert got.targets.flatten().tolist() == [1, 1, 100, 100]


@pytest.mark.parametrize("end", [TERMINATED, TRUNCATED])
@pytest.mark.parametrize("place", [0, 4])
def test_ends_in_the_first_and_in_the_last_row(end: str, place: int) -> None:
    ends = [ON] * 5
    ends[place] = end
    batch = make_batch(Plan([ends], [False], [False], 5), 3)
    log_rhos = log_rhos_of(batch, 3)
    got = trace(batch, log_rhos, 0.9, 0.8, 1.2, 0.7)
    value = float(batch.observation[place, 0, 0])
    after = 0.0 if end == TERMINATED else float(batch.final_observation[0, 0])
    alone = float(batch.reward[place, 0]) + 0.9 * after - value
    assert float(got.advantages[place, 0]) == pytest.approx(alone, rel=1e-5)
    weight = min(1.2, math.exp(float(log_rhos[place, 0])))
    assert float(got.targets[place, 0]) == pytest.approx(value + weight * alone, rel=1e-5)


@pytest.mark.parametrize("garbage", [1e30, float("inf"), float("nan")])
@settings(max_examples=25, deadline=None)
@given(plan=plans(), seed=seeds)
def test_ignored_rows_are_never_read(garbage: float, plan: Plan, seed: int) -> None:
    batch = make_batch(plan, seed)
    log_rhos = log_rhos_of(batch, seed)
    spoilt = trace(spoil(batch, garbage), log_rhos.masked_fill(~batch.valid, garbage), 0.9, 0.8)
    assert_equal_where_valid(batch, spoilt, trace(batch, log_rhos, 0.9, 0.8))


def test_what_is_no_number_shows_in_its_row() -> None:
    batch = make_batch(Plan([[ON] * 3], [False], [False], 3), 0)
    batch.reward[1] = float("nan")
    for got in trace(batch, None, 0.9, 0.8):
        assert got.isnan().flatten().tolist() == [False, True, False]


@pytest.mark.parametrize("name", list(VECTORS))
def test_published_numbers(name: str) -> None:
    """Discounts of their own for every step, in our terms: V and r scaled by the product of the discounts before."""
    vector = VECTORS[name]
    reward, discount, value, errors, advantages = (
        np.array(vector[key]).T
        for key in ("reward", "discount", "value", "targets_minus_values", "policy_gradient_advantages")
    )
    rhos = np.array(vector["rho"]).T if "rho" in vector else _ratios_of_logits(vector)
    terminated = discount == 0
    scale = np.cumprod(np.vstack([np.ones_like(discount[:1]), np.where(terminated, 1, discount)]), 0)
    values = np.vstack([value, vector["bootstrap"]]) * scale
    tensors = (reward * scale[:-1], values[:-1], np.where(terminated, 0, values[1:]), ~terminated, np.log(rhos))
    inputs = (torch.from_numpy(array if array.dtype == bool else array.astype(np.float32)) for array in tensors)
    got = vtrace(*inputs, 1.0, vector["lambda"], vector["rho_bar"], vector["c_bar"])  # type: ignore[misc]
    scaled_errors = got.targets.double().numpy() - values[:-1]
    np.testing.assert_allclose(scaled_errors / scale[:-1], errors, rtol=1e-4, atol=2e-4)
    weighed = np.minimum(vector["pg_rho_bar"], rhos) * got.advantages.double().numpy()
    np.testing.assert_allclose(weighed / scale[:-1], advantages, rtol=1e-4, atol=2e-5)


def _ratios_of_logits(vector: dict[str, list]) -> np.ndarray:
    action = torch.tensor(vector["action"])
    target, behaviour = (
        torch.tensor(vector[f"{policy}_logits"]).log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)
        for policy in ("target", "behaviour")
    )
    return (target - behaviour).double().exp().numpy().T


def test_extreme_ratios_clip_or_cut_and_stay_numbers() -> None:
    batch = make_batch(Plan([[ON] * 3], [False], [False], 3), 1)
    values = batch.observation[:-1, :, 0]
    huge = trace(batch, torch.full((3, 1), 1e4), 0.9, 0.8, 2.0, 2.0)
    assert_equal_where_valid(batch, huge, trace(batch, torch.full((3, 1), math.log(2)), 0.9, 0.8, 2.0, 2.0))
    tiny = trace(batch, torch.full((3, 1), -1e4), 0.9, 0.8)
    torch.testing.assert_close(tiny.targets, values)
    unclipped = trace(batch, torch.full((3, 1), 1e4), 0.9, 1.0, math.inf, math.inf)
    assert all(part.isfinite().all() for part in unclipped)
    assert importance_ratios(torch.tensor([0.0, math.inf, -math.inf])).tolist() == pytest.approx(
        [1, 4.85e8, 0], rel=1e-2
    )


def test_nothing_that_is_returned_needs_a_gradient() -> None:
    batch = make_batch(Plan([[ON, TRUNCATED, ON]], [False], [False], 3), 0)
    batch = replace(batch, observation=batch.observation.requires_grad_())
    log_rhos = torch.zeros(3, 1, requires_grad=True)
    assert not any(part.requires_grad for part in trace(batch, log_rhos, 0.9, 0.9))
    assert log_rhos.tolist() == [[0], [0], [0]]


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.7, 1.0])
def test_it_corrects_for_actions_mixed_with_uniform_ones(epsilon: float) -> None:
    """Over all sequences of two actions, drawn from the mixture, the mean target is the policy's own return."""
    policy, rewards = torch.tensor([[0.7, 0.2, 0.1], [0.05, 0.15, 0.8]]), torch.tensor([[1.0, -2, 5], [3.0, 7, -1]])
    mixed = mix_uniform(policy.log(), epsilon).exp()
    torch.testing.assert_close(mixed, (1 - epsilon) * policy + epsilon / 3)
    values, gamma, got = torch.tensor([[0.5], [-4.0]]), 0.9, 0.0
    for actions in itertools.product(range(3), repeat=2):
        chosen = (torch.arange(2), torch.tensor(actions))
        log_rhos = (policy[chosen].log() - mixed[chosen].log()).unsqueeze(1)
        inputs = (rewards[chosen].unsqueeze(1), values, torch.tensor([[-4.0], [2.0]]), torch.tensor([[True], [False]]))
        target = vtrace(*inputs, log_rhos, gamma, 1.0, math.inf, math.inf).targets[0, 0]
        got += float(mixed[chosen].prod() * target)
    reward, later = (policy * rewards).sum(1).tolist()
    assert got == pytest.approx(reward + gamma * later + gamma**2 * 2.0, rel=1e-5)
