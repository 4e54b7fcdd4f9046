"""Action heads: sampling from given noise, log-probabilities and entropies against torch.distributions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, Normal

from hpcrl.models.distributions import Categorical, DiagonalGaussian, make_head
from hpcrl.noise import Purpose, uniforms
from hpcrl.spaces import Space

numbers = st.floats(-20, 20, width=32)


def categorical(num_choices: int) -> Categorical:
    return Categorical(2, num_choices)


@settings(max_examples=40, deadline=None)
@given(st.lists(numbers, min_size=1, max_size=6))
def test_categorical_equals_torch(logits: list[float]) -> None:
    head, parameters = categorical(len(logits)), torch.tensor(logits)
    expected = TorchCategorical(logits=parameters)
    actions = torch.arange(len(logits))
    torch.testing.assert_close(head.log_prob(parameters.expand(len(logits), -1), actions), expected.log_prob(actions))
    torch.testing.assert_close(head.entropy(parameters), expected.entropy(), rtol=1e-4, atol=1e-5)
    assert int(head.mode(parameters)) == int(torch.tensor(logits).argmax())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=6))
def test_categorical_sampling_cuts_the_unit_interval_in_the_order_of_the_choices(logits: list[float]) -> None:
    noise = (torch.arange(2000) + 0.5) / 2000
    parameters = torch.tensor(logits)
    actions = categorical(len(logits)).sample(parameters.expand(2000, -1), noise[:, None])
    assert actions.dtype == torch.int64 and (actions.diff() >= 0).all()
    shares = torch.bincount(actions, minlength=len(logits)) / 2000
    torch.testing.assert_close(shares, torch.softmax(parameters, -1), rtol=0, atol=1.1 / 2000)


@pytest.mark.parametrize("logits", [[1e30, 0, 0], [0, 0, 1e30], [-1e30, 0, -1e30], [-1e4, -1e4, -1e4], [88, -88, 0]])
@pytest.mark.parametrize("noise", [2.0**-24, 0.5, 1 - 2.0**-24])
def test_categorical_with_extreme_logits(logits: list[float], noise: float) -> None:
    head, parameters = categorical(3), torch.tensor(logits, dtype=torch.float32)
    action = head.sample(parameters, torch.tensor([noise]))
    log_prob = head.log_prob(parameters, action)
    assert 0 <= int(action) < 3
    assert torch.isfinite(log_prob) and float(log_prob) > -30
    assert torch.isfinite(head.entropy(parameters)) and float(head.entropy(parameters)) >= 0


#: The largest number that `hpcrl.noise.uniforms` draws, and equal choices whose shares sum to that or less.
HIGHEST = 1 - 2.0**-24
SHORT_OF_ONE = 41


def test_the_last_choice_takes_what_rounding_leaves() -> None:
    assert float(torch.softmax(torch.zeros(SHORT_OF_ONE), -1).cumsum(-1)[-1]) <= HIGHEST
    actions = categorical(SHORT_OF_ONE).sample(torch.zeros(SHORT_OF_ONE), torch.tensor([HIGHEST]))
    assert int(actions) == SHORT_OF_ONE - 1


def test_a_choice_without_probability_is_never_taken() -> None:
    logits = torch.cat([torch.zeros(SHORT_OF_ONE), torch.tensor([-1e30])])
    assert int(categorical(SHORT_OF_ONE + 1).sample(logits, torch.tensor([HIGHEST]))) < SHORT_OF_ONE


def gaussian(size: int, seed: int) -> tuple[DiagonalGaussian, Tensor]:
    """A head with random scales, and its parameters [6, 5, 2 * size] for random features."""
    generator = torch.Generator().manual_seed(seed)
    head = DiagonalGaussian(4, size)
    with torch.no_grad():
        head.log_std.copy_(torch.randn(size, generator=generator))
    return head, head(torch.randn(6, 5, 4, generator=generator))


@pytest.mark.parametrize("size", [1, 3])
def test_gaussian_equals_torch_and_factored_actions_give_one_number(size: int) -> None:
    head, parameters = gaussian(size, 1)
    mean, log_std = parameters[..., :size], parameters[..., size:]
    expected = Independent(Normal(mean, log_std.exp()), 1)
    actions = mean + torch.randn(6, 5, size)
    assert head.log_prob(parameters, actions).shape == head.entropy(parameters).shape == (6, 5)
    torch.testing.assert_close(head.log_prob(parameters, actions), expected.log_prob(actions))
    torch.testing.assert_close(head.entropy(parameters), expected.entropy())
    torch.testing.assert_close(head.mode(parameters), mean)
    torch.testing.assert_close(log_std, head.log_std.expand(6, 5, size))


def test_gaussian_samples_have_the_moments_and_are_independent() -> None:
    head, _ = gaussian(2, 2)
    assert head.noise_size == 4
    parameters = torch.tensor([3.0, -1.0, 0.5, -0.5]).expand(40_000, 4)
    noise = torch.from_numpy(uniforms(3, np.arange(40_000), 0, Purpose.ACTION, head.noise_size))
    normal = (head.sample(parameters, noise) - parameters[:, :2]) / parameters[:, 2:].exp()
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        torch.testing.assert_close(normal.pow(power).mean(0), torch.full((2,), moment), rtol=0, atol=0.2)
    assert abs(float((normal[:, 0] * normal[:, 1]).mean())) < 0.03


def test_gaussian_samples_are_finite_at_the_ends_of_the_noise() -> None:
    head, _ = gaussian(1, 2)
    ends = torch.tensor([2.0**-24, 1 - 2.0**-24])
    noise = torch.cartesian_prod(ends, ends)
    samples = head.sample(torch.zeros(4, 2), noise)
    assert torch.isfinite(samples).all() and samples.abs().max() < 6


def test_gradients_reach_mean_and_deviation() -> None:
    head, parameters = gaussian(2, 4)
    head.log_prob(parameters, torch.ones(6, 5, 2)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in head.parameters())


def test_the_head_fits_the_space() -> None:
    discrete = make_head(Space("discrete", (), "int64", 5), 8)
    box = make_head(Space("box", (3,), "float32"), 8)
    assert isinstance(discrete, Categorical) and discrete(torch.zeros(2, 8)).shape == (2, 5)
    assert isinstance(box, DiagonalGaussian) and box(torch.zeros(2, 8)).shape == (2, 6)


@pytest.mark.parametrize("space", [Space("discrete", (), "int64", 4), Space("box", (3,), "float32")])
def test_log_prob_and_entropy_together_are_those_apart_in_any_layout(space: Space) -> None:
    head, rows = make_head(space, 8), torch.randn(5, 7, 8)
    parameters = head(rows)
    by_column = parameters.movedim(-1, 0).contiguous().movedim(0, -1)
    action = head.mode(parameters)
    apart = head.log_prob(parameters, action), head.entropy(parameters)
    for layout in (parameters, by_column):
        for got, expected in zip(head.log_prob_and_entropy(layout, action), apart, strict=True):
            assert got.shape == (5, 7)
            torch.testing.assert_close(got, expected)
        noise = torch.full((5, 7, head.noise_size), 0.3)
        torch.testing.assert_close(head.sample(layout, noise), head.sample(parameters, noise))
