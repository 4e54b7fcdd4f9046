"""Running moments against numpy's over all that was seen, however it is dealt out, and what learners do with them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from hpcrl.algorithms.batch import Batch
from hpcrl.algorithms.moments import RunningMoments
from hpcrl.config import A2CConfig
from hpcrl.errors import CheckpointError
from hpcrl.models.policy import Policy
from hpcrl.roles.normalising import Normalisers, clip_rewards
from hpcrl.spaces import Space, Task
from tests.batches import Plan, make_batch, plans

ACTION = Space("discrete", (), "int64", 3)


class Learners:
    """Several learners, each in a thread, whose sums meet as in an allreduce."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._barrier = threading.Barrier(number, timeout=20)
        self._parts: list[NDArray] = [np.empty(0)] * number

    def run(self, work: Callable[[int, Callable[[Tensor], Tensor]], None]) -> None:
        """`work(learner, total)` for all learners at once."""
        failures: list[BaseException] = []

        def learner(number: int) -> None:
            try:
                work(number, lambda sums: torch.from_numpy(self._total(number, sums.numpy())))
            except BaseException as failure:
                failures.append(failure)
                self._barrier.abort()

        threads = [threading.Thread(target=learner, args=(number,)) for number in range(self._number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    def _total(self, number: int, sums: NDArray) -> NDArray:
        assert sums.dtype == np.float64
        self._parts[number] = sums.copy()
        self._barrier.wait()
        total = np.sum(self._parts, 0)
        self._barrier.wait()
        return total


def alone(sums: Tensor) -> Tensor:
    """The total of one learner."""
    return sums


def merged(batches: Sequence[NDArray], shares: Sequence[NDArray], number: int) -> list[RunningMoments]:
    """The moments of all learners after batches [M, N], of which rows go to the learners that the shares [M] name."""
    moments = [RunningMoments(batches[0].shape[1]) for _ in range(number)]

    def work(learner: int, total: Callable[[Tensor], Tensor]) -> None:
        for batch, share in zip(batches, shares, strict=True):
            rows = torch.from_numpy(batch[share == learner])
            moments[learner].add(rows, total)

    Learners(number).run(work)
    return moments


SIZES = st.lists(st.integers(0, 30), min_size=1, max_size=6)
OFFSETS = st.sampled_from([0.0, 1.0, -1e3, 1e6, -1e6])


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(1, 4), OFFSETS, st.sampled_from([1e-3, 1.0, 50.0]), st.integers(0, 2**31))
@example([30, 30], 2, 1e6, 1e-3, 0)
@example([0, 0, 7], 3, 1e6, 1.0, 0)
@example([1, 30], 1, -1e6, 1.0, 0)
def test_any_split_gives_numpys_moments(sizes: list[int], number: int, offset: float, spread: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    batches = [rng.normal(offset, spread, (size, 3)) * np.array([1, -1, 0.5]) for size in sizes]
    moments = merged(batches, [rng.integers(number, size=size) for size in sizes], number)
    together = np.concatenate(batches)
    mean, variance = (together.mean(0), together.var(0)) if len(together) else (np.zeros(3), np.ones(3))
    for learner in moments:
        assert learner.count == len(together) and learner.mean.dtype == learner.variance.dtype == torch.float64
        np.testing.assert_allclose(learner.mean.numpy(), mean, rtol=1e-14, atol=1e-14 * spread)
        # A mean is kept to its last digit, which shifts the distances between batches by as much.
        last_digit = 1e-15 * abs(offset)
        np.testing.assert_allclose(learner.variance.numpy(), variance, rtol=1e-12, atol=10 * spread * last_digit)
        assert torch.equal(learner.mean, moments[0].mean) and torch.equal(learner.variance, moments[0].variance)
        np.testing.assert_allclose(learner.scale.numpy(), 1 / np.sqrt(variance + 1e-8), rtol=1e-6)


def test_a_mean_that_wanders_loses_no_digits() -> None:
    rng = np.random.default_rng(0)
    batches = [rng.normal(1e6 + 100 * step, 0.1, (50, 2)) for step in range(40)]
    (moments,) = merged(batches, [np.zeros(50, np.int64)] * 40, 1)
    together = np.concatenate(batches)
    np.testing.assert_allclose(moments.variance.numpy(), together.var(0), rtol=1e-11)
    np.testing.assert_allclose(moments.mean.numpy(), together.mean(0), rtol=1e-14)


def test_numbers_that_never_change_have_no_variance() -> None:
    moments = RunningMoments(2)
    for _ in range(50):
        moments.add(torch.tensor([[0.1, 1e6]], dtype=torch.float64).repeat(7, 1), alone)
    assert (moments.variance >= 0).all() and (moments.variance < 1e-12).all()
    np.testing.assert_allclose(moments.scale.numpy(), 1e4, rtol=1e-3)


def test_before_there_is_anything_nothing_is_shifted_or_scaled() -> None:
    moments = RunningMoments(3)
    for _ in range(2):
        assert moments.count == 0 and moments.mean.tolist() == [0, 0, 0] and moments.variance.tolist() == [1, 1, 1]
        moments.add(torch.empty(0, 3), alone)
    none = RunningMoments(0)
    none.add(torch.empty(5, 0), alone)
    assert none.count == 5 and none.mean.shape == none.variance.shape == (0,)


def test_a_restored_state_goes_on_bit_for_bit_and_is_a_copy() -> None:
    rng = np.random.default_rng(1)
    first, second = (torch.from_numpy(rng.normal(5, 2, (20, 2))) for _ in range(2))
    moments, other = RunningMoments(2), RunningMoments(2)
    moments.add(first, alone)
    state = moments.state()
    assert all(array.dtype == torch.float64 for array in state.values())
    kept = {key: array.clone() for key, array in state.items()}
    other.restore(state)
    for each in (moments, other):
        each.add(second, alone)
    assert torch.equal(moments.mean, other.mean) and torch.equal(moments.variance, other.variance)
    assert moments.count == other.count == 40 and all(torch.equal(kept[key], state[key]) for key in kept)


# What learners do with them


def policy_of(observation: Space, **changes: Any) -> Policy:
    policy = Policy(Task(observation, ACTION, None, True), A2CConfig(hidden_sizes=(4,), **changes))
    policy.initialise(1)
    return policy


def returns_of(batch: Batch, gamma: float) -> Tensor:
    """Discounted returns that count up along the batch, as actors would send them."""
    rng = np.random.default_rng(batch.reward.shape[0])
    return torch.from_numpy(rng.normal(3, 20, tuple(batch.reward.shape)) * gamma)


@settings(max_examples=30, deadline=None)
@given(plans(), st.floats(0, 3), st.integers(0, 2**31))
def test_rewards_are_divided_by_the_deviation_of_returns_so_far_then_clipped(
    plan: Plan, clip: float, seed: int
) -> None:
    config = A2CConfig(normalise_returns=True, reward_clip=clip)
    normalisers = Normalisers(config, policy_of(Space("box", (2,), "float32")), alone)
    seen: list[float] = []
    for number in range(3):
        batch = make_batch(plan, seed + number)
        batch = replace(batch, discounted_return=returns_of(batch, 1.0 + number))
        kept = batch.reward.clone()
        prepared = normalisers.prepare(batch)
        seen += batch.discounted_return[batch.valid].tolist()
        deviation = np.sqrt((np.var(seen) if seen else 1.0) + 1e-8)
        expected = batch.reward.numpy() / deviation
        if clip:
            expected = expected.clip(-clip, clip)
        np.testing.assert_allclose(prepared.reward.numpy(), expected, rtol=1e-5, atol=1e-6)
        assert prepared.reward.dtype == torch.float32 and torch.equal(batch.reward, kept)
        for name in ("observation", "action", "discounted_return", "valid"):
            assert getattr(prepared, name) is getattr(batch, name)


def test_without_normalisation_rewards_are_only_clipped() -> None:
    batch = make_batch(Plan([["on"] * 4], [False], [False], 4), 0)
    policy = policy_of(Space("box", (2,), "float32"))
    assert Normalisers(A2CConfig(), policy, alone).prepare(batch).reward is batch.reward
    clipped = Normalisers(A2CConfig(reward_clip=0.5), policy, alone).prepare(batch)
    assert clipped.reward.tolist() == batch.reward.clamp(-0.5, 0.5).tolist() != batch.reward.tolist()
    assert clip_rewards(batch, 0.0) is batch


def batch_of(observation: NDArray, valid: NDArray) -> Batch:
    """A batch that has observations [T + 1, B, ...] and valid rows bool [T, B] alone."""
    batch = make_batch(Plan([["on"] * len(valid)] * valid.shape[1], [False] * 9, [False] * 9, len(valid)), 0)
    return replace(batch, observation=torch.from_numpy(observation), valid=torch.from_numpy(valid))


@pytest.mark.parametrize(("shape", "frame_stack"), [((), 1), ((4,), 1), ((4,), 3), ((2, 3), 1), ((2, 3), 3)])
def test_observations_of_valid_rows_shift_and_scale_what_networks_see(shape: tuple[int, ...], frame_stack: int) -> None:
    space = Space("box", shape, "float32")
    config = A2CConfig(normalise_observations=True, frame_stack=frame_stack)
    policy = policy_of(space, normalise_observations=True, frame_stack=frame_stack)
    rng = np.random.default_rng(0)
    valid = rng.random((5, 4)) < 0.7
    batches = [rng.normal(100, 7, (6, 4, *shape)).astype(np.float32) for _ in range(6)]
    for batch in batches:
        batch[:-1][~valid] = 1e9
        # The last row is the next batch's first.
        batch[-1] = 1e9
    policies = [policy, policy_of(space, normalise_observations=True, frame_stack=frame_stack)]

    def work(learner: int, total: Callable[[Tensor], Tensor]) -> None:
        normalisers = Normalisers(config, policies[learner], total)
        for batch in batches[learner::2]:
            normalisers.observe(batch_of(batch, valid))

    Learners(2).run(work)
    seen = np.concatenate([batch[:-1][valid].reshape(int(valid.sum()), -1) for batch in batches]).astype(np.float64)
    mean, scale = np.tile(seen.mean(0), frame_stack), np.tile(1 / np.sqrt(seen.var(0) + 1e-8), frame_stack)
    for each in policies:
        np.testing.assert_allclose(each.inputs.mean.detach().numpy(), mean, rtol=1e-6)  # type: ignore[union-attr]
        np.testing.assert_allclose(each.inputs.scale.detach().numpy(), scale, rtol=1e-6)  # type: ignore[union-attr]
        row = torch.full((1, *each.space.shape), 101.0)
        expected = ((101 - mean) * scale).clip(-10, 10)
        np.testing.assert_allclose(each.inputs(row).rows[0].detach().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_a_learner_without_rows_gets_the_others_shift_and_scale() -> None:
    policies = [policy_of(Space("box", (2,), "float32"), normalise_observations=True) for _ in range(2)]
    observation = np.arange(16, dtype=np.float32).reshape(4, 2, 2)

    def work(learner: int, total: Callable[[Tensor], Tensor]) -> None:
        normalisers = Normalisers(A2CConfig(normalise_observations=True), policies[learner], total)
        normalisers.observe(batch_of(observation, np.full((3, 2), learner == 1)))

    Learners(2).run(work)
    one, other = (policy.inputs for policy in policies)
    assert one.mean is not None and other.mean is not None and one.scale is not None and other.scale is not None
    assert one.mean.tolist() == other.mean.tolist() == [5, 6] and torch.equal(one.scale, other.scale)


def test_states_of_normalisers_go_on_and_those_of_others_are_refused() -> None:
    config = A2CConfig(normalise_observations=True, normalise_returns=True)
    space = Space("box", (2,), "float32")
    one, other = (Normalisers(config, policy_of(space, normalise_observations=True), alone) for _ in range(2))
    batch = make_batch(Plan([["on"] * 6] * 2, [False] * 2, [False] * 2, 6), 3)
    batch = replace(batch, discounted_return=returns_of(batch, 1.0))
    one.prepare(batch)
    one.observe(batch)
    state = one.state()
    assert sorted(state) == [
        f"{part}/{key}" for part in ("observations", "returns") for key in ("count", "mean", "squares")
    ]
    other.restore(state)
    for each in (one, other):
        each.observe(batch)
    assert torch.equal(one.prepare(batch).reward, other.prepare(batch).reward)
    assert all(np.array_equal(array, other.state()[name]) for name, array in one.state().items())
    with pytest.raises(CheckpointError, match=r"normalisers/observations/mean is \[3\], expected \[2\]"):
        other.restore(state | {"observations/mean": np.zeros(3)})
    with pytest.raises(CheckpointError, match=r"normalisers/returns/count is \[0\], expected \[1\]"):
        other.restore({name: array for name, array in state.items() if name != "returns/count"})
    assert Normalisers(A2CConfig(), policy_of(space), alone).state() == {}
