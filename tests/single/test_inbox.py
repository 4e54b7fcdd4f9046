"""The inbox: every column is learned from once or counted as dropped, and slots go back in order."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

import tests.no_mpi  # noqa: F401

# isort: split
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcrl.roles.inbox import Inbox, Piece
from hpcrl.spaces import Space, Task
from hpcrl.unroll import Unroll, UnrollSpec

TASK = Task(Space("box", (2,), "float32"), Space("discrete", (), "int64", 2), None, True)
TIME = 3


class Sending:
    """An actor's transport in one: unrolls are put in, taken in order, and released in order."""

    def __init__(self, actor: int, num_envs: int) -> None:
        self.actor, self.spec = actor, UnrollSpec(TASK, TIME, num_envs, 0, 0)
        self.received = self.sent = self.released = 0
        self._waiting: deque[Unroll] = deque()

    def put(self, version: int = 0, valid: int = TIME) -> None:
        """Send the next unroll, of which the first `valid` rows count."""
        unroll = Unroll(self.spec)
        unroll.set_header(actor=self.actor, sequence=self.sent, policy_version=version, length=valid)
        unroll.valid[:valid] = True
        self._waiting.append(unroll)
        self.sent += 1

    def poll(self) -> Unroll | None:
        if not self._waiting:
            return None
        self.received += 1
        return self._waiting.popleft()

    def release(self) -> None:
        self.released += 1
        assert self.released <= self.received


class Learning:
    """An inbox and what was taken from it."""

    def __init__(self, senders: list[Sending], in_rounds: bool) -> None:
        self.noted: list[tuple[int, int]] = []
        self.inbox = Inbox(senders, in_rounds, lambda unroll: self.noted.append((unroll.actor, unroll.sequence)))
        self.taken: list[tuple[int, int, int]] = []
        self._released = {sender.actor: lambda sender=sender: sender.released for sender in senders}

    def take(self, count: int) -> list[tuple[int, int, int, int]]:
        """Take columns; (actor, sequence, first, end) of the pieces."""
        pieces: list[Piece] = []

        def use(given: list[Piece]) -> None:
            # What is used has not gone back to its actor.
            assert all(unroll.sequence >= self._released[unroll.actor]() for unroll, _, _ in given)
            pieces.extend(given)

        self.inbox.take(count, use)
        self.taken += [(u.actor, u.sequence, column) for u, first, end in pieces for column in range(first, end)]
        return [(u.actor, u.sequence, first, end) for u, first, end in pieces]


def test_rounds_are_taken_in_rank_order_whatever_arrives_first() -> None:
    senders = [Sending(4, 2), Sending(7, 3)]
    learning = Learning(senders, True)
    for _ in range(2):
        senders[1].put()
    assert learning.inbox.collect(5, 0) == 0 and learning.noted == []
    senders[0].put()
    assert learning.inbox.collect(5, 0) == 5 and learning.noted == [(4, 0), (7, 0)]
    assert learning.take(5) == [(4, 0, 0, 2), (7, 0, 0, 3)]
    assert learning.inbox.collect(1, 0) == 0 and senders[1].received == 1


def test_in_rounds_no_more_is_taken_in_than_a_batch_needs() -> None:
    senders = [Sending(4, 2), Sending(7, 3)]
    learning = Learning(senders, True)
    for _ in range(3):
        for sender in senders:
            sender.put()
    assert learning.inbox.collect(3, 0) == 5 and learning.inbox.collect(5, 0) == 5
    assert learning.inbox.collect(6, 0) == 7
    assert [sender.received for sender in senders] == [2, 1]


def test_as_it_comes_everything_is_taken_in_the_order_of_arrival() -> None:
    senders = [Sending(4, 2), Sending(7, 3)]
    learning = Learning(senders, False)
    senders[1].put()
    assert learning.inbox.collect(1, 0) == 3
    for sender in (*senders, *senders):
        sender.put()
    assert learning.inbox.collect(1, 0) == 13
    assert learning.take(13) == [(7, 0, 0, 3), (4, 0, 0, 2), (4, 1, 0, 2), (7, 1, 0, 3), (7, 2, 0, 3)]


def test_columns_of_an_unroll_go_to_several_batches_and_its_slot_back_after_the_last() -> None:
    sender = Sending(4, 5)
    learning = Learning([sender], True)
    sender.put()
    sender.put()
    learning.inbox.collect(2, 0)
    released = []
    pieces = []
    for count in (2, 2, 3, 0, 3):
        learning.inbox.collect(count, 0)
        pieces.append(learning.take(count))
        released.append(sender.released)
    assert pieces == [[(4, 0, 0, 2)], [(4, 0, 2, 4)], [(4, 0, 4, 5), (4, 1, 0, 2)], [], [(4, 1, 2, 5)]]
    assert released == [0, 0, 1, 1, 2]
    assert (learning.inbox.learned_unrolls, learning.inbox.columns) == (2, 0)


