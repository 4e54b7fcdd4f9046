"""What a loss sees: a batch of unrolls as tensors, and one forward pass over it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hpcrl.models.sequence import Evaluation, Sequence


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
        core_state: float32 [B, S], recurrent state before row 0.
        history: [frame_stack - 1, B, ...], frames before row 0.
        discounted_return: float64 [T, B], see `hpcrl.unroll.Unroll`; [0, B] where it is not kept.
        env_index: int64 [B], global index of each column's environment.
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
    core_state: Tensor
    history: Tensor
    discounted_return: Tensor
    env_index: Tensor


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch on another device; itself where it is there already."""
    return Batch(*(getattr(batch, field.name).to(device, non_blocking=True) for field in fields(Batch)))


class Network(Protocol):
    """A policy, see `hpcrl.models.policy.Policy.over`."""

    def over(self, sequence: Sequence) -> Evaluation: ...


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
    """One pass over all T+1 rows and the final observations."""
    parameters, values, final_values = network.over(sequence_of(batch))
    next_values = values[1:].detach().clone()
    next_values[batch.final_index[:, 0], batch.final_index[:, 1]] = final_values.detach()
    next_values.masked_fill_(batch.terminated, 0.0)
    return Outputs(parameters[:-1], values[:-1], next_values, continues(batch))


def evaluate_steps(network: Network, batch: Batch) -> tuple[Tensor, Tensor]:
    """One pass over the T rows that were acted on: parameters float32 [T, B, P] and values float32 [T, B]."""
    time = len(batch.reward)
    none = batch.final_observation[:0], batch.final_index[:0]
    parameters, values, _ = network.over(
        Sequence(batch.observation[:time], _starts(batch, time), batch.core_state, batch.history, *none)
    )
    return parameters, values


def sequence_of(batch: Batch) -> Sequence:
    """All T+1 rows of a batch and its final observations, as a policy sees them."""
    starts = _starts(batch, len(batch.observation))
    return Sequence(
        batch.observation, starts, batch.core_state, batch.history, batch.final_observation, batch.final_index
    )


def _starts(batch: Batch, time: int) -> Tensor:
    """Bool [time, B]: an episode begins at this row."""
    starts = batch.valid.new_zeros(time, batch.reward.shape[1])
    if time > 1:
        before = slice(time - 1)
        # A row that was ignored may be the reset of an environment, whose next row begins an episode.
        torch.logical_or(batch.terminated[before], batch.truncated[before], out=starts[1:])
        starts[1:] |= ~batch.valid[before]
    return starts


def continues(batch: Batch) -> Tensor:
    """Bool [T, B]: whether a trace may pass from row t to row t+1."""
    goes_on = ~(batch.terminated | batch.truncated)
    goes_on[:-1] &= batch.valid[1:]
    return goes_on
