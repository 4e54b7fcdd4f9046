"""Action heads: sampling from given noise, log-probabilities and entropies against torch.distributions; masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, Normal

from hpcrl.errors import ConfigError
from hpcrl.models.distributions import ActionHead, check_mask, make_head
from hpcrl.models.exploration import mix_uniform
from hpcrl.models.packing import pack, unpack
from hpcrl.noise import Purpose, uniforms
from hpcrl.spaces import Space, packed

numbers = st.floats(-20, 20, width=32)

CHOICE = Space("discrete", (), "int64", 5)
CHOICES = Space("multi_discrete", (2, 3), "int64", nvec=(3, 2, 3, 1, 2, 4))
EQUAL_CHOICES = Space("multi_discrete", (4,), "int64", nvec=(3, 3, 3, 3))
FLAGS = Space("multi_binary", (2, 2), "int8")
FORCE = Space("box", (3,), "float32")
FORCES = Space("box", (2, 3), "float32")
NUMBER = Space("box", (), "float32")
EVERYTHING = packed(
    (("turn", CHOICE), ("arm/force", FORCE), ("arm/levers", CHOICES), ("arm/flags", FLAGS), ("gas", NUMBER))
)
CHOICES_ONLY = packed((("0", CHOICE), ("1", FLAGS)))
SPACES = [CHOICE, CHOICES, EQUAL_CHOICES, FLAGS, FORCE, FORCES, NUMBER, EVERYTHING, CHOICES_ONLY]
#: The same, as they can be written into a test's name.
KINDS = [f"{space.kind}{list(space.shape)}" for space in SPACES]
MASKABLE = [CHOICE, CHOICES, EQUAL_CHOICES]


def categorical(num_choices: int) -> ActionHead:
    return make_head(Space("discrete", (), "int64", num_choices), 2)


def random_head(space: Space, seed: int) -> tuple[ActionHead, Tensor]:
    """A head with random weights and scales, and its parameters [6, 5, P] for random features."""
    generator = torch.Generator().manual_seed(seed)
    head = make_head(space, 4)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return head, head(torch.randn(6, 5, 4, generator=generator))


def noise_for(head: ActionHead, rows: int, seed: int = 3) -> Tensor:
    """Counter-based noise [rows, noise_size]."""
    return torch.from_numpy(uniforms(seed, np.arange(rows), 0, Purpose.ACTION, head.noise_size))


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


# All heads.


@pytest.mark.parametrize("space", SPACES, ids=KINDS)
def test_actions_are_as_the_space_stores_them_and_every_parameter_gets_a_gradient(space: Space) -> None:
    head, parameters = random_head(space, 4)
    noise = noise_for(head, 30).view(6, 5, -1)
    action = head.sample(parameters.detach(), noise)
    for each in (action, head.mode(parameters.detach())):
        assert each.dtype == getattr(torch, space.dtype) and each.shape == (6, 5, *space.shape)
    log_prob, entropy = head.log_prob_and_entropy(parameters, action)
    assert log_prob.dtype == entropy.dtype == torch.float32
    (log_prob.sum() + entropy.sum()).backward()
    assert set(dict(head.named_parameters())) <= {"weight", "bias", "log_std"}
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in head.parameters())


@pytest.mark.parametrize("space", SPACES, ids=KINDS)
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


@pytest.mark.parametrize("space", SPACES, ids=KINDS)
@pytest.mark.parametrize("leading", [(), (0,), (3,), (2, 3)])
def test_any_leading_axes(space: Space, leading: tuple[int, ...]) -> None:
    head = make_head(space, 4)
    parameters = head(torch.ones(*leading, 4))
    action = head.sample(parameters, torch.full((*leading, head.noise_size), 0.7))
    assert action.shape == head.mode(parameters).shape == (*leading, *space.shape)
    assert head.log_prob(parameters, action).shape == head.entropy(parameters).shape == leading
    if head.mask_size:
        mask = torch.ones(*leading, head.mask_size, dtype=torch.int8)
        assert head.masked(parameters, mask).shape == head.explore(parameters, 0.1).shape == parameters.shape


@pytest.mark.parametrize(
    "space",
    [
        Space("box", (3,), "int32"),
        Space("unheard of", (3,), "float32"),  # type: ignore[arg-type]
        packed(()),
        packed((("inner", EVERYTHING), ("wrong", Space("box", (2,), "uint8")))),
    ],
)
def test_spaces_without_a_distribution_are_refused(space: Space) -> None:
    with pytest.raises(ConfigError, match="no distribution is known for actions of kind"):
        make_head(space, 4)


# Masks.


def number_masks(space: Space, mask: Tensor) -> Sequence[Tensor]:
    """The masks [..., n] of each number of an action."""
    return mask.split(list(space.nvec) or [space.num_choices], -1)


def random_mask(space: Space, leading: tuple[int, ...], seed: int) -> Tensor:
    """int8 [*leading, mask_size] with at least one choice left for each number."""
    generator = torch.Generator().manual_seed(seed)
    sizes = list(space.nvec) or [space.num_choices]
    masks = []
    for size in sizes:
        mask = torch.randint(0, 2, (*leading, size), generator=generator, dtype=torch.int8)
        kept = torch.randint(0, size, (*leading, 1), generator=generator)
        masks.append(mask.scatter(-1, kept, 1))
    return torch.cat(masks, -1)


def renormalised(space: Space, parameters: Tensor, mask: Tensor) -> list[TorchCategorical]:
    """Each number's distribution over its allowed choices, by division."""
    sizes = list(space.nvec) or [space.num_choices]
    probabilities = [torch.softmax(logits, -1) for logits in parameters.split(sizes, -1)]
    left = [each * kept for each, kept in zip(probabilities, number_masks(space, mask), strict=True)]
    return [TorchCategorical(probs=each / each.sum(-1, keepdim=True)) for each in left]


