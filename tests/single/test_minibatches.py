"""Minibatches: every row once an epoch, the same rows on any layout, and rows and columns that stay what they were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hpcrl.algorithms.batch import Batch, evaluate, sequence_of
from hpcrl.algorithms.loss import Targets
from hpcrl.algorithms.minibatches import Minibatch, columns, deal, minibatches, rows, split
from hpcrl.algorithms.standardising import standardise
from hpcrl.config import PPOConfig
from hpcrl.models.frames import stack_sequence
from hpcrl.models.policy import Policy
from hpcrl.spaces import Space, Task
from tests.batches import NUM_ACTIONS, OBSERVATION_SIZE, ON, TRUNCATED, Plan, make_batch, plans
from tests.policies import make_policy

seeds = st.integers(0, 2**32 - 1)
whole_or_not = pytest.mark.parametrize("whole_columns", [False, True])
BOX = Space("box", (OBSERVATION_SIZE,), "float32")


def numbered(batch: Batch) -> tuple[Batch, Targets]:
    """The batch with rewards, and targets, that say which row of which environment they belong to."""
    names = 1000.0 * torch.arange(len(batch.reward))[:, None] + batch.env_index
    return replace(batch, reward=names), Targets(names + 0.25, names + 0.5)


def parts_of(batch: Batch, whole_columns: bool, **options: Any) -> list[Minibatch]:
    config = PPOConfig(**{"epochs": 2, "minibatches": 3, "num_envs": batch.reward.shape[1], **options})
    return list(minibatches(*numbered(batch), config, 7, whole_columns, alone))


def alone(sums: Tensor) -> Tensor:
    """The sum over one learner."""
    return sums


def names_in(part: Minibatch) -> list[float]:
    return sorted(part.batch.reward.flatten().tolist())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=2), seeds, st.data())
def test_things_are_dealt_out_nearly_equally(shape: list[int], seed: int, data: st.DataObject) -> None:
    total = torch.Size(shape).numel()
    parts = data.draw(st.integers(1, total))
    dealt = deal(tuple(shape), parts, seed, 3, 1)
    assert dealt.shape == torch.Size(shape) and dealt.dtype == torch.int64
    counts = torch.bincount(dealt.flatten(), minlength=parts)
    assert len(counts) == parts and counts.max() - counts.min() <= 1
    assert torch.equal(dealt, deal(tuple(shape), parts, seed, 3, 1))


@pytest.mark.parametrize("keys", [(2**63 - 1, 0, 0), (1, 1, 0), (1, 0, 1), (1, 2**40, 0)])
def test_every_key_gives_another_deal(keys: tuple[int, int, int]) -> None:
    assert not torch.equal(deal((64,), 4, *keys), deal((64,), 4, 1, 0, 0))


def test_who_comes_together_is_chance() -> None:
    """Of 600 deals of 8 things into 2 parts, each comes to part 0 in 300, and with another thing in 600 * 3/7."""
    deals = torch.stack([deal((8,), 2, 5, number, number % 3) for number in range(600)])
    assert ((deals == 0).sum(0) - 300).abs().max() < 5 * (600 / 4) ** 0.5
    together = (deals[:, :, None] == deals[:, None]).sum(0)[~torch.eye(8, dtype=torch.bool)]
    assert (together - 600 * 3 / 7).abs().max() < 5 * (600 * 12 / 49) ** 0.5


@whole_or_not
@settings(max_examples=20, deadline=None)
@given(plan=plans(max_envs=4), seed=seeds)
def test_every_row_is_learned_from_once_an_epoch(whole_columns: bool, plan: Plan, seed: int) -> None:
    batch = make_batch(plan, seed)
    time, num_envs = batch.reward.shape
    count = min(3, num_envs if whole_columns else time * num_envs)
    found = parts_of(batch, whole_columns, minibatches=count, unroll_length=time, seed=seed)
    assert len(found) == 2 * count
    everything = sorted(numbered(batch)[0].reward.flatten().tolist())
    epochs = [[names_in(part) for part in found[first : first + count]] for first in (0, count)]
    for epoch in epochs:
        assert sorted(name for part in epoch for name in part) == everything
        sizes = [len(part) // (time if whole_columns else 1) for part in epoch]
        assert max(sizes) - min(sizes) <= 1
    for part in found:
        assert torch.equal(part.targets.advantages, part.batch.reward + 0.25)
        assert torch.equal(part.targets.values, part.batch.reward + 0.5)


@whole_or_not
def test_the_only_minibatch_is_the_batch(whole_columns: bool) -> None:
    batch = make_batch(Plan([[ON, TRUNCATED], [ON, ON]], [False, False], [True, False], 2), 1)
    targets = numbered(batch)[1]
    config = PPOConfig(epochs=3, minibatches=1, num_envs=2)
    sums: list[Tensor] = []
    found = list(minibatches(batch, targets, config, 7, whole_columns, lambda mine: sums.append(mine) or mine))
    assert len(found) == 3 and all(part.batch is batch and part.targets is targets for part in found)
    assert len(sums) == 1 and len({part.normalise for part in found}) == 1


@whole_or_not
def test_advantages_are_standardised_by_one_sum_an_epoch_where_they_are(whole_columns: bool) -> None:
    batch = make_batch(Plan([[ON, TRUNCATED], [ON, ON], [ON, ON]], [False] * 3, [True, True, False], 2), 1)
    batch, targets = numbered(batch)
    sums: list[Tensor] = []

    def parts(**options: Any) -> list[Minibatch]:
        config = PPOConfig(epochs=4, minibatches=3, num_envs=3, **options)
        return list(minibatches(batch, targets, config, 7, whole_columns, lambda mine: sums.append(mine) or mine))

    assert all(part.normalise is None for part in parts(normalise_advantages=False)) and not sums
    for part in parts():
        assert part.normalise is not None
        advantages, valid = part.targets.advantages, part.batch.valid
        got, expected = part.normalise(advantages, valid), standardise(advantages, valid, alone)
        torch.testing.assert_close(got[valid], expected[valid], rtol=1e-5, atol=1e-5)
    assert [each.shape for each in sums] == [(3, 3)] * 4


@whole_or_not
@settings(max_examples=20, deadline=None)
@given(plan=plans(max_envs=5), seed=seeds, data=st.data())
def test_learners_take_the_same_rows_on_any_layout(
    whole_columns: bool, plan: Plan, seed: int, data: st.DataObject
) -> None:
    """A learner's columns come from anywhere in the run; one may have none."""
    batch = make_batch(plan, seed)
    time, num_envs = batch.reward.shape
    options = {"minibatches": 1 + seed % num_envs, "unroll_length": time, "seed": seed}
    order = data.draw(st.permutations(range(num_envs)))
    cut = data.draw(st.integers(0, num_envs))
    whole = parts_of(batch, whole_columns, **options)
    shares = [columns(batch, torch.tensor(own, dtype=torch.int64)) for own in (order[:cut], order[cut:])]
    one, other = (parts_of(share, whole_columns, num_envs=num_envs, **options) for share in shares)
    for mine, theirs, together in zip(one, other, whole, strict=True):
        assert sorted(names_in(mine) + names_in(theirs)) == names_in(together)


