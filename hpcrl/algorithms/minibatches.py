"""Minibatches: the parts that an epoch cuts a batch into, the same whichever learners hold it.

The rows of all learners are put into an order that is a function of (seed, batch, epoch) and of nothing else, and cut
into nearly equal parts; each learner takes those of its own columns. Under a recurrent core whole columns are dealt out
in place of rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor

from hpcrl.algorithms.batch import Batch, sequence_of
from hpcrl.algorithms.loss import Targets
from hpcrl.algorithms.moments import Total
from hpcrl.algorithms.standardising import Standardiser, standardisers
from hpcrl.config import PPOConfig
from hpcrl.models.frames import history_of_rows, taken
from hpcrl.noise import Purpose, seeds

#: Numbers of observations that are taken from a batch at once: few enough to stay in the cache.
_NUMBERS_AT_ONCE = 2**18

#: Fields whose first axis is the environment; of all others but those of final observations it is the second.
_COLUMNS_FIRST = ("core_state", "env_index")


class Minibatch(NamedTuple):
    """What one update learns from, and towards.

    Attributes:
        normalise: standardises the advantages of `targets` over this minibatch of all learners.
    """

    batch: Batch
    targets: Targets
    normalise: Standardiser | None


def minibatches(
    batch: Batch, targets: Targets, config: PPOConfig, number: int, whole_columns: bool, total: Total
) -> Iterator[Minibatch]:
    """One learner's part of every minibatch of every epoch; all learners get equally many, some of them maybe empty.

    The only minibatch of an epoch is the batch itself, in its own order. Collective over the learners where advantages
    are standardised: once an epoch, for all its minibatches.

    Args:
        batch: this learner's columns.
        targets: of all its rows.
        config: `epochs`, `minibatches`, `seed`, `num_envs`, `normalise_advantages`.
        number: of the batch, the same on all learners and another for every batch, below 2**64.
        whole_columns: deal out columns, not rows.
        total: sums over the learners.
    """

    # Parts are added up on the host: accelerators would add each in any order.
    advantages, valid = (targets.advantages.cpu(), batch.valid.cpu()) if config.normalise_advantages else (None, None)

    def normalisers(dealt: Tensor) -> Sequence[Standardiser | None]:
        if advantages is None or valid is None:
            return [None] * config.minibatches
        return standardisers(advantages, valid, dealt, config.minibatches, total)

    if config.minibatches == 1:
        (only,) = normalisers(torch.zeros(batch.reward.shape, dtype=torch.int64))
        yield from repeat(Minibatch(batch, targets, only), config.epochs)
        return
    shape = (config.num_envs,) if whole_columns else (len(batch.reward), config.num_envs)
    env_index, device = batch.env_index.cpu(), batch.reward.device
    for epoch in range(config.epochs):
        dealt = deal(shape, config.minibatches, config.seed, number, epoch)[..., env_index]
        sizes = torch.bincount(dealt.flatten(), minlength=config.minibatches).tolist()
        parts = dealt.flatten().argsort(stable=True).to(device).split(sizes)
        take = _of_columns if whole_columns else _of_rows
        for (part, own), normalise in zip(take(batch, targets, parts), normalisers(dealt), strict=True):
            yield Minibatch(part, own, normalise)


def _of_columns(batch: Batch, targets: Targets, parts: tuple[Tensor, ...]) -> Iterator[tuple[Batch, Targets]]:
    """Some columns after the other."""
    for chosen in parts:
        yield columns(batch, chosen), Targets(*(each[:, chosen] for each in targets))


def _of_rows(batch: Batch, targets: Targets, parts: tuple[Tensor, ...]) -> Iterator[tuple[Batch, Targets]]:
    """Some rows after the other, several parts of which are taken from the batch at a time where rows are small."""
    numbers = max(1, max(map(len, parts)) * batch.observation[0, :1].numel() * (1 + len(batch.history)))
    width = max(1, _NUMBERS_AT_ONCE // numbers)
    for first in range(0, len(parts), width):
        group = parts[first : first + width]
        chosen, sizes = torch.cat(group), [len(part) for part in group]
        taken = [each.flatten()[chosen][None].split(sizes, 1) for each in targets]
        for part, *constants in zip(split(rows(batch, chosen), sizes), *taken, strict=True):
            yield part, Targets(*constants)


def deal(shape: tuple[int, ...], parts: int, seed: int, number: int, epoch: int) -> Tensor:
    """Which part each of many things belongs to: int64 [*shape] in [0, parts), each part nearly equally often.

    Args:
        shape: of what is dealt out, at least `parts` things.
        parts: how many parts.
        seed, number, epoch: what the permutation is a function of.
    """
    total = math.prod(shape)
    generator = torch.Generator().manual_seed(int(seeds(seed, epoch, number, Purpose.MINIBATCH)))
    places = torch.randperm(total, generator=generator).view(shape)
    firsts = torch.tensor([total * part // parts for part in range(1, parts)], dtype=torch.int64)
    return torch.bucketize(places, firsts, right=True)


def rows(batch: Batch, chosen: Tensor) -> Batch:
    """Rows of a batch, side by side as unrolls of one step, without final observations.

    Args:
        batch: [T, B], of a policy without a recurrent core.
        chosen: int64 [M], their places t * B + b.
    """
    num_envs = batch.reward.shape[1]
    t, b = chosen // max(1, num_envs), chosen % max(1, num_envs)

    def pick(field: Tensor) -> Tensor:
        return taken(field.flatten(0, 1), chosen)[None]

    history = batch.history[:, b] if not len(batch.history) else history_of_rows(sequence_of(batch), t, b)
    return Batch(
        observation=taken(batch.observation.flatten(0, 1), torch.stack([chosen, chosen + num_envs])),
        action=pick(batch.action),
        reward=pick(batch.reward),
        behaviour_log_prob=pick(batch.behaviour_log_prob),
        terminated=pick(batch.terminated),
        truncated=pick(batch.truncated),
        valid=pick(batch.valid),
        final_observation=batch.final_observation[:0],
        final_index=batch.final_index[:0],
        core_state=batch.core_state[b],
        history=history,
        discounted_return=pick(batch.discounted_return)
        if len(batch.discounted_return)
        else batch.discounted_return[:, b],
        env_index=batch.env_index[b],
    )


def split(batch: Batch, sizes: Sequence[int]) -> Iterator[Batch]:
    """A batch without final observations, cut into so many columns each; views."""

    def pieces(name: str, field: Tensor) -> Sequence[Tensor]:
        if name.startswith("final_"):
            return [field] * len(sizes)
        return field.split(list(sizes), 0 if name in _COLUMNS_FIRST else 1)

    return map(Batch, *(pieces(field.name, getattr(batch, field.name)) for field in fields(Batch)))


def columns(batch: Batch, chosen: Tensor | slice) -> Batch:
    """Columns of a batch; copies where they are chosen one by one, int64 [M], and views of a slice."""
    place = torch.full((batch.reward.shape[1],), -1, device=batch.reward.device)
    place[chosen] = torch.arange(len(place[chosen]), device=place.device)
    t, b = batch.final_index.unbind(1)
    ours = place[b] >= 0
    return Batch(
        observation=batch.observation[:, chosen],
        action=batch.action[:, chosen],
        reward=batch.reward[:, chosen],
        behaviour_log_prob=batch.behaviour_log_prob[:, chosen],
        terminated=batch.terminated[:, chosen],
        truncated=batch.truncated[:, chosen],
        valid=batch.valid[:, chosen],
        final_observation=batch.final_observation[ours],
        final_index=torch.stack([t[ours], place[b[ours]]], 1),
        core_state=batch.core_state[chosen],
        history=batch.history[:, chosen],
        discounted_return=batch.discounted_return[:, chosen],
        env_index=batch.env_index[chosen],
    )