@pytest.mark.parametrize("space", MASKABLE)
@pytest.mark.parametrize("by_column", [False, True])
def test_a_masked_distribution_is_the_renormalised_one(space: Space, by_column: bool) -> None:
    head, parameters = random_head(space, 7)
    if by_column:
        parameters = parameters.movedim(-1, 0).contiguous().movedim(0, -1)
    mask = random_mask(space, (6, 5), 8)
    masked = head.masked(parameters, mask)
    expected = renormalised(space, parameters, mask)
    action = torch.stack([each.sample() for each in expected], -1).view(6, 5, *space.shape)
    log_prob, entropy = head.log_prob_and_entropy(masked, action)
    numbers = action.view(6, 5, len(expected))
    torch.testing.assert_close(log_prob, sum(each.log_prob(numbers[..., i]) for i, each in enumerate(expected)))
    by_hand = sum(-torch.special.xlogy(each.probs, each.probs).sum(-1) for each in expected)
    torch.testing.assert_close(entropy, by_hand, rtol=1e-4, atol=1e-5)
    assert torch.equal(masked[mask != 0], parameters[mask != 0])


@pytest.mark.parametrize("space", MASKABLE)
def test_what_is_not_allowed_is_never_drawn(space: Space) -> None:
    head, rows = make_head(space, 2), 5000
    parameters = 3 * torch.randn(rows, head.mask_size, generator=torch.Generator().manual_seed(1))
    mask = random_mask(space, (rows,), 9)
    masked = head.masked(parameters, mask)
    extremes = [torch.full((rows, head.noise_size), end) for end in (2.0**-24, HIGHEST)]
    actions = [head.sample(masked, noise) for noise in (noise_for(head, rows), *extremes)]
    actions += [head.mode(masked), head.sample(head.explore(masked, 0.5), extremes[1])]
    actions += [head.sample(head.explore(masked, 0.5), noise_for(head, rows))]
    for action in actions:
        chosen = action.view(rows, -1).split(1, -1)
        for number, allowed in zip(chosen, number_masks(space, mask), strict=True):
            assert (allowed.gather(-1, number) == 1).all()


@pytest.mark.parametrize("space", MASKABLE)
def test_gradients_of_masked_distributions_are_finite_and_those_of_the_renormalised(space: Space) -> None:
    head, parameters = random_head(space, 10)
    mask = random_mask(space, (6, 5), 11)
    given = parameters.detach().requires_grad_()
    masked = head.masked(given, mask)
    action = head.mode(masked)
    log_prob, entropy = head.log_prob_and_entropy(masked, action)
    (got,) = torch.autograd.grad(log_prob.sum() + entropy.sum(), given)
    expected = renormalised(space, given, mask)
    numbers = action.view(6, 5, len(expected))
    total = torch.zeros(())
    for i, each in enumerate(expected):
        probability = each.probs.clamp(min=1e-30)
        total = total + probability.gather(-1, numbers[..., i : i + 1]).log().sum()
        total = total - (probability * probability.log()).sum()
    torch.testing.assert_close(got, torch.autograd.grad(total, given)[0], rtol=1e-3, atol=1e-5)
    assert (got[mask == 0] == 0).all()


@pytest.mark.parametrize("space", MASKABLE)
def test_log_probabilities_of_what_is_not_allowed_are_low_and_finite(space: Space) -> None:
    head = make_head(space, 2)
    parameters = torch.zeros(head.mask_size, requires_grad=True)
    mask = torch.cat([torch.arange(size) % size != 0 for size in list(space.nvec) or [space.num_choices]])
    log_prob, entropy = head.log_prob_and_entropy(
        head.masked(parameters, mask.to(torch.int8)), torch.zeros(space.shape, dtype=torch.int64)
    )
    (log_prob + entropy).backward()
    assert torch.isfinite(log_prob) and float(log_prob.detach()) < -1e6
    assert torch.isfinite(entropy) and parameters.grad is not None and torch.isfinite(parameters.grad).all()