@settings(max_examples=20, deadline=None)
@given(plan=plans(max_envs=4), seed=seeds, data=st.data())
def test_rows_are_what_they_were(plan: Plan, seed: int, data: st.DataObject) -> None:
    batch = make_batch(plan, seed)
    time, num_envs = batch.reward.shape
    batch = replace(batch, discounted_return=batch.reward.double() + 0.125, env_index=3 + torch.arange(num_envs))
    chosen = data.draw(st.lists(st.integers(0, time * num_envs - 1), max_size=6))
    cut = rows(batch, torch.tensor(chosen, dtype=torch.int64))
    assert cut.observation.shape == (2, len(chosen), OBSERVATION_SIZE) and not len(cut.final_index)
    assert cut.core_state.shape == (len(chosen), 0) and cut.history.shape == (0, len(chosen), OBSERVATION_SIZE)
    for column, place in enumerate(chosen):
        t, b = divmod(place, num_envs)
        assert torch.equal(cut.observation[:, column], batch.observation[t : t + 2, b])
        assert cut.env_index[column] == batch.env_index[b]
        for name in (
            "action",
            "reward",
            "behaviour_log_prob",
            "terminated",
            "truncated",
            "valid",
            "discounted_return",
        ):
            assert torch.equal(getattr(cut, name)[0, column], getattr(batch, name)[t, b])


@pytest.mark.parametrize("numbers_at_once", [1, 20, 2**18])
@settings(max_examples=20, deadline=None)
@given(plan=plans(max_envs=4), seed=seeds)
def test_rows_taken_together_are_those_taken_alone(numbers_at_once: int, plan: Plan, seed: int) -> None:
    batch = with_history(make_batch(plan, seed), 3)
    # The only minibatch is the batch.
    assume(batch.reward.numel() > 1)
    config = PPOConfig(epochs=2, minibatches=min(5, batch.reward.numel()), num_envs=batch.reward.shape[1], seed=seed)
    with mock.patch("hpcrl.algorithms.minibatches._NUMBERS_AT_ONCE", numbers_at_once):
        found = list(minibatches(*numbered(batch), config, 7, whole_columns=False, total=alone))
    assert len(found) == 2 * config.minibatches
    for number, part in enumerate(found):
        epoch, share = divmod(number, config.minibatches)
        dealt = deal(tuple(batch.reward.shape), config.minibatches, seed, 7, epoch)[:, batch.env_index].flatten()
        (chosen,) = torch.nonzero(dealt == share, as_tuple=True)
        expected = rows(numbered(batch)[0], chosen)
        for field in fields(Batch):
            assert torch.equal(getattr(part.batch, field.name), getattr(expected, field.name)), field.name


