"""Action heads over spaces of every kind: what they all have in common."""

from __future__ import annotations

import pytest
import torch

from hpcrl.errors import ConfigError
from hpcrl.models.heads import make_head
from hpcrl.spaces import Space, packed
from tests.heads import EVERYTHING, KINDS, SPACES, noise_for, random_head


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
