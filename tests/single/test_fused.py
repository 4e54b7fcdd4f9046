"""Fused layers against the same layers one by one under plain autograd."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from hpcrl.models.fused import ACTIVATIONS, Layer, perceptron
from hpcrl.models.policy import Policy
from hpcrl.spaces import Space, Task
from tests.policies import policy_of

EAGER: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu}


@dataclass(frozen=True)
class Network:
    """Random rows and layers, all of them leaves, and a gradient of what comes out."""

    rows: Tensor
    layers: list[Layer]
    activation: str
    gradient: Tensor

    @staticmethod
    def make(num_rows: int, widths: list[int], activation: str, seed: int, dtype: torch.dtype = torch.float32):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            # In eighths: sums of their products are exact, so that no relu is on the one side here and not there.
            return (8 * scale * torch.randn(*shape, generator=generator)).round().div(8).to(dtype)

        layers = [
            Layer(draw(out, into, scale=into**-0.5).requires_grad_(), draw(out).requires_grad_())
            for into, out in itertools.pairwise(widths)
        ]
        return Network(draw(num_rows, widths[0]).requires_grad_(), layers, activation, draw(widths[-1], num_rows))

    @property
    def leaves(self) -> list[Tensor]:
        return [self.rows, *itertools.chain(*self.layers)]

    def fused(self) -> Tensor:
        return perceptron(self.rows, self.layers[:-1], self.layers[-1], self.activation)

    def eager(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, list[Tensor]]:
        """Output and gradients, computed in `dtype`."""
        leaves = [leaf.detach().to(dtype).requires_grad_() for leaf in self.leaves]
        features = leaves[0]
        for weight, bias in zip(leaves[1:-2:2], leaves[2:-2:2], strict=True):
            features = EAGER[self.activation](functional.linear(features, weight, bias))
        output = functional.linear(features, *leaves[-2:]).t()
        return output.detach(), list(torch.autograd.grad(output, leaves, self.gradient.to(dtype)))


def distance(got: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest number, or to 1 where all are smaller: sums of such may cancel."""
    if not expected.numel():
        return 0.0
    return float((got.double() - expected).abs().max() / expected.abs().max().clamp(min=1.0))


networks = st.builds(
    Network.make,
    st.integers(0, 70),
    st.lists(st.integers(1, 40), min_size=2, max_size=5),
    st.sampled_from(sorted(ACTIVATIONS)),
    st.integers(0, 2**32 - 1),
)


@settings(max_examples=120, deadline=None)
@given(networks)
def test_output_and_gradients_equal_layers_one_by_one(network: Network) -> None:
    output = network.fused()
    gradients = torch.autograd.grad(output, network.leaves, network.gradient)
    expected_output, expected = network.eager()
    assert output.shape == expected_output.shape and output.is_contiguous()
    assert distance(output.detach(), expected_output) < 2e-6
    for leaf, got, wanted in zip(network.leaves, gradients, expected, strict=True):
        assert got.shape == leaf.shape and distance(got, wanted) < 2e-5


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_the_size_of_a_learner_is_as_exact_as_eager_layers(activation: str) -> None:
    network = Network.make(4224, [4, 64, 64, 3], activation, 0)
    gradients = torch.autograd.grad(network.fused(), network.leaves, network.gradient)
    (_, exact), (_, eager) = network.eager(), network.eager(torch.float32)
    for got, plain, wanted in zip(gradients, eager, exact, strict=True):
        assert distance(got, wanted) < max(1e-6, 3 * distance(plain, wanted))


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_gradients_equal_differences(activation: str) -> None:
    network = Network.make(5, [3, 4, 2, 6], activation, 1, torch.float64)

    def fused(*leaves: Tensor) -> Tensor:
        layers = [Layer(*pair) for pair in zip(leaves[1::2], leaves[2::2], strict=True)]
        return perceptron(leaves[0], layers[:-1], layers[-1], activation)

    assert torch.autograd.gradcheck(fused, network.leaves)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_repeated_calls_agree_bit_for_bit_and_leave_what_they_read(activation: str) -> None:
    network = Network.make(33, [4, 16, 16, 3], activation, 2)
    before = [leaf.detach().clone() for leaf in (*network.leaves, network.gradient)]
    output = network.fused()
    first = torch.autograd.grad(output, network.leaves, network.gradient, retain_graph=True)
    again = torch.autograd.grad(output, network.leaves, network.gradient)
    anew = torch.autograd.grad(network.fused(), network.leaves, network.gradient)
    for one, two, three in zip(first, again, anew, strict=True):
        assert torch.equal(one, two) and torch.equal(one, three)
    assert all(map(torch.equal, before, (*network.leaves, network.gradient)))


def test_without_gradients_the_numbers_are_the_same() -> None:
    network = Network.make(33, [4, 16, 16, 3], "tanh", 3)
    expected = network.fused()
    with torch.no_grad():
        assert torch.equal(network.fused(), expected)
    with torch.inference_mode():
        output = network.fused()
    assert torch.equal(output, expected) and not output.requires_grad


def test_tanh_is_near_everywhere_and_saturates() -> None:
    argument = torch.cat([torch.linspace(-12, 12, 20_001), torch.tensor([-1e30, -1e-30, 0.0, 1e30])])
    identity = Layer(torch.ones(1, 1), torch.zeros(1))
    (value,) = perceptron(argument[:, None], [identity], identity, "tanh")
    assert (value.double() - argument.double().tanh()).abs().max() < 3e-7
    assert value.abs().max() <= 1 and (value[-4], value[-2], value[-1]) == (-1, 0, 1)


def test_what_is_no_number_stays_none() -> None:
    identity = Layer(torch.ones(1, 1), torch.zeros(1))
    for activation in ACTIVATIONS:
        assert perceptron(torch.full((3, 1), torch.nan), [identity], identity, activation).isnan().all()


def eager_policy(policy: Policy, rows: Tensor) -> tuple[Tensor, Tensor]:
    def features(encoder) -> Tensor:
        return torch.nn.Sequential(*itertools.chain(*((layer, torch.nn.Tanh()) for layer in encoder.layers)))(rows)

    own = features(policy.encoder)
    shared = own if policy.value_encoder is None else features(policy.value_encoder)
    return policy.head(own), policy.value_head(shared).squeeze(-1)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("action", [Space("discrete", (), "int64", 3), Space("box", (2,), "float32")])
@pytest.mark.parametrize("observation", [Space("discrete", (), "int64", 7), Space("box", (2, 3), "float32")])
@pytest.mark.parametrize("leading", [(), (5,), (4, 6), (0,), (3, 0)])
def test_policies_equal_modules_one_by_one(
    observation: Space, action: Space, shared: bool, leading: tuple[int, ...]
) -> None:
    policy = policy_of(Task(observation, action, None, True), (16, 8), "tanh", shared)
    policy.initialise(4)
    if observation.kind == "discrete":
        seen = torch.randint(0, 7, leading)
        rows = functional.one_hot(seen, 7).float()
    else:
        seen = torch.randn(*leading, *observation.shape)
        rows = seen.reshape(*leading, observation.size)
    gradients = []
    for parameters, value in (policy(seen), eager_policy(policy, rows)):
        total = parameters.square().sum() + (value * (1 + value)).sum()
        gradients.append((parameters, value, *torch.autograd.grad(total, list(policy.parameters()))))
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
