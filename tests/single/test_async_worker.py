"""The worker: its gradient is that of its own steps, all shards get it or none, and no wish is lost."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import tests.no_mpi  # noqa: F401

# isort: split
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcrl.algorithms.a2c import a2c_loss
from hpcrl.cluster.shards import ShardedWeights, split_weights
from hpcrl.config import A3CConfig
from hpcrl.models.flat import FlatParameters
from hpcrl.roles.async_worker import AsyncWorker
from hpcrl.roles.batching import finished_episodes
from hpcrl.roles.boundary import Boundary
from hpcrl.unroll import Unroll
from tests.asynchronous import Published, ServingWaiter
from tests.playing import TIME, Playing, stacked, whole
from tests.policies import gradient
from tests.single.test_actor import SHORT

NONE, SAVE, STOP = Boundary.NONE, Boundary.SAVE, Boundary.STOP
ENV_STEPS, NUM_ENVS = 250, 2
STEPS = TIME * NUM_ENVS


class Message(NamedTuple):
    """What a worker sent to one owner."""

    gradient: NDArray[np.float32]
    version: int
    steps: int
    stop: bool
    save: bool


class Recording:
    """A sender that keeps what was sent."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.free = True

    @property
    def sent(self) -> int:
        return len(self.messages)

    def is_free(self) -> bool:
        return self.free

    def send(self, gradient: NDArray[np.float32], version: int, steps: int, stop: bool, save: bool) -> None:
        assert self.free
        self.messages.append(Message(gradient.copy(), version, steps, stop, save))


class Working:
    """A worker, what is published for it, and what it sent; a twin of its actor for what it must have seen."""

    def __init__(
        self,
        config: A3CConfig = A3CConfig(),  # noqa: B008
        num_shards: int = 2,
        env_id: str = "CartPole-v1",
        num_finals: int = 2 * STEPS,
    ) -> None:
        self.config = config
        self.playing, self.twin = (Playing(env_id, NUM_ENVS, num_finals) for _ in range(2))
        self.playing.waiter = waiter = ServingWaiter()
        self.playing.actor._waiter = cast(Any, waiter)
        self.waiter, self.requests = waiter, self.playing.requests
        self.flat, self.twin_flat = FlatParameters(self.playing.policy), FlatParameters(self.twin.policy)
        self.shards = split_weights(len(self.flat), num_shards)
        self.published = [Published(shard.stop - shard.start) for shard in self.shards]
        self.senders = [Recording() for _ in self.shards]
        subscribers = [each.subscriber() for each in self.published]
        self.weights = ShardedWeights(self.flat.weights.detach().numpy(), self.shards, subscribers)
        self.worker = AsyncWorker(
            config,
            self.playing.actor,
            self.playing.spec,
            self.playing.policy,
            self.flat,
            self.weights,
            cast(Any, self.senders),
            self.shards,
            cast(Any, waiter),
        )
        # Far from uniform, and other than the weights that both were made with.
        rng = np.random.default_rng(4)
        self.first = self.twin_flat.weights.detach().numpy() + rng.normal(0, 0.3, len(self.flat)).astype(np.float32)
        self.twin_flat.weights.detach().copy_(torch.from_numpy(self.first))
        for shard in range(num_shards):
            self.publish(shard, 5)

    def publish(self, shard: int, version: int, flags: Boundary = NONE, boundaries: int = 0) -> None:
        self.published[shard].write(version, self.first[self.shards[shard]], flags, ENV_STEPS, boundaries)

    def once(self, act: Callable[[], object]) -> None:
        """Do something in the middle of the next unroll, or wait."""

        def chore() -> bool:
            self.waiter.chores.remove(chore)
            act()
            return True

        self.waiter.chores.append(chore)

    def after_acting(self, act: Callable[[Unroll], object]) -> None:
        """Do something once the next unroll is acted, before its gradient is computed."""
        actor: Any = self.playing.actor

        def fill(unroll: Unroll, version: int) -> None:
            del actor.fill
            actor.fill(unroll, version)
            act(unroll)

        actor.fill = fill

    def sent(self) -> list[Message]:
        """What was sent to the first owner; the others got the same but for the gradient and the version."""
        for sender in self.senders:
            assert [message[2:] for message in sender.messages] == [rest[2:] for rest in self.senders[0].messages]
        assert self.worker.sent == len(self.senders[0].messages)
        return self.senders[0].messages

    def wishes(self) -> list[tuple[int, bool, bool]]:
        """Steps, stop and save of all messages."""
        return [(message.steps, message.stop, message.save) for message in self.sent()]

    def last_gradient(self) -> Tensor:
        """The pieces of the last gradient, from all senders, in one vector."""
        return torch.from_numpy(np.concatenate([sender.messages[-1].gradient for sender in self.senders]))


