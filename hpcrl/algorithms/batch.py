"""What a loss sees: a batch of unrolls as tensors, and one forward pass over it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Unrolls side by side; time first.

    Attributes:
        observation: [T+1, B, ...].
        action: [T, B, ...].
        reward, behaviour_log_prob: float32 [T, B].
        terminated, truncated, valid: bool [T, B].
        final_observation: [F, ...], last observations of the truncated episodes.
        final_index: int64 [F, 2], their (t, b).
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    behaviour_log_prob: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    final_observation: Tensor
    final_index: Tensor


class Network(Protocol):
    """A policy: observation [..., *shape] -> (action parameters [..., P], value float32 [...])."""

    def __call__(self, observation: Tensor) -> tuple[Tensor, Tensor]: ...


class Outputs(NamedTuple):
    """The network over a batch.

    Attributes:
        parameters: float32 [T, B, P], of the action distributions.
        values: float32 [T, B].
        next_values: float32 [T, B], detached: the value that follows row t within its episode. V(observation t+1);
            at a truncation V(final observation); 0 at a termination.
        continues: bool [T, B], row t+1 goes on with the episode of row t and counts.
    """

    parameters: Tensor
    values: Tensor
    next_values: Tensor
    continues: Tensor


def evaluate(network: Network, batch: Batch) -> Outputs:
    """One forward pass over all T+1 rows and the final observations."""
    time, envs = batch.reward.shape
    item = batch.observation.shape[2:]
    rows = torch.cat([batch.observation.reshape(-1, *item), batch.final_observation])
    parameters, values = network(rows)
    parameters = parameters[: time * envs].view(time, envs, parameters.shape[-1])
    final_values = values[(time + 1) * envs :].detach()
    values = values[: (time + 1) * envs].view(time + 1, envs)
    next_values = values[1:].detach().clone()
    next_values[batch.final_index[:, 0], batch.final_index[:, 1]] = final_values
    next_values.masked_fill_(batch.terminated, 0.0)
    return Outputs(parameters, values[:-1], next_values, continues(batch))


def continues(batch: Batch) -> Tensor:
    """Bool [T, B]: whether a trace may pass from row t to row t+1."""
    goes_on = ~(batch.terminated | batch.truncated)
    goes_on[:-1] &= batch.valid[1:]
    return goes_on
