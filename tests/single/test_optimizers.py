"""Optimizers against plain numpy and PyTorch's own, RMSProp's conventions, and the linear schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import pytest
import torch
from torch import nn

from hpcrl.algorithms.optimizers import Adam, Optimizer, RMSProp, linear, make_optimizer
from hpcrl.config import A2CConfig

GRADIENTS = np.random.default_rng(3).normal(0, 0.2, (6, 5)).astype(np.float32)
START = np.arange(5, dtype=np.float32)
MAKERS: dict[str, Callable[[nn.Parameter], Optimizer]] = {
    "adam": lambda weights: Adam(weights, 0.05, 0.01),
    "inside": lambda weights: RMSProp(weights, 0.05, 0.9, 0.1, True, 1.0),
    "outside": lambda weights: RMSProp(weights, 0.05, 0.9, 0.1, False, 0.0),
}


class Steps(Protocol):
    def step(self) -> object: ...


def moved(optimizer: Steps, weights: nn.Parameter) -> np.ndarray:
    for gradient in GRADIENTS:
        weights.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
    return weights.detach().numpy().copy()


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
    got = moved(RMSProp(weights, 0.05, 0.9, 0.1, inside, first_square), weights)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_rmsprop_outside_from_zero_is_torchs() -> None:
    ours, theirs = fresh_weights(), fresh_weights()
    expected = moved(torch.optim.RMSprop([theirs], lr=0.05, alpha=0.9, eps=0.1), theirs)
    np.testing.assert_allclose(moved(RMSProp(ours, 0.05, 0.9, 0.1, False, 0.0), ours), expected, rtol=1e-6)


@pytest.mark.parametrize("epsilon", [1e-8, 0.1])
def test_adam_is_torchs(epsilon: float) -> None:
    ours, theirs = fresh_weights(), fresh_weights()
    expected = moved(torch.optim.Adam([theirs], lr=0.03, eps=epsilon, foreach=False), theirs)
    np.testing.assert_allclose(moved(Adam(ours, 0.03, epsilon), ours), expected, rtol=1e-6, atol=1e-7)


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
    expected = moved(RMSProp(theirs, 0.05, 0.9, 0.1, inside, 1.0), theirs)
    assert np.array_equal(moved(make_optimizer(ours, config), ours), expected)


def test_the_configuration_chooses_adam() -> None:
    ours, theirs = fresh_weights(), fresh_weights()
    config = A2CConfig(optimizer="adam", learning_rate=0.03, optimizer_epsilon=0.01)
    assert np.array_equal(moved(make_optimizer(ours, config), ours), moved(Adam(theirs, 0.03, 0.01), theirs))


@pytest.mark.parametrize("name", MAKERS)
def test_the_state_is_all_that_is_remembered(name: str) -> None:
    weights = fresh_weights()
    optimizer = MAKERS[name](weights)
    moved(optimizer, weights)
    other_weights = nn.Parameter(weights.detach().clone())
    other = MAKERS[name](other_weights)
    assert set(other.state) == set(optimizer.state)
    for key, tensor in optimizer.state.items():
        other.state[key].copy_(tensor)
    assert np.array_equal(moved(other, other_weights), moved(optimizer, weights))


@pytest.mark.parametrize("name", MAKERS)
def test_the_learning_rate_of_the_next_step_can_be_set(name: str) -> None:
    weights = fresh_weights()
    optimizer = MAKERS[name](weights)
    optimizer.learning_rate = 0.0
    assert np.array_equal(moved(optimizer, weights), START)
    optimizer.learning_rate = 0.1
    assert not np.isclose(moved(optimizer, weights), START).any()


@pytest.mark.parametrize("name", MAKERS)
def test_a_step_leaves_the_gradient_and_its_memory_alone(name: str) -> None:
    weights = fresh_weights()
    gradient = torch.from_numpy(GRADIENTS[0].copy())
    weights.grad = gradient
    address = weights.data_ptr()
    MAKERS[name](weights).step()
    assert weights.grad is gradient
    assert gradient.tolist() == GRADIENTS[0].tolist()
    assert weights.data_ptr() == address


@pytest.mark.parametrize(("progress", "expected"), [(-1, 3.0), (0, 3.0), (0.25, 2.5), (0.5, 2.0), (1, 1.0), (1.5, 1.0)])
def test_linear_schedule(progress: float, expected: float) -> None:
    assert linear(3.0, 1.0, progress) == pytest.approx(expected)
    assert linear(1.0, 3.0, progress) == pytest.approx(4 - expected)
