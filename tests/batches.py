"""Batches of random unrolls for the tests of returns and losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from hpcrl.algorithms.batch import Batch

NUM_ACTIONS = 3
OBSERVATION_SIZE = 2
ON, TERMINATED, TRUNCATED, BOTH = "on", "terminated", "truncated", "both"


class Plan(NamedTuple):
    """How an unroll goes.

    Attributes:
        ends: what happens in each row [B][T].
        next_step: per environment, the row after an end is ignored.
        resets_first: per environment, row 0 is such a row.
        length: rows acted; the others are cut off.
    """

    ends: Sequence[Sequence[str]]
    next_step: Sequence[bool]
    resets_first: Sequence[bool]
    length: int


@st.composite
def plans(draw: st.DrawFn, max_time: int = 7, max_envs: int = 3) -> Plan:
    """Plans with every kind of end at every place."""
    time, envs = draw(st.integers(1, max_time)), draw(st.integers(1, max_envs))
    kinds = st.sampled_from([ON, ON, TERMINATED, TRUNCATED, BOTH])
    flags = st.lists(st.booleans(), min_size=envs, max_size=envs)
    ends = draw(st.lists(st.lists(kinds, min_size=time, max_size=time), min_size=envs, max_size=envs))
    length = draw(st.sampled_from([time, time, draw(st.integers(1, time))]))
    return Plan(ends, draw(flags), draw(flags), length)


def make_batch(plan: Plan, seed: int) -> Batch:
    """A batch of random numbers that goes as planned; ignored rows hold zeros."""
    rng = np.random.default_rng(seed)
    time, envs = len(plan.ends[0]), len(plan.ends)
    terminated, truncated, valid = (np.zeros((time, envs), np.bool_) for _ in range(3))
    for b in range(envs):
        _plan_column(plan, b, terminated[:, b], truncated[:, b], valid[:, b])
    observation = rng.normal(0, 3, (time + 1, envs, OBSERVATION_SIZE)).astype(np.float32)
    observation[plan.length + 1 :] = observation[plan.length]
    index = rng.permutation(np.argwhere(truncated & ~terminated).reshape(-1, 2))
    return Batch(
        observation=torch.from_numpy(observation),
        action=torch.from_numpy(rng.integers(NUM_ACTIONS, size=(time, envs)) * valid),
        reward=torch.from_numpy((rng.normal(0, 2, (time, envs)) * valid).astype(np.float32)),
        behaviour_log_prob=torch.from_numpy((-rng.random((time, envs)) * valid).astype(np.float32)),
        terminated=torch.from_numpy(terminated),
        truncated=torch.from_numpy(truncated),
        valid=torch.from_numpy(valid),
        final_observation=torch.from_numpy(rng.normal(0, 3, (len(index), OBSERVATION_SIZE)).astype(np.float32)),
        final_index=torch.from_numpy(index),
        **nothing_before(envs),
    )


def nothing_before(num_envs: int) -> dict[str, Tensor]:
    """Fields of a batch whose policy remembers nothing."""
    return {
        "core_state": torch.zeros(num_envs, 0),
        "history": torch.zeros(0, num_envs, OBSERVATION_SIZE),
        "discounted_return": torch.zeros(0, num_envs, dtype=torch.float64),
        "env_index": torch.arange(num_envs),
    }


def _plan_column(plan: Plan, b: int, terminated: np.ndarray, truncated: np.ndarray, valid: np.ndarray) -> None:
    ignored = plan.next_step[b] and plan.resets_first[b]
    for t in range(plan.length):
        valid[t] = not ignored
        if ignored:
            ignored = False
            continue
        terminated[t] = plan.ends[b][t] in (TERMINATED, BOTH)
        truncated[t] = plan.ends[b][t] in (TRUNCATED, BOTH)
        ignored = plan.next_step[b] and (terminated[t] or truncated[t])


def spoil(batch: Batch, garbage: float) -> Batch:
    """The same batch with garbage wherever nothing may be read from: the ignored rows."""
    ignored = ~batch.valid
    return replace(
        batch,
        reward=batch.reward.masked_fill(ignored, garbage),
        behaviour_log_prob=batch.behaviour_log_prob.masked_fill(ignored, garbage),
        action=batch.action.masked_fill(ignored, NUM_ACTIONS - 1),
        observation=_spoil_observations(batch, garbage),
    )


def _spoil_observations(batch: Batch, garbage: float) -> Tensor:
    # The observation of an ignored row is still the bootstrap of an unended row before it (a cut unroll).
    ignored = ~batch.valid
    goes_on = batch.valid & ~(batch.terminated | batch.truncated)
    ignored[1:] &= ~goes_on[:-1]
    observation = batch.observation.clone()
    observation[:-1][ignored] = garbage
    return observation


def columns(batch: Batch, first: int, end: int) -> Batch:
    """Environments first .. end - 1."""
    inside = (batch.final_index[:, 1] >= first) & (batch.final_index[:, 1] < end)
    pieces = {
        name: getattr(batch, name)[:, first:end]
        for name in (
            "observation",
            "action",
            "reward",
            "behaviour_log_prob",
            "terminated",
            "truncated",
            "valid",
        )
    }
    index = batch.final_index[inside] - torch.tensor([0, first])
    finals = batch.final_observation[inside]
    return Batch(**pieces, final_observation=finals, final_index=index, **nothing_before(end - first))


def join(first: Batch, second: Batch) -> Batch:
    """One unroll after the other; the first has ended in its last row."""
    time = first.reward.shape[0]
    pieces = {
        name: torch.cat([getattr(first, name), getattr(second, name)])
        for name in ("action", "reward", "behaviour_log_prob", "terminated", "truncated", "valid", "final_observation")
    }
    return Batch(
        **pieces,
        observation=torch.cat([first.observation[:-1], second.observation]),
        final_index=torch.cat([first.final_index, second.final_index + torch.tensor([time, 0])]),
        **nothing_before(first.reward.shape[1]),
    )
