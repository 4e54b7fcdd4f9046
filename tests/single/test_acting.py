"""The network that actors use is the policy's, up to rounding, with the weights of its last refresh."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from hpcrl.models.acting import ActingNetwork
from hpcrl.models.policy import Policy
from hpcrl.spaces import Space, Task
from tests.policies import policy_of

_BOX, _CHOICE = Space("box", (3, 2), "float32"), Space("discrete", (), "int64", 5)
_FORCE = Space("box", (2,), "float32", low=(-1.0, -1.0), high=(1.0, 1.0))


def _policy(task: Task, hidden_sizes: tuple[int, ...], activation: Literal["tanh", "relu"]) -> Policy:
    policy = policy_of(task, hidden_sizes, activation)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return policy


def _said(network: ActingNetwork | Policy, rows: torch.Tensor) -> torch.Tensor:
    return network.step(rows, torch.zeros(len(rows), 0))[0]


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("hidden_sizes", [(), (7,), (16, 8, 4)])
@pytest.mark.parametrize(("observation", "action"), [(_BOX, _CHOICE), (_CHOICE, _CHOICE), (_BOX, _FORCE)])
def test_it_is_the_policy(
    activation: Literal["tanh", "relu"], hidden_sizes: tuple[int, ...], observation: Space, action: Space
) -> None:
    policy = _policy(Task(observation, action, None, True), hidden_sizes, activation)
    network = ActingNetwork(policy)
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(9, 3, 2, generator=generator) if observation is _BOX else torch.arange(5)
    with torch.inference_mode():
        torch.testing.assert_close(_said(network, rows), _said(policy, rows), rtol=1e-5, atol=1e-5)
        assert _said(network, rows[:0]).shape == _said(policy, rows[:0]).shape


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_new_weights_count_from_the_refresh(activation: Literal["tanh", "relu"]) -> None:
    policy = _policy(Task(_BOX, _CHOICE, None, True), (8,), activation)
    network, rows = ActingNetwork(policy), torch.ones(2, 3, 2)
    with torch.inference_mode():
        before = _said(network, rows)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1)
    with torch.inference_mode():
        assert torch.equal(_said(network, rows), before)
        network.refresh()
        assert not torch.equal(_said(network, rows), before)
        torch.testing.assert_close(_said(network, rows), _said(policy, rows), rtol=1e-5, atol=1e-5)