def test_a_number_without_any_choice_left_keeps_them_all() -> None:
    head, parameters = random_head(CHOICES, 12)
    mask = torch.tensor([0, 0, 0, 1, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 1], dtype=torch.int8)
    kept = torch.tensor([1, 1, 1, 1, 0, 1, 0, 1, 1, 1, 1, 0, 0, 0, 1], dtype=torch.int8)
    assert torch.equal(head.masked(parameters, mask.expand(6, 5, -1)), head.masked(parameters, kept.expand(6, 5, -1)))
    head, parameters = random_head(CHOICE, 13)
    nothing = torch.zeros(6, 5, 5, dtype=torch.int8)
    nothing[0, 0, 3] = 1
    masked = head.masked(parameters, nothing)
    assert torch.equal(masked.flatten(0, 1)[1:], parameters.flatten(0, 1)[1:])
    assert torch.softmax(masked[0, 0], -1).tolist() == [0, 0, 0, 1, 0]


def test_a_mask_may_have_axes_of_its_own_and_lie_in_packed_observations() -> None:
    head, parameters = random_head(EQUAL_CHOICES, 14)
    mask = random_mask(EQUAL_CHOICES, (6, 5), 15)
    leaf = Space("box", (4, 3), "int8")
    space = packed((("position", NUMBER), ("action_mask", leaf)))
    elements = pack(space, {"position": torch.zeros(6, 5), "action_mask": mask.view(6, 5, 4, 3)})
    check_mask(EQUAL_CHOICES, leaf)
    got = head.masked(parameters, unpack(space, elements)["action_mask"])
    assert torch.equal(got, head.masked(parameters, mask))


@pytest.mark.parametrize(
    ("space", "mask", "reason"),
    [
        (FORCE, Space("multi_binary", (3,), "int8"), "needs discrete or multi-discrete actions, got box"),
        (FLAGS, Space("multi_binary", (4,), "int8"), "needs discrete or multi-discrete actions, got multi_binary"),
        (CHOICES_ONLY, Space("multi_binary", (9,), "int8"), "needs discrete or multi-discrete actions, got packed"),
        (CHOICE, Space("multi_binary", (4,), "int8"), r"5 numbers, one a choice, got multi_binary int8 \[4\]"),
        (CHOICES, Space("multi_binary", (6,), "int8"), "15 numbers"),
        (CHOICE, Space("box", (5,), "float32"), r"must be int8 with 5 numbers, one a choice, got box float32 \[5\]"),
        (CHOICE, Space("box", (5,), "uint8"), "must be int8"),
        (CHOICE, Space("discrete", (), "int64", 5), "must be int8"),
    ],
)
def test_masks_that_do_not_fit_are_refused(space: Space, mask: Space, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        check_mask(space, mask)


@pytest.mark.parametrize("space", MASKABLE)
@pytest.mark.parametrize("kind", ["multi_binary", "box"])
def test_masks_that_fit_are_taken(space: Space, kind: str) -> None:
    size = make_head(space, 2).mask_size
    check_mask(space, Space(kind, (size,), "int8"))  # type: ignore[arg-type]


@pytest.mark.parametrize("space", [FLAGS, FORCE, EVERYTHING, CHOICES_ONLY])
def test_heads_without_masks_and_random_choices_say_so(space: Space) -> None:
    head, parameters = random_head(space, 16)
    assert not head.can_explore and head.mask_size == 0
    with pytest.raises(ConfigError, match="mask needs discrete or multi-discrete actions"):
        head.masked(parameters, torch.ones(6, 5, 3, dtype=torch.int8))
    with pytest.raises(ConfigError, match="random choices need discrete or multi-discrete actions"):
        head.explore(parameters, 0.1)


# Uniformly random choices.


@pytest.mark.parametrize("space", MASKABLE)
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("with_mask", [False, True])
def test_random_choices_are_mixed_over_what_is_allowed(space: Space, epsilon: float, with_mask: bool) -> None:
    head, parameters = random_head(space, 17)
    mask = random_mask(space, (6, 5), 18) if with_mask else torch.ones(6, 5, head.mask_size, dtype=torch.int8)
    parameters = head.masked(parameters.detach(), mask)
    mixed = head.explore(parameters, epsilon)
    assert head.can_explore and torch.isfinite(mixed).all()
    pieces = zip(renormalised(space, parameters, mask), number_masks(space, mask), strict=True)
    expected = [(1 - epsilon) * each.probs + epsilon * kept / kept.sum(-1, keepdim=True) for each, kept in pieces]
    got = [torch.softmax(each, -1) for each in number_masks(space, mixed)]
    for probabilities, wanted in zip(got, expected, strict=True):
        torch.testing.assert_close(probabilities, wanted, rtol=1e-4, atol=1e-6)
    assert torch.equal(torch.cat(got, -1) == 0, mask == 0)
    torch.testing.assert_close(mixed[mask != 0], torch.cat(expected, -1)[mask != 0].log(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 1 / 3])
def test_mixing_one_row_does_not_depend_on_the_masks_of_others(epsilon: float) -> None:
    parameters = torch.randn(64, 7, generator=torch.Generator().manual_seed(1))
    some = parameters.clone()
    some[0] = categorical(7).masked(some[0], torch.tensor([0, 1, 1, 0, 1, 0, 1], dtype=torch.int8))
    assert torch.equal(mix_uniform(parameters, epsilon)[1:], mix_uniform(some, epsilon)[1:])
    assert torch.equal(mix_uniform(some[:1], epsilon), mix_uniform(some, epsilon)[:1])
