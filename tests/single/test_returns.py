"""Advantages against a slow reference, and the properties that they must have."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hpcrl.algorithms.batch import Batch, evaluate
from hpcrl.algorithms.returns import generalised_advantages
from tests.batches import ON, TERMINATED, TRUNCATED, Plan, join, make_batch, plans, spoil
from tests.policies import read_off
from tests.reference import Column

seeds = st.integers(0, 2**32 - 1)
fractions = st.sampled_from([0.0, 0.5, 0.9, 1.0])


def advantages(batch: Batch, gamma: float, lambda_: float) -> Tensor:
    _, values, next_values, continues = evaluate(read_off, batch)
    return generalised_advantages(batch.reward, values, next_values, continues, gamma, lambda_)


def reference(batch: Batch, gamma: float, lambda_: float) -> np.ndarray:
    """Reference advantages [T, B], NaN where a row doesn't count."""
    expected = np.full(batch.reward.shape, np.nan)
    for b in range(batch.reward.shape[1]):
        column = Column(batch, b, lambda row: row[0])
        for t in np.flatnonzero(column.valid).tolist():
            expected[t, b] = column.advantage(t, gamma, lambda_)
    return expected


def assert_equal_where_valid(batch: Batch, got: Tensor, expected: np.ndarray) -> None:
    valid = batch.valid.numpy()
    np.testing.assert_allclose(got.numpy()[valid], expected[valid], rtol=1e-4, atol=1e-4)


@settings(max_examples=100, deadline=None)
@given(plans(), seeds, fractions, fractions)
def test_advantages_equal_the_sum_of_the_paper(plan: Plan, seed: int, gamma: float, lambda_: float) -> None:
    batch = make_batch(plan, seed)
    assert_equal_where_valid(batch, advantages(batch, gamma, lambda_), reference(batch, gamma, lambda_))


@settings(max_examples=40, deadline=None)
@given(plans(), seeds, fractions)
def test_lambda_one_is_the_n_step_return_minus_the_value(plan: Plan, seed: int, gamma: float) -> None:
    batch = make_batch(plan, seed)
    expected = np.zeros(batch.reward.shape)
    for b in range(batch.reward.shape[1]):
        column = Column(batch, b, lambda row: row[0])
        for t in range(len(column.reward)):
            expected[t, b] = column.n_step_return(t, gamma) - column.values[t] if column.valid[t] else 0
    assert_equal_where_valid(batch, advantages(batch, gamma, 1.0), expected)


@settings(max_examples=40, deadline=None)
@given(plans(), seeds, fractions)
def test_lambda_zero_is_the_temporal_difference(plan: Plan, seed: int, gamma: float) -> None:
    batch = make_batch(plan, seed)
    _, values, next_values, _ = evaluate(read_off, batch)
    torch.testing.assert_close(advantages(batch, gamma, 0.0), batch.reward + gamma * next_values - values)


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
    apart = torch.cat([advantages(first, 0.9, lambda_), advantages(second, 0.9, lambda_)])
    torch.testing.assert_close(advantages(join(first, second), 0.9, lambda_), apart)


@pytest.mark.parametrize("lambda_", [0.0, 0.95, 1.0])
def test_truncation_bootstraps_with_the_final_observation_and_cuts_the_trace(lambda_: float) -> None:
    batch = make_batch(Plan([[ON, TRUNCATED, ON, TRUNCATED]], [False], [False], 4), 0)
    batch = replace(
        batch,
        reward=torch.zeros(4, 1),
        observation=torch.tensor([1.0, 1, 100, 100, -7])[:, None, None].expand(5, 1, 2),
        final_index=torch.tensor([[3, 0], [1, 0]]),
        final_observation=torch.tensor([[100.0, 0], [1.0, 0]]),
    )
    assert advantages(batch, 1.0, lambda_).flatten().tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("end", [TERMINATED, TRUNCATED])
@pytest.mark.parametrize("place", [0, 4])
def test_ends_in_the_first_and_in_the_last_row(end: str, place: int) -> None:
    ends = [ON] * 5
    ends[place] = end
    batch = make_batch(Plan([ends], [False], [False], 5), 3)
    got = advantages(batch, 0.9, 0.8)
    after = 0.0 if end == TERMINATED else float(batch.final_observation[0, 0])
    alone = float(batch.reward[place, 0]) + 0.9 * after - float(batch.observation[place, 0, 0])
    assert float(got[place, 0]) == pytest.approx(alone, rel=1e-5)
    assert_equal_where_valid(batch, got, reference(batch, 0.9, 0.8))


@pytest.mark.parametrize(
    "garbage",
    [1e30, float("inf"), float("nan")],
)
@settings(max_examples=40, deadline=None)
@given(plan=plans(), seed=seeds)
def test_ignored_rows_are_never_read(garbage: float, plan: Plan, seed: int) -> None:
    batch = make_batch(plan, seed)
    got = advantages(spoil(batch, garbage), 0.9, 0.8)
    assert_equal_where_valid(batch, got, advantages(batch, 0.9, 0.8).numpy())


def test_a_reward_that_is_no_number_shows_in_its_row() -> None:
    batch = make_batch(Plan([[ON] * 3], [False], [False], 3), 0)
    batch.reward[1] = float("nan")
    assert advantages(batch, 0.9, 0.8).isnan().flatten().tolist() == [False, True, False]


def test_nothing_that_is_returned_needs_a_gradient() -> None:
    batch = make_batch(Plan([[ON, TRUNCATED, ON]], [False], [False], 3), 0)
    batch = replace(batch, observation=batch.observation.requires_grad_())
    _, values, next_values, continues = evaluate(read_off, batch)
    assert values.requires_grad and not next_values.requires_grad
    assert not generalised_advantages(batch.reward, values, next_values, continues, 0.9, 0.9).requires_grad
