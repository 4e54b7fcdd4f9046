"""First weights: what is drawn for which network."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hpcrl.config import A2CConfig
from hpcrl.models.first_weights import orthogonal, scaled_normal
from hpcrl.models.policy import Policy
from hpcrl.spaces import Space, Task

IMAGE = Space("box", (4, 84, 84), "uint8")
ACTION = Space("discrete", (), "int64", 18)


def policy_for(model: str, seed: int = 1) -> Policy:
    policy = Policy(Task(IMAGE, ACTION, None, True), A2CConfig(model=model))
    policy.initialise(seed)
    return policy


def layers_of(policy: Policy) -> list[nn.Linear | nn.Conv2d]:
    return [module for module in policy.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]


def test_orthogonal_rows() -> None:
    layer = nn.Linear(7, 5)
    orthogonal(layer, 3.0, torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer.weight @ layer.weight.t(), 9 * torch.eye(5))
    assert not layer.bias.any()


@pytest.mark.parametrize("layer", [nn.Linear(400, 300), nn.Conv2d(16, 96, 5), nn.Linear(400, 300, bias=False)])
def test_scaled_normal_is_cut_off_at_two_deviations(layer: nn.Linear | nn.Conv2d) -> None:
    scaled_normal(layer, torch.Generator().manual_seed(1))
    weight = layer.weight.detach() * math.sqrt(400)
    assert 1.95 < weight.abs().max() <= 2 + 1e-6
    # Of a normal variable that is cut off at two deviations.
    assert weight.std() == pytest.approx(0.8796, rel=0.01)
    assert abs(weight.mean()) < 0.01
    assert layer.bias is None or not layer.bias.any()


@pytest.mark.parametrize("model", ["impala", "impala-deep"])
def test_all_layers_of_impala_are_scaled_normal(model: str) -> None:
    layers = layers_of(policy_for(model))
    assert len(layers) > 4
    for layer in layers:
        bound = 2 / math.sqrt(layer.weight[0].numel())
        assert 0.6 * bound < layer.weight.abs().max() <= bound + 1e-6


def test_heads_behind_orthogonal_layers_are_nearly_uniform() -> None:
    policy = policy_for("nature")
    *hidden, head, value_head = layers_of(policy)
    assert head is policy.head and value_head is policy.value_head
    for layer, gain in [(layer, math.sqrt(2)) for layer in hidden] + [(head, 0.01), (value_head, 1.0)]:
        singular = torch.linalg.svdvals(layer.weight.detach().flatten(1))
        torch.testing.assert_close(singular, torch.full_like(singular, gain), rtol=1e-4, atol=0)


@pytest.mark.parametrize("model", ["nature", "impala", "impala-deep"])
def test_first_values_and_preferences_are_small(model: str) -> None:
    images = torch.randint(0, 256, (8, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    for seed in range(3):
        with torch.inference_mode():
            parameters, values = policy_for(model, seed)(images)
        assert values.abs().max() < 2
        assert parameters.abs().max() < 2


@pytest.mark.parametrize("model", ["nature", "impala"])
def test_they_depend_on_the_seed_alone(model: str) -> None:
    torch.manual_seed(1)
    first, before = policy_for(model).state_dict(), torch.random.get_rng_state()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = policy_for(model).state_dict(), policy_for(model, 2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