def standardised(advantages: Tensor, valid: Tensor) -> Tensor:
    chosen = advantages[valid]
    return (advantages - chosen.mean()) / (chosen.std(correction=0) + 1e-8)


def expected_gradient(working: Working, unroll: Unroll) -> Tensor:
    """By torch, from the loss of the twin's unroll: summed, not clipped."""
    config = working.config
    normalise = standardised if config.normalise_advantages else None
    # Half of the bonus is left at half of the run.
    loss = a2c_loss(working.twin.policy, stacked(whole(unroll)), config, config.entropy_coef / 2, normalise)
    return gradient(working.twin.policy, loss.total)


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("max_norm", [0.0, 0.25])
@pytest.mark.parametrize("normalise", [False, True])
def test_the_gradient_is_that_of_the_loss_of_its_own_steps_clipped_over_all_shards(
    num_shards: int, reduction: str, max_norm: float, normalise: bool
) -> None:
    config = A3CConfig(
        total_env_steps=2 * ENV_STEPS,
        entropy_coef=0.2,
        entropy_coef_final=0.0,
        loss_reduction=cast(Any, reduction),
        max_grad_norm=max_norm,
        normalise_advantages=normalise,
    )
    # Cut after a third of its rows, so that not all of them count.
    working = Working(config, num_shards, SHORT, num_finals=4)
    for number in range(2):
        working.worker.advance()
        unroll = working.twin.fill(version=5)
        steps = int(unroll.valid.sum())
        assert 0 < steps < STEPS and working.sent()[number].steps == steps
        expected = expected_gradient(working, unroll) / (steps if reduction == "mean" else 1)
        norm = float(expected.norm())
        if max_norm:
            assert norm > max_norm, "a test of clipping must clip"
            expected = expected * (max_norm / norm)
            assert float(working.last_gradient().double().norm()) <= max_norm * (1 + 1e-6)
        torch.testing.assert_close(working.last_gradient(), expected, rtol=1e-5, atol=1e-6 * float(expected.norm()))
        row = working.worker.reducer.take()
        assert row["train/grad_norm"] == pytest.approx(norm, rel=1e-5)
        assert row["train/clipped_grad_fraction"] == (max_norm > 0)
        assert row["train/learning_rate"] == pytest.approx(config.learning_rate / 2)
    assert (working.worker.pushed, working.worker.unrolls_cut, working.worker.dropped) == (2, 2, 0)
    assert working.worker.pushed_bytes == 2 * 4 * len(working.flat)


def test_a_gradient_goes_with_the_versions_of_the_weights_that_acted() -> None:
    working = Working(num_shards=3)
    working.publish(2, 9)
    for shard in range(3):
        working.once(partial(working.publish, shard, 20))
    working.worker.advance()
    assert [sender.messages[0].version for sender in working.senders] == [5, 5, 9]
    working.worker.advance()
    assert [sender.messages[1].version for sender in working.senders] == [20, 20, 20]
    # Count, sum, least and most.
    assert working.worker.spread.take() == (2, 4, 0, 4)
    assert int(working.waiter.activity.stamp[1]) == 20


@pytest.mark.parametrize("shard", [0, 2])
@pytest.mark.parametrize(("max_lag", "moved", "sent"), [(None, 50, 1), (3, 3, 1), (3, 4, 0), (0, 0, 1), (0, 1, 0)])
def test_a_gradient_that_is_too_old_for_one_shard_is_sent_to_none(
    max_lag: int | None, moved: int, sent: int, shard: int
) -> None:
    working = Working(A3CConfig(max_lag=max_lag), num_shards=3)
    if moved:
        working.once(lambda: working.publish(shard, 5 + moved))
    working.worker.advance()
    worker = working.worker
    assert [sender.sent for sender in working.senders] == [sent] * 3
    assert (worker.pushed, worker.dropped, worker.dropped_steps) == (1, 1 - sent, STEPS * (1 - sent))
    assert worker.pushed_bytes == 4 * len(working.flat) * sent
    # The next one begins with the newest weights.
    worker.advance()
    assert (worker.pushed, worker.dropped) == (2, 1 - sent)
    assert working.senders[shard].messages[-1].version == 5 + moved


