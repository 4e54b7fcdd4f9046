"""What an env step needs at least: operations of the model, and bytes that travel."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from hpcrl.config import ActorCriticConfig, PPOConfig
from hpcrl.models.policy import Policy
from hpcrl.models.sequence import Sequence
from hpcrl.spaces import Task
from hpcrl.unroll import Memory, UnrollSpec, num_finals

#: Rows that are counted: operations are proportional to them.
_ENVS, _TIME = 4, 2


class Need(NamedTuple):
    """Of one env step.

    Attributes:
        acting, forward, backward: multiplications and additions of products and convolutions, in all updates that
            learn from the step.
        unroll_bytes: of the unroll that it is a part of, counters and room for final observations included.
        num_weights: of the policy.
    """

    acting: float
    forward: float
    backward: float
    unroll_bytes: float
    num_weights: int

    @property
    def flop(self) -> float:
        """All operations."""
        return self.acting + self.forward + self.backward


def need_of(config: ActorCriticConfig, task: Task) -> Need:
    """What a step of a run needs. Local."""
    policy = Policy(task, config)
    policy.initialise(config.seed)
    acting, forward, backward = count_flop(policy, task)
    # The last observations are looked at too: by every update, but under ppo only once a batch, for its targets.
    rows = (config.unroll_length + 1) / config.unroll_length
    if isinstance(config, PPOConfig):
        forward, backward = (rows + config.epochs) * forward, config.epochs * backward
    else:
        forward, backward = rows * config.num_epochs * forward, rows * config.num_epochs * backward
    memory = Memory(policy.state_size, policy.num_history, config.normalise_returns)
    spec = UnrollSpec(
        task,
        config.unroll_length,
        config.num_envs,
        0,
        num_finals(task, config.unroll_length, config.num_envs),
        memory=memory,
    )
    unroll_bytes = spec.nbytes / (config.unroll_length * config.num_envs)
    num_weights = sum(parameter.numel() for parameter in policy.parameters())
    return Need(acting, forward, backward, unroll_bytes, num_weights)


def count_flop(policy: Policy, task: Task) -> tuple[float, float, float]:
    """Operations a row, as torch carries them out: to act, forward over rows to learn from, and back. Local."""
    frame = task.observation
    dtype = getattr(torch, frame.dtype)
    state = torch.zeros(_ENVS, policy.state_size)
    seen = torch.zeros(_ENVS, *policy.space.shape, dtype=dtype)
    with FlopCounterMode(display=False) as acting:
        policy.step(seen, state)
    sequence = Sequence(
        observation=torch.zeros(_TIME, _ENVS, *frame.shape, dtype=dtype),
        starts=torch.zeros(_TIME, _ENVS, dtype=torch.bool),
        state=state,
        history=torch.zeros(policy.num_history, _ENVS, *frame.shape, dtype=dtype),
        final_observation=torch.zeros(0, *frame.shape, dtype=dtype),
        final_index=torch.zeros(0, 2, dtype=torch.int64),
    )
    with FlopCounterMode(display=False) as forward:
        evaluation = policy.over(sequence)
        total = evaluation.parameters.sum() + evaluation.values.sum()
    with FlopCounterMode(display=False) as backward:
        total.backward()
    rows = _TIME * _ENVS
    counts = (acting.get_total_flops() / _ENVS, forward.get_total_flops() / rows, backward.get_total_flops() / rows)
    return counts
