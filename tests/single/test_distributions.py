"""Distributions over actions: sampling from given noise, log-probabilities, entropies against torch.distributions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, Normal

from hpcrl.models.heads import make_head
from hpcrl.models.packing import unpack
from hpcrl.spaces import Space
from tests.heads import (
    CHOICES,
    EQUAL_CHOICES,
    EVERYTHING,
    FLAGS,
    FORCE,
    FORCES,
    HIGHEST,
    NUMBER,
    categorical,
    noise_for,
    random_head,
)

numbers = st.floats(-20, 20, width=32)

# One of n choices.


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


#: Equal choices whose shares sum to `HIGHEST` or less.
SHORT_OF_ONE = 41


def test_the_last_choice_takes_what_rounding_leaves() -> None:
    assert float(torch.softmax(torch.zeros(SHORT_OF_ONE), -1).cumsum(-1)[-1]) <= HIGHEST
    actions = categorical(SHORT_OF_ONE).sample(torch.zeros(SHORT_OF_ONE), torch.tensor([HIGHEST]))
    assert int(actions) == SHORT_OF_ONE - 1


def test_a_choice_without_probability_is_never_taken() -> None:
    logits = torch.cat([torch.zeros(SHORT_OF_ONE), torch.tensor([-1e30])])
    assert int(categorical(SHORT_OF_ONE + 1).sample(logits, torch.tensor([HIGHEST]))) < SHORT_OF_ONE


# Several numbers, each one of its own choices.


def number_of(space: Space, parameters: Tensor) -> list[TorchCategorical]:
    """Torch's distribution of each number of a multi-discrete action."""
    return [TorchCategorical(logits=logits) for logits in parameters.split(list(space.nvec), -1)]


@pytest.mark.parametrize("space", [CHOICES, EQUAL_CHOICES])
def test_multi_discrete_equals_a_distribution_for_each_number(space: Space) -> None:
    head, parameters = random_head(space, 1)
    expected = number_of(space, parameters)
    action = torch.stack([each.sample() for each in expected], -1)
    log_prob = sum(each.log_prob(action[..., i]) for i, each in enumerate(expected))
    stored = action.view(6, 5, *space.shape)
    torch.testing.assert_close(head.log_prob(parameters, stored), log_prob)
    torch.testing.assert_close(head.entropy(parameters), sum(each.entropy() for each in expected))
    mode = torch.stack([each.logits.argmax(-1) for each in expected], -1).view_as(stored)
    assert head.mode(parameters).dtype == torch.int64 and torch.equal(head.mode(parameters), mode)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(0, 2**31))
def test_a_number_of_a_multi_discrete_action_is_drawn_as_if_it_were_alone(nvec: list[int], seed: int) -> None:
    head, parameters = random_head(Space("multi_discrete", (len(nvec),), "int64", nvec=tuple(nvec)), seed)
    noise = noise_for(head, 30).view(6, 5, -1)
    action = head.sample(parameters, noise)
    assert action.dtype == torch.int64 and head.noise_size == len(nvec) and head.mask_size == sum(nvec)
    for i, logits in enumerate(parameters.split(nvec, -1)):
        assert torch.equal(action[..., i], categorical(nvec[i]).sample(logits, noise[..., i : i + 1]))


def test_multi_discrete_samples_have_the_frequencies_and_are_independent() -> None:
    head = make_head(CHOICES, 2)
    logits = torch.linspace(-1, 1, head.mask_size)
    action = head.sample(logits.expand(40_000, -1), noise_for(head, 40_000)).view(40_000, 6)
    for i, expected in enumerate(number_of(CHOICES, logits)):
        shares = torch.bincount(action[:, i], minlength=CHOICES.nvec[i]) / 40_000
        torch.testing.assert_close(shares, expected.probs, rtol=0, atol=0.01)
    together = torch.corrcoef(action[:, [0, 1, 2, 4, 5]].T.double())
    assert (together - torch.eye(5)).abs().max() < 0.03


# Zeros and ones.


@settings(max_examples=40, deadline=None)
@given(st.lists(numbers, min_size=4, max_size=4))
def test_multi_binary_equals_torch(logits: list[float]) -> None:
    head, parameters = make_head(FLAGS, 2), torch.tensor(logits)
    expected = Independent(TorchBernoulli(logits=parameters), 1)
    actions = torch.cartesian_prod(*[torch.arange(2)] * 4)
    stored = actions.to(torch.int8).view(16, 2, 2)
    got = head.log_prob(parameters.expand(16, -1), stored)
    torch.testing.assert_close(got, expected.log_prob(actions.float()))
    torch.testing.assert_close(head.entropy(parameters), expected.entropy(), rtol=1e-4, atol=1e-5)
    assert torch.equal(head.mode(parameters).view(4), (parameters > 0).to(torch.int8))


@pytest.mark.parametrize("logit", [-200.0, -30.0, 0.0, 30.0, 200.0])
def test_multi_binary_with_extreme_logits(logit: float) -> None:
    head = make_head(FLAGS, 2)
    parameters = torch.full((4,), logit, requires_grad=True)
    entropy = head.entropy(parameters)
    unlikely = head.log_prob(parameters, torch.full((2, 2), int(logit < 0), dtype=torch.int8))
    (entropy + unlikely).backward()
    assert float(entropy.detach()) >= 0 and float(unlikely.detach()) == pytest.approx(4 * min(-abs(logit), -0.693147))
    assert parameters.grad is not None and torch.isfinite(parameters.grad).all()
    for noise in (2.0**-24, HIGHEST):
        drawn = head.sample(parameters.detach(), torch.full((4,), noise))
        assert logit == 0 or torch.equal(drawn, head.mode(parameters.detach()))


