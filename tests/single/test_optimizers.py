"""RMSProp's conventions against plain numpy and PyTorch, and the linear schedule."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from hpcrl.algorithms.optimizers import RMSProp, linear, make_optimizer
from hpcrl.config import A2CConfig

GRADIENTS = np.random.default_rng(3).normal(0, 0.2, (6, 5)).astype(np.float32)
START = np.arange(5, dtype=np.float32)


def moved(optimizer: torch.optim.Optimizer, weights: nn.Parameter) -> np.ndarray:
    for gradient in GRADIENTS:
        weights.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
    return weights.detach().numpy()


def fresh_weights() -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(START.copy()))


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("first_square", [0.0, 1.0])
def test_rmsprop_equals_the_formula(inside: bool, first_square: float) -> None:
    weights, square, expected = fresh_weights(), np.full(5, first_square), START.astype(np.float64)
    for gradient in GRADIENTS:
        square = 0.9 * square + 0.1 * np.square(gradient, dtype=np.float64)
        denominator = np.sqrt(square + 0.1) if inside else np.sqrt(square) + 0.1
        expected -= 0.05 * gradient / denominator
    got = moved(RMSProp([weights], 0.05, 0.9, 0.1, inside, first_square), weights)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_rmsprop_outside_from_zero_is_torchs() -> None:
    ours, theirs = fresh_weights(), fresh_weights()
    expected = moved(torch.optim.RMSprop([theirs], lr=0.05, alpha=0.9, eps=0.1), theirs)
    np.testing.assert_allclose(moved(RMSProp([ours], 0.05, 0.9, 0.1, False, 0.0), ours), expected, rtol=1e-6)


@pytest.mark.parametrize("inside", [True, False])
def test_the_configuration_chooses_rmsprop(inside: bool) -> None:
    config = A2CConfig(
        optimizer="rmsprop",
        learning_rate=0.05,
        rmsprop_decay=0.9,
        optimizer_epsilon=0.1,
        rmsprop_epsilon_inside=inside,
        rmsprop_initial_square=1.0,
    )
    ours, theirs = fresh_weights(), fresh_weights()
    expected = moved(RMSProp([theirs], 0.05, 0.9, 0.1, inside, 1.0), theirs)
    assert np.array_equal(moved(make_optimizer(ours, config), ours), expected)


def test_the_configuration_chooses_adam() -> None:
    ours, theirs = fresh_weights(), fresh_weights()
    expected = moved(torch.optim.Adam([theirs], lr=0.03, eps=0.01), theirs)
    config = A2CConfig(optimizer="adam", learning_rate=0.03, optimizer_epsilon=0.01)
    np.testing.assert_allclose(moved(make_optimizer(ours, config), ours), expected, rtol=1e-6)


def test_rmsprop_state_can_be_stored_and_loaded() -> None:
    weights = fresh_weights()
    optimizer = RMSProp([weights], 0.05, 0.9, 0.1, True, 1.0)
    moved(optimizer, weights)
    other = nn.Parameter(weights.detach().clone())
    again = RMSProp([other], 0.05, 0.9, 0.1, True, 1.0)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert np.array_equal(moved(again, other), moved(optimizer, weights))


@pytest.mark.parametrize(
    ("progress", "expected"), [(-1, 3.0), (0, 3.0), (0.25, 2.5), (0.5, 2.0), (1, 1.0), (1.5, 1.0)]
)
def test_linear_schedule(progress: float, expected: float) -> None:
    assert linear(3.0, 1.0, progress) == pytest.approx(expected)
    assert linear(1.0, 3.0, progress) == pytest.approx(4 - expected)
