"""Masks and uniformly random choices, against distributions that are renormalised by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical as TorchCategorical

from hpcrl.errors import ConfigError
from hpcrl.models.exploration import mix_uniform
from hpcrl.models.heads import check_mask, make_head
from hpcrl.models.packing import pack, unpack
from hpcrl.spaces import Space, packed
from tests.heads import (
    CHOICE,
    CHOICES,
    CHOICES_ONLY,
    EQUAL_CHOICES,
    EVERYTHING,
    FLAGS,
    FORCE,
    HIGHEST,
    MASKABLE,
    NUMBER,
    categorical,
    noise_for,
    random_head,
)


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