def test_multi_binary_samples_have_the_frequencies_and_are_independent() -> None:
    head, logits = make_head(FLAGS, 2), torch.tensor([-2.0, -0.5, 0.0, 1.0])
    action = head.sample(logits.expand(40_000, 4), noise_for(head, 40_000))
    assert action.dtype == torch.int8 and action.shape == (40_000, 2, 2) and set(action.unique().tolist()) == {0, 1}
    flat = action.view(40_000, 4).double()
    torch.testing.assert_close(flat.mean(0).float(), torch.sigmoid(logits), rtol=0, atol=0.01)
    assert (torch.corrcoef(flat.T) - torch.eye(4)).abs().max() < 0.03


# Normal numbers.


@pytest.mark.parametrize("space", [FORCE, FORCES, NUMBER])
def test_gaussian_equals_torch_and_factored_actions_give_one_number(space: Space) -> None:
    size = space.size
    head, parameters = random_head(space, 1)
    mean, log_std = parameters[..., :size], parameters[..., size:]
    expected = Independent(Normal(mean, log_std.exp()), 1)
    actions = mean + torch.randn(6, 5, size)
    stored = actions.view(6, 5, *space.shape)
    assert head.log_prob(parameters, stored).shape == head.entropy(parameters).shape == (6, 5)
    torch.testing.assert_close(head.log_prob(parameters, stored), expected.log_prob(actions))
    torch.testing.assert_close(head.entropy(parameters), expected.entropy())
    torch.testing.assert_close(head.mode(parameters), mean.view_as(stored))
    torch.testing.assert_close(log_std, head.log_std.expand(6, 5, size))


@pytest.mark.parametrize("space", [FORCE, FORCES])
def test_gaussian_samples_have_the_moments_and_are_independent(space: Space) -> None:
    head, size = make_head(space, 2), space.size
    assert head.noise_size == 2 * size
    parameters = torch.cat([torch.linspace(-3, 3, size), torch.linspace(-0.5, 0.5, size)]).expand(40_000, -1)
    samples = head.sample(parameters, noise_for(head, 40_000))
    assert samples.dtype == torch.float32 and samples.shape == (40_000, *space.shape)
    normal = (samples.view(40_000, size) - parameters[:, :size]) / parameters[:, size:].exp()
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        torch.testing.assert_close(normal.pow(power).mean(0), torch.full((size,), moment), rtol=0, atol=0.2)
    assert (torch.corrcoef(normal.T) - torch.eye(size)).abs().max() < 0.03


def test_gaussian_samples_are_finite_at_the_ends_of_the_noise() -> None:
    head = make_head(NUMBER, 2)
    ends = torch.tensor([2.0**-24, 1 - 2.0**-24])
    noise = torch.cartesian_prod(ends, ends)
    samples = head.sample(torch.zeros(4, 2), noise)
    assert torch.isfinite(samples).all() and samples.abs().max() < 6


# Packed actions.


def test_a_packed_action_is_the_sum_of_its_parts() -> None:
    head, parameters = random_head(EVERYTHING, 5)
    noise = noise_for(head, 30).view(6, 5, -1)
    heads = {name: make_head(leaf, 4) for name, leaf in EVERYTHING.leaves}
    mode = unpack(EVERYTHING, head.mode(parameters))
    action = head.sample(parameters, noise)
    assert action.dtype == torch.uint8 and action.shape == (6, 5, EVERYTHING.nbytes)
    log_prob, entropy, first, first_noise = torch.zeros(6, 5), torch.zeros(6, 5), 0, 0
    for name, leaf in unpack(EVERYTHING, action).items():
        part = heads[name]
        end, end_noise = first + part(torch.zeros(4)).shape[-1], first_noise + part.noise_size
        own = parameters[..., first:end]
        assert torch.equal(leaf, part.sample(own, noise[..., first_noise:end_noise]))
        assert torch.equal(mode[name], part.mode(own))
        log_prob, entropy = log_prob + part.log_prob(own, leaf), entropy + part.entropy(own)
        first, first_noise = end, end_noise
    assert (first, first_noise) == (parameters.shape[-1], head.noise_size)
    torch.testing.assert_close(head.log_prob(parameters, action), log_prob)
    torch.testing.assert_close(head.entropy(parameters), entropy)
    assert head.mask_size == 0 and not head.can_explore


def test_the_outputs_of_a_packed_head_are_those_of_its_parts() -> None:
    """Rows of the one layer are dealt out in order, and log_std to the normal parts in theirs."""
    head, _ = random_head(EVERYTHING, 6)
    output = torch.randn(7, head.out_features)
    rows = {name: make_head(leaf, 4).out_features for name, leaf in EVERYTHING.leaves}
    pieces = dict(zip(rows, output.split(list(rows.values()), -1), strict=True))
    assert head.log_std.shape == (4,) and head.weight.shape == (sum(rows.values()), 4)
    pieces["arm/force"] = torch.cat([pieces["arm/force"], head.log_std[:3].expand(7, 3)], -1)
    pieces["gas"] = torch.cat([pieces["gas"], head.log_std[3:].expand(7, 1)], -1)
    torch.testing.assert_close(head.parameters_of(output), torch.cat(list(pieces.values()), -1))
