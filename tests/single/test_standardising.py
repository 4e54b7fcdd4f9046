"""Standardised advantages: over valid steps, over all who share the sums, and over each minibatch by one sum."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from hpcrl.algorithms.standardising import standardise, standardisers

seeds = st.integers(0, 2**32 - 1)


def parts(seed: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 6, 2)
    valid = rng.random(shape) < 0.6
    valid.flat[rng.integers(valid.size)] = True
    return rng.normal(3, 5, shape).astype(np.float32), valid


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_advantages_are_standardised_by_their_valid_steps_alone(seed: int) -> None:
    advantages, valid = parts(seed)
    spoilt = np.where(valid, advantages, np.float32(1e30))
    got = standardise(torch.from_numpy(spoilt), torch.from_numpy(valid), lambda sums: sums)
    chosen = advantages[valid].astype(np.float64)
    expected = (chosen - chosen.mean()) / (chosen.std() + 1e-8)
    assert got.dtype == torch.float32 and got.shape == advantages.shape
    np.testing.assert_allclose(got.numpy()[valid], expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seeds, seeds)
def test_advantages_are_standardised_over_all_who_share_the_sums(seed: int, other_seed: int) -> None:
    (advantages, valid), (others, others_valid) = parts(seed), parts(other_seed)
    theirs = others[others_valid].astype(np.float64)
    both = np.concatenate([advantages[valid].astype(np.float64), theirs])
    sums = iter([torch.tensor([len(theirs), theirs.sum(), np.square(theirs).sum()])])
    got = standardise(torch.from_numpy(advantages), torch.from_numpy(valid), lambda mine: mine + next(sums))
    np.testing.assert_allclose(got.numpy(), (advantages - both.mean()) / (both.std() + 1e-8), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 4.25, 0.1, -1e4 / 3])
@pytest.mark.parametrize("count", [1, 7])
def test_advantages_that_are_all_the_same_become_zero(value: float, count: int) -> None:
    got = standardise(torch.full((3, count), value), torch.ones(3, count, dtype=torch.bool), lambda sums: sums)
    assert got.abs().max() < 1e-3


def test_advantages_far_from_zero_are_standardised() -> None:
    advantages = torch.tensor([[4095.75, 4096.0, 4096.25]])
    got = standardise(advantages, torch.ones(1, 3, dtype=torch.bool), lambda sums: sums)
    torch.testing.assert_close(got, torch.tensor([[-1.5, 0.0, 1.5]]).mul(math.sqrt(2 / 3)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("whole_columns", [False, True])
@settings(max_examples=40, deadline=None)
@given(seed=seeds, count=st.integers(1, 4))
def test_minibatches_are_standardised_as_if_each_were_alone(whole_columns: bool, seed: int, count: int) -> None:
    """Over two learners, one of which may have no step of a minibatch, by one sum."""
    learners = []
    for number in range(2):
        advantages, valid = parts(seed + number)
        shape = advantages.shape[1:] if whole_columns else advantages.shape
        dealt = np.random.default_rng([seed, number]).integers(count, size=shape)
        learners.append((np.where(valid, advantages, np.float32(1e30)), valid, dealt))
    sums: list[Tensor] = []

    def total(mine: Tensor) -> Tensor:
        sums.append(mine)
        return torch.stack(sums).sum(0)

    # The second one gets the sums of both.
    _, found = (standardisers(*map(torch.from_numpy, learner), count, total) for learner in learners)
    assert len(sums) == 2 and len(found) == count
    for number, normalise in enumerate(found):
        chosen = [advantages[valid & (dealt == number)].astype(np.float64) for advantages, valid, dealt in learners]
        both = np.concatenate(chosen)
        got = normalise(torch.from_numpy(chosen[0]).float()[None], torch.ones(1, len(chosen[0]), dtype=torch.bool))
        assert got.dtype == torch.float32 and got.shape == (1, len(chosen[0]))
        if len(both):
            np.testing.assert_allclose(got[0], (chosen[0] - both.mean()) / (both.std() + 1e-8), rtol=1e-4, atol=1e-5)
        else:
            assert math.isnan(normalise.mean)
