"""The policy's shapes and first weights, and the flat vector under its parameters."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hpcrl.errors import ShapeError
from hpcrl.models.flat import FlatParameters
from hpcrl.models.policy import Policy
from hpcrl.spaces import Space, Task
from tests.policies import policy_of

DISCRETE = Space("discrete", (), "int64", 3)
BOX = Space("box", (2,), "float32", low=(-1, -1), high=(1, 1))


def make_policy(observation: Space, action: Space = DISCRETE, shared: bool = False, seed: int = 1) -> Policy:
    policy = policy_of(Task(observation, action, None, True), (5, 4), "tanh", shared)
    policy.initialise(seed)
    return policy


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("action", "num_parameters"), [(DISCRETE, 3), (BOX, 4)])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (2, 3, 2)])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_shapes_for_boxes_of_any_rank(
    shape: tuple[int, ...], dtype: str, action: Space, num_parameters: int, shared: bool
) -> None:
    policy = make_policy(Space("box", shape, dtype), action, shared)
    for leading in ((), (6,), (7, 6)):
        observation = torch.ones((*leading, *shape)).to(getattr(torch, dtype))
        parameters, value = policy(observation)
        assert parameters.shape == (*leading, num_parameters) and parameters.dtype == torch.float32
        assert value.shape == leading and value.dtype == torch.float32


@pytest.mark.parametrize("action", [DISCRETE, BOX])
def test_actions_answer_to_one_observation_each(action: Space) -> None:
    policy = make_policy(Space("box", (4,), "float32"), action)
    observation, noise = torch.randn(6, 4), torch.rand(6, policy.head.noise_size)
    parameters, _ = policy.step(observation, torch.zeros(6, 0))
    actions = policy.head.sample(parameters, noise)
    assert actions.shape == (6, *action.shape) and actions.dtype == getattr(torch, action.dtype)
    torch.testing.assert_close(parameters, policy(observation)[0])
    alone, _ = policy.step(observation[2:3], torch.zeros(1, 0))
    assert torch.equal(policy.head.sample(alone, noise[2:3]), actions[2:3])


def test_discrete_observations_are_told_apart() -> None:
    policy = make_policy(Space("discrete", (), "int64", 7))
    parameters, value = policy(torch.arange(7).reshape(7, 1))
    assert parameters.shape == (7, 1, 3) and value.shape == (7, 1)
    assert len(value.unique()) == 7


def weights_of(seed: int, action: Space = DISCRETE) -> torch.Tensor:
    policy = make_policy(Space("box", (4,), "float32"), action, seed=seed)
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])


def test_first_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = weights_of(5)
    torch.manual_seed(2)
    assert torch.equal(weights_of(5), first)
    assert not torch.equal(weights_of(6), first)


def test_initialising_draws_nothing_from_the_global_generator() -> None:
    policy = make_policy(Space("box", (4,), "float32"))
    before = torch.random.get_rng_state()
    policy.initialise(3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_first_actions_are_nearly_uniform_and_hidden_layers_orthogonal() -> None:
    policy = make_policy(Space("box", (4,), "float32"))
    parameters, _ = policy(torch.randn(50, 4))
    torch.testing.assert_close(torch.softmax(parameters, -1), torch.full((50, 3), 1 / 3), rtol=0.05, atol=0)
    for module, gain in ((policy.encoder.layers[1], math.sqrt(2)), (policy.value_head, 1.0)):
        weight = torch.as_tensor(module.weight).detach()
        torch.testing.assert_close(weight @ weight.T, gain**2 * torch.eye(len(weight)), rtol=0, atol=1e-5)


def test_shared_encoder_is_one() -> None:
    apart, shared = (make_policy(Space("box", (4,), "float32"), shared=shared) for shared in (False, True))
    assert shared.value_encoder is None
    assert sum(p.numel() for p in apart.encoder.parameters()) == sum(p.numel() for p in apart.parameters()) - sum(
        p.numel() for p in shared.parameters()
    )


def test_an_encoder_without_hidden_layers_hands_the_observation_on() -> None:
    policy = policy_of(Task(Space("box", (2, 2), "uint8"), DISCRETE, None, True), (), "relu", True)
    identity = nn.Linear(4, 4)
    nn.init.eye_(identity.weight)
    nn.init.zeros_(identity.bias)
    seen = policy.inputs(torch.arange(4, dtype=torch.uint8).reshape(1, 2, 2))
    (features,) = policy.encoder(seen, identity)
    assert torch.equal(policy.encoder.features(seen), features)
    assert features.tolist() == [[0, 1, 2, 3]]


def make_flat(num_extra: int = 3) -> tuple[Policy, FlatParameters]:
    policy = make_policy(Space("box", (4,), "float32"), BOX)
    return policy, FlatParameters(policy, num_extra)


def test_flattening_keeps_the_weights_and_their_names() -> None:
    expected = {
        name: p.detach().clone() for name, p in make_policy(Space("box", (4,), "float32"), BOX).named_parameters()
    }
    policy, flat = make_flat()
    pieces = flat.split(flat.weights.detach())
    assert list(pieces) == list(expected) == [name for name, _ in policy.named_parameters()]
    assert sum(piece.numel() for piece in pieces.values()) == len(flat) == flat.weights.numel()
    for name, parameter in policy.named_parameters():
        assert torch.equal(pieces[name], expected[name]) and torch.equal(parameter, expected[name])
        assert parameter.data_ptr() == pieces[name].data_ptr()


def test_backward_fills_the_gradient_and_nothing_replaces_it() -> None:
    policy, flat = make_flat()
    observation = torch.randn(5, 4)
    for _ in range(2):
        flat.reduced.zero_()
        parameters, values = policy(observation)
        total = parameters.square().sum() + values.sum()
        expected = torch.cat(
            [g.flatten() for g in torch.autograd.grad(total, list(policy.parameters()), retain_graph=True)]
        )
        total.backward()
        assert torch.equal(flat.gradient, expected) and flat.gradient.any()
    assert flat.weights.grad is not None and flat.weights.grad.data_ptr() == flat.gradient.data_ptr()


def test_the_tail_lies_behind_the_gradient() -> None:
    _, flat = make_flat(num_extra=3)
    flat.reduced[:] = torch.arange(len(flat) + 3)
    assert flat.gradient.tolist() == list(range(len(flat)))
    assert flat.tail.tolist() == list(range(len(flat), len(flat) + 3))


def test_an_optimizer_on_the_vector_moves_the_module() -> None:
    policy, flat = make_flat()
    before = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
    flat.gradient.fill_(2.0)
    torch.optim.SGD([flat.weights], lr=0.5).step()
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] - 1.0)


def test_parameters_of_another_dtype_are_refused() -> None:
    with pytest.raises(ShapeError, match="float32"):
        FlatParameters(nn.Linear(2, 2).double())