@pytest.mark.parametrize("blocked", [0, 1])
def test_a_worker_without_a_slot_waits_is_counted_and_may_be_too_old_by_then(blocked: int) -> None:
    working = Working(A3CConfig(max_lag=1))
    worker, sender = working.worker, working.senders[blocked]

    def take_the_slot_for(updates: int) -> None:
        def give_it_back() -> None:
            sender.free = True
            working.publish(0, 5 + updates)

        sender.free = False
        working.once(give_it_back)

    # Given back while it acts: nobody waits.
    take_the_slot_for(0)
    worker.advance()
    assert (worker.waits, worker.dropped, len(working.sent())) == (0, 0, 1)
    working.after_acting(lambda _: take_the_slot_for(1))
    worker.advance()
    assert (worker.waits, worker.dropped, len(working.sent())) == (1, 0, 2)
    working.after_acting(lambda _: take_the_slot_for(3))
    worker.advance()
    assert (worker.waits, worker.dropped, len(working.sent())) == (2, 1, 2)


@pytest.mark.parametrize(("is_dropped", "steps"), [(False, STEPS), (True, 0)])
@pytest.mark.parametrize(("stop", "save"), [(True, False), (False, True), (True, True)])
def test_a_wish_of_this_rank_leaves_once_even_where_the_gradient_is_dropped(
    is_dropped: bool, steps: int, stop: bool, save: bool
) -> None:
    working = Working(A3CConfig(max_lag=0))
    working.requests.stop, working.requests.save = ("SIGTERM" if stop else None), save
    if is_dropped:
        working.once(lambda: working.publish(1, 6))
    working.worker.advance()
    working.requests.stop = None
    working.worker.advance()
    assert working.wishes() == [(steps, stop, save), (STEPS, False, False)]
    assert (working.worker.pushed, working.worker.dropped) == (2, int(is_dropped))


@pytest.mark.parametrize("flags", [SAVE, SAVE | STOP])
def test_a_wish_of_an_owner_that_does_not_lead_is_carried_until_the_ranks_meet(flags: Boundary) -> None:
    working, told = Working(num_shards=3), (STEPS, STOP in flags, True)
    working.publish(2, 6, flags)
    working.worker.advance()
    working.publish(1, 6)
    working.worker.advance()
    assert working.wishes() == [told, told]
    # They meet; the owner that wished has published nothing since.
    working.publish(0, 7, boundaries=1)
    working.worker.advance()
    assert working.wishes()[2:] == [(STEPS, False, False)]
    working.publish(2, 7, flags, boundaries=1)
    working.worker.advance()
    assert working.wishes()[3:] == [told]


def test_flags_of_the_lead_are_no_wish() -> None:
    working = Working()
    working.publish(0, 6, SAVE | STOP, boundaries=1)
    working.worker.advance()
    assert working.wishes() == [(STEPS, False, False)]


def test_a_wish_of_an_owner_is_carried_where_the_gradient_is_dropped() -> None:
    working = Working(A3CConfig(max_lag=0))
    working.publish(1, 6, SAVE)
    working.once(lambda: working.publish(0, 6))
    working.worker.advance()
    assert working.wishes() == [(0, False, True)] and working.worker.dropped == 1


def test_an_unroll_without_a_step_is_neither_pushed_nor_counted() -> None:
    working = Working()

    working.after_acting(lambda unroll: unroll.valid.fill(False))
    working.worker.advance()
    assert (working.sent(), working.worker.pushed, working.worker.dropped) == ([], 0, 0)
    assert math.isnan(working.worker.reducer.take()["train/policy_loss"])
    working.worker.advance()
    assert working.wishes() == [(STEPS, False, False)]


def test_episodes_are_told_once() -> None:
    working = Working(env_id=SHORT)
    assert len(working.worker.take_episodes()) == 0
    expected = []
    for _ in range(2):
        working.worker.advance()
        expected.append(finished_episodes(working.twin.fill()))
    told = working.worker.take_episodes()
    assert np.array_equal(told, np.concatenate(expected)) and len(told) == STEPS
    assert len(working.worker.take_episodes()) == 0
    working.worker.advance()
    assert np.array_equal(working.worker.take_episodes(), finished_episodes(working.twin.fill()))
    assert working.worker.unrolls_cut == 0
