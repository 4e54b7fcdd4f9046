"""Small networks for the tests of returns and losses, and their gradients."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hpcrl.algorithms.batch import Batch
from hpcrl.config import A2CConfig
from hpcrl.models.policy import Policy
from hpcrl.models.sequence import Evaluation, Sequence
from hpcrl.spaces import Space, Task
from tests.batches import NUM_ACTIONS, OBSERVATION_SIZE
from tests.reference import Column


class _ReadOff:
    def over(self, sequence: Sequence) -> Evaluation:
        observation = sequence.observation
        return Evaluation(
            torch.zeros(*observation.shape[:-1], 2), observation[..., 0], sequence.final_observation[..., 0]
        )


#: A network whose value is the first number of the observation.
read_off = _ReadOff()


def policy_of(
    task: Task, hidden_sizes: tuple[int, ...], activation: Literal["tanh", "relu"] = "tanh", shared: bool = False
) -> Policy:
    """A policy of fully connected layers with weights that were not set yet."""
    return Policy(task, A2CConfig(hidden_sizes=hidden_sizes, activation=activation, shared_encoder=shared))


def make_policy() -> Policy:
    """A small policy, far from uniform, so that the gradients of its actions are worth comparing."""
    task = Task(Space("box", (OBSERVATION_SIZE,), "float32"), Space("discrete", (), "int64", NUM_ACTIONS), None, True)
    policy = policy_of(task, (4,))
    policy.initialise(3)
    with torch.no_grad():
        policy.head.weight.mul_(200)
    return policy


def gradient(policy: Policy, total: Tensor) -> Tensor:
    """Of all parameters, in one vector."""
    pieces = torch.autograd.grad(total, list(policy.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([piece.flatten() for piece in pieces])


def log_prob(policy: Policy, batch: Batch) -> Tensor:
    """Of the batch's actions, float32 [T, B], detached."""
    with torch.no_grad():
        return policy.head.log_prob(policy(batch.observation[:-1])[0], batch.action)


def columns_of(policy: Policy, batch: Batch) -> list[Column]:
    """The batch's columns with the policy's values."""

    def value(observation: object) -> float:
        with torch.no_grad():
            return float(policy(torch.tensor(observation))[1])

    return [Column(batch, b, value) for b in range(batch.reward.shape[1])]