def test_slots_are_held_while_their_columns_are_in_use() -> None:
    sender = Sending(4, 1)
    inbox = Inbox([sender], True, lambda _: None)
    sender.put()
    inbox.collect(1, 0)

    def use(pieces: list[Piece]) -> None:
        assert len(pieces) == 1 and sender.released == 0

    inbox.take(1, use)
    assert sender.released == 1


def test_old_unrolls_are_dropped_whole_or_what_is_left_of_them() -> None:
    senders = [Sending(4, 4), Sending(7, 3)]
    learning = Learning(senders, False)
    senders[0].put(version=5)
    learning.inbox.collect(1, 0)
    learning.take(1)
    senders[1].put(version=6, valid=2)
    senders[0].put(version=8)
    assert learning.inbox.collect(1, 5) == 10
    assert learning.inbox.collect(1, 7) == 4
    # The first had been learned from already, so that only the rest of its steps is lost.
    assert (learning.inbox.dropped_unrolls, learning.inbox.dropped_steps) == (1, 3 * TIME + 3 * 2)
    assert [sender.released for sender in senders] == [1, 1]
    assert learning.take(4) == [(4, 1, 0, 4)]
    assert learning.inbox.learned_unrolls == 2


def test_in_rounds_nothing_is_dropped() -> None:
    sender = Sending(4, 2)
    learning = Learning([sender], True)
    sender.put(version=0)
    assert learning.inbox.collect(2, 99) == 2 and learning.inbox.dropped_unrolls == 0


def test_more_than_there_is_can_not_be_taken() -> None:
    learning = Learning([Sending(4, 2)], True)
    with pytest.raises(AssertionError, match="1 columns were asked for, 0 are here"):
        learning.take(1)


OPERATION = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 2), st.integers(0, 3)),
    st.tuples(st.just("take"), st.floats(0, 1), st.just(0)),
    st.tuples(st.just("update"), st.integers(1, 4), st.just(0)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=3), st.booleans(), st.lists(OPERATION, max_size=50))
def test_every_column_is_learned_from_once_or_counted_as_dropped(
    sizes: list[int], in_rounds: bool, operations: list[Any]
) -> None:
    if in_rounds:
        sizes = [size or 1 for size in sizes]
    senders = [Sending(10 + place, size) for place, size in enumerate(sizes)]
    learning = Learning(senders, in_rounds)
    inbox, now, versions = learning.inbox, 0, {}
    for name, first, second in operations:
        oldest = now - 5
        if name == "put":
            sender = senders[first % len(senders)]
            versions[sender.actor, sender.sent] = version = max(now - second, 0)
            sender.put(version)
        elif name == "take":
            before = len(learning.taken)
            here = inbox.collect(sum(sizes), oldest)
            assert here == inbox.columns
            learning.take(round(first * here))
            if not in_rounds:
                assert all(versions[actor, number] >= oldest for actor, number, _ in learning.taken[before:])
        else:
            now += first
        for sender in senders:
            assert 0 <= sender.received - sender.released <= sender.received <= sender.sent
    if in_rounds:
        complete = min(sender.sent for sender in senders)
        inbox.collect(10**6, 0)
        order = [(s.actor, number, c) for number in range(complete) for s in senders for c in range(s.spec.num_envs)]
    else:
        inbox.collect(1, now - 5)
        order = []
    learning.take(inbox.columns)
    assert max(Counter(learning.taken).values(), default=1) == 1
    assert learning.taken[: len(order)] == order
    assert Counter(learning.noted) == Counter((s.actor, n) for s in senders for n in range(s.received))
    arrived = sum(sender.received * sender.spec.num_envs for sender in senders)
    assert arrived * TIME == len(learning.taken) * TIME + inbox.dropped_steps
    # All slots are back, each actor's in order, and each unroll with columns is accounted for.
    assert all(sender.released == sender.received for sender in senders)
    filled = sum(sender.received for sender in senders if sender.spec.num_envs)
    assert inbox.learned_unrolls + inbox.dropped_unrolls == filled
    for sender in senders:
        columns = [(n, c) for actor, n, c in learning.taken if actor == sender.actor]
        assert columns == sorted(columns)


def test_valid_steps_alone_are_counted() -> None:
    sender = Sending(4, 3)
    learning = Learning([sender], False)
    sender.put(version=0)
    unroll = sender.poll()
    assert unroll is not None
    unroll.valid[:] = np.array([[True, False, True], [True, True, True], [False, False, False]])
    sender._waiting.append(unroll)
    learning.inbox.collect(1, 0)
    learning.take(1)
    learning.inbox.collect(1, 1)
    assert (learning.inbox.dropped_unrolls, learning.inbox.dropped_steps) == (0, 3)