@settings(max_examples=20, deadline=None)
@given(plan=plans(max_envs=4), seed=seeds)
def test_a_batch_is_split_into_its_columns(plan: Plan, seed: int) -> None:
    whole = make_batch(plan, seed)
    batch = replace(whole, final_observation=whole.final_observation[:0], final_index=whole.final_index[:0])
    first = whole.reward.shape[1] // 2
    pieces = list(split(batch, [first, whole.reward.shape[1] - first]))
    for piece, chosen in zip(pieces, (slice(0, first), slice(first, None)), strict=True):
        expected = columns(batch, chosen)
        for field in fields(Batch):
            assert torch.equal(getattr(piece, field.name), getattr(expected, field.name)), field.name


def with_history(batch: Batch, num_frames: int) -> Batch:
    """The batch as one whose frames are stacked."""
    generator = torch.Generator().manual_seed(4)
    shape = (num_frames - 1, batch.reward.shape[1], OBSERVATION_SIZE)
    return replace(batch, history=torch.randn(shape, generator=generator))


@pytest.mark.parametrize("num_frames", [2, 4])
@settings(max_examples=25, deadline=None)
@given(plan=plans(max_envs=3), seed=seeds)
def test_rows_see_the_same_frames_as_in_their_sequence(num_frames: int, plan: Plan, seed: int) -> None:
    batch = with_history(make_batch(plan, seed), num_frames)
    time, num_envs = batch.reward.shape
    whole = stack_sequence(BOX, sequence_of(batch))
    chosen = torch.randperm(time * num_envs)
    cut = rows(batch, chosen)
    assert cut.history.shape == (num_frames - 1, len(chosen), OBSERVATION_SIZE)
    seen = stack_sequence(BOX, sequence_of(cut))[: len(chosen)]
    assert torch.equal(seen, whole[chosen])


def evaluated(policy: Policy, batch: Batch) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return tuple(evaluate(policy, batch))


@pytest.mark.parametrize("num_frames", [1, 3])
@settings(max_examples=10, deadline=None)
@given(plan=plans(max_time=5, max_envs=4), seed=seeds, data=st.data())
def test_columns_are_what_they_were_with_their_final_observations(
    num_frames: int, plan: Plan, seed: int, data: st.DataObject
) -> None:
    batch = with_history(make_batch(plan, seed), num_frames)
    num_envs = batch.reward.shape[1]
    policy = make_policy()
    if num_frames > 1:
        policy = Policy(Task(BOX, Space("discrete", (), "int64", NUM_ACTIONS), None, True), PPOConfig(frame_stack=3))
    order = data.draw(st.permutations(range(num_envs)))[: data.draw(st.integers(0, num_envs))]
    first, end = sorted(data.draw(st.tuples(*[st.integers(0, num_envs)] * 2)))
    choices: Sequence[tuple[Tensor | slice, list[int]]] = [
        (torch.tensor(order, dtype=torch.int64), list(order)),
        (slice(first, end), list(range(first, end))),
    ]
    whole = evaluated(policy, batch)
    for chosen, places in choices:
        part = columns(batch, chosen)
        assert part.env_index.tolist() == places
        assert len(part.final_index) == sum(b in places for b in batch.final_index[:, 1].tolist())
        for mine, all_of_it in zip(evaluated(policy, part), whole, strict=True):
            torch.testing.assert_close(mine, all_of_it[:, places])


def test_a_slice_of_columns_is_no_copy_and_chosen_ones_keep_every_field() -> None:
    batch = make_batch(Plan([[ON, TRUNCATED, ON]] * 3, [False] * 3, [False] * 3, 3), 1)
    batch = replace(batch, core_state=torch.rand(3, 4), discounted_return=torch.rand(3, 3, dtype=torch.float64))
    part = columns(batch, slice(1, 3))
    assert part.observation.data_ptr() == batch.observation[:, 1:].data_ptr()
    turned = columns(batch, torch.tensor([2, 1, 0]))
    back = columns(turned, torch.tensor([2, 1, 0]))
    for field in fields(Batch):
        assert torch.equal(getattr(back, field.name), getattr(batch, field.name)), field.name
    assert torch.equal(turned.core_state, batch.core_state.flip(0))
