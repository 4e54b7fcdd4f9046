"""The intake: what one learner takes, and how learners share what they have."""

from __future__ import annotations

from typing import Any, cast

import tests.no_mpi  # noqa: F401

# isort: split
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hpcrl.roles.batching import Batcher
from hpcrl.roles.intake import Intake, _shares
from hpcrl.roles.schedule import Schedule
from hpcrl.signals import Requests
from tests.playing import Blocked, BusyWaiter
from tests.single.test_inbox import TASK, TIME, Sending


class Alone:
    """The communicator of a single learner."""

    rank, size = 0, 1


class Taking:
    """An intake of one learner, and its senders."""

    def __init__(self, batch_envs: int, sizes: tuple[int, ...], in_rounds: bool, num_epochs: int = 1) -> None:
        self.senders = [Sending(place + 1, size) for place, size in enumerate(sizes)]
        self.requests, self.waiter = Requests(), BusyWaiter()
        slack = 3 if not in_rounds else None
        self.intake = Intake(
            schedule=Schedule(sum(sizes), batch_envs, in_rounds, in_rounds, slack),
            comm=cast(Any, Alone()),
            rank=0,
            receivers=self.senders,
            own_envs=sum(sizes),
            batcher=Batcher(TASK, TIME),
            num_epochs=num_epochs,
            requests=self.requests,
            waiter=cast(Any, self.waiter),
        )


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(1, 60))
def test_shares_are_a_batch_of_what_there_is_as_equal_as_can_be(columns: list[int], batch: int) -> None:
    assume(sum(columns) >= batch)
    table = np.array(columns, np.int64)
    shares = _shares(table, batch)
    assert shares.sum() == batch and (shares >= 0).all() and (shares <= table).all()
    assert np.array_equal(table, columns) and np.array_equal(_shares(table.copy(), batch), shares)
    # Whoever brings less than another by more than one brings all it has.
    short = shares < shares.max() - 1
    assert (shares[short] == table[short]).all()


@pytest.mark.parametrize("in_rounds", [True, False])
def test_a_batch_is_taken_once_it_is_here(in_rounds: bool) -> None:
    taking = Taking(4, (3, 2), in_rounds)
    taking.senders[0].put(version=2)
    with pytest.raises(Blocked):
        taking.intake.next(5, 0)
    assert taking.intake.waits == 1
    taking.senders[1].put(version=4, valid=1)
    agreed = taking.intake.next(5, 0)
    assert (agreed.columns.tolist(), agreed.steps, agreed.stop, agreed.save) == ([4], 3 * TIME + 1, False, False)
    assert taking.intake.batcher.batch.valid.shape == (TIME, 4)
    assert taking.intake.lag.take() == (4, 3 * 3 + 1, 1, 3)
    assert taking.intake.inbox.columns == 1 and agreed.cut == 1


def test_wishes_come_with_the_unrolls_and_are_told_once() -> None:
    taking = Taking(2, (2,), True)
    for wish in ({"save_requested": 1}, {}, {"stop_requested": 1}):
        taking.senders[0].put()
        taking.senders[0]._waiting[-1].set_header(**wish)
    agreed = [taking.intake.next(0, 0) for _ in range(3)]
    assert [(each.save, each.stop) for each in agreed] == [(True, False), (False, False), (False, True)]
    taking.requests.save = True
    taking.senders[0].put()
    taking.senders[0].put()
    assert [taking.intake.next(0, 0).save for _ in range(2)] == [True, False]


def test_a_learner_that_is_asked_to_stop_waits_for_no_batch_as_it_comes() -> None:
    taking = Taking(4, (3,), False)
    taking.senders[0].put()
    taking.requests.stop = "SIGTERM"
    agreed = taking.intake.next(0, 0)
    assert (agreed.columns.tolist(), agreed.steps, agreed.stop) == ([0], 0, True)
    assert taking.intake.batcher.batch.valid.shape == (TIME, 0)


def test_an_actor_that_is_asked_to_stop_ends_the_wait_too() -> None:
    taking = Taking(4, (3,), False)
    taking.senders[0].put()
    taking.senders[0]._waiting[-1].set_header(stop_requested=1)
    agreed = taking.intake.next(0, 0)
    assert agreed.stop and agreed.steps == 0 and taking.intake.inbox.columns == 3


def test_a_learner_that_never_waits_looks_after_the_others_too() -> None:
    taking = Taking(2, (2,), False)
    for batch in range(3):
        taking.senders[0].put()
        taking.intake.next(0, 0)
        assert taking.waiter.ticks == batch + 1
    assert taking.intake.waits == 0


def test_episodes_are_taken_once() -> None:
    taking = Taking(2, (2,), True)
    taking.senders[0].put()
    unroll = taking.senders[0]._waiting[-1]
    unroll.ended[1, 0] = True
    unroll.episode_return[1, 0] = 7
    taking.intake.next(0, 0)
    assert taking.intake.take_episodes()["return"].tolist() == [7]
    assert len(taking.intake.take_episodes()) == 0
