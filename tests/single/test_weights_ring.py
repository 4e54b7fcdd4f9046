"""Shared memory: no reader ever sees half a publication, and no slot is taken before it is free."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import tests.no_mpi  # noqa: F401

# isort: split
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import hpcrl.cluster.weights as weights_module
from hpcrl.cluster.shared_memory import CACHE_LINE, counters
from hpcrl.cluster.transport import NUM_SLOTS, SharedReceiver, SharedSender, slots_nbytes
from hpcrl.cluster.weights import Control, WeightsRing, message_nbytes, pack, unpack
from hpcrl.errors import TransportError
from hpcrl.spaces import Space, Task
from hpcrl.unroll import UnrollSpec, aligned_zeros

NUM_WEIGHTS, RING_SLOTS = 3, 2
TASK = Task(Space("box", (2,), "float32"), Space("discrete", (), "int64", 2), None, True)
SPEC = UnrollSpec(TASK, 3, 2, 0, 4)


def no_fence() -> None:
    pass


def control_of(round_: int) -> Control:
    return Control(round_, 10 + round_, round_ % 4, 100 * round_)


def weights_of(round_: int) -> NDArray[np.float32]:
    return np.full(NUM_WEIGHTS, round_ + 0.5, np.float32)


def make_memory() -> NDArray[np.uint8]:
    return aligned_zeros(WeightsRing.nbytes_for(NUM_WEIGHTS, RING_SLOTS))


def make_ring(memory: NDArray[np.uint8], fence: Callable[[], None] = no_fence) -> WeightsRing:
    return WeightsRing(memory, NUM_WEIGHTS, RING_SLOTS, fence)


def publish(ring: WeightsRing, round_: int) -> None:
    ring.write(round_, lambda message: pack(message, control_of(round_), weights_of(round_)))


def test_a_message_holds_its_control_word_and_weights() -> None:
    message = aligned_zeros(message_nbytes(NUM_WEIGHTS))
    pack(message, control_of(2**40), weights_of(7))
    got = np.zeros(NUM_WEIGHTS, np.float32)
    assert unpack(message, got) == control_of(2**40) and np.array_equal(got, weights_of(7))
    assert message_nbytes(0) == 64 and message_nbytes(17) == 192 and message_nbytes(16) == 128


def test_counters_have_a_cache_line_each() -> None:
    memory = aligned_zeros(5 * CACHE_LINE)
    lines = counters(memory, 5)
    for index, line in enumerate(lines):
        line[0] = index + 1
        assert line.dtype == np.int64 and line.ctypes.data == memory.ctypes.data + index * CACHE_LINE
    assert np.flatnonzero(memory).tolist() == [index * CACHE_LINE for index in range(5)]


def test_the_newest_rounds_can_be_read_and_older_ones_are_named() -> None:
    memory = make_memory()
    writer, reader = make_ring(memory), make_ring(memory)
    got = np.zeros(NUM_WEIGHTS, np.float32)
    for newest in range(6):
        assert not reader.has(newest)
        publish(writer, newest)
        assert reader.has(newest) and not reader.has(newest + 1)
        for round_ in range(max(0, newest - RING_SLOTS + 1), newest + 1):
            assert reader.read(round_, got) == control_of(round_) and np.array_equal(got, weights_of(round_))
            assert unpack(reader.message(round_), got) == control_of(round_)
    with pytest.raises(TransportError, match="round 2 were overwritten by round 4"):
        reader.read(2, got)
    with pytest.raises(TransportError, match="round 6 could not be read whole"):
        reader.read(6, got)


class Writer:
    """Publishes rounds 0, 1, ... on a thread that moves on only when told to, a store or fence at a time."""

    def __init__(self, memory: NDArray[np.uint8], num_rounds: int) -> None:
        self._go, self._paused, self.over = threading.Semaphore(0), threading.Semaphore(0), False
        self._ring, self._num_rounds = make_ring(memory, self._pause), num_rounds
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._paused.acquire()

    def advance(self) -> None:
        if not self.over:
            self._go.release()
            self._paused.acquire()

    def finish(self) -> None:
        while not self.over:
            self.advance()
        self._thread.join()

    def _pause(self) -> None:
        self._paused.release()
        self._go.acquire()

    def _run(self) -> None:
        for round_ in range(self._num_rounds):
            self._pause()
            self._ring.write(round_, lambda message, round_=round_: self._fill(message, round_))  # type: ignore[misc]
        self.over = True
        self._paused.release()

    def _fill(self, message: NDArray[np.uint8], round_: int) -> None:
        whole = np.empty_like(message)
        pack(whole, control_of(round_), weights_of(round_))
        for first in range(0, len(message), 4):
            if not np.array_equal(message[first : first + 4], whole[first : first + 4]):
                message[first : first + 4] = whole[first : first + 4]
                self._pause()


def read_piece_by_piece(
    pause: Callable[[], None],
) -> Callable[[NDArray[np.uint8], NDArray[np.float32]], Control]:
    """`unpack`, with pauses between what it loads."""

    def slow_unpack(message: NDArray[np.uint8], weights: NDArray[np.float32]) -> Control:
        copy = np.zeros_like(message)
        for first in range(0, len(message), 8):
            copy[first : first + 8] = message[first : first + 8]
            if first % 16 == 0:
                pause()
        return unpack(copy, weights)

    return slow_unpack


@settings(max_examples=250, deadline=None)
@given(
    start=st.integers(0, 40),
    rounds=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    steps=st.lists(st.sampled_from([0, 0, 0, 1, 2, 5, 12, 25]), max_size=40),
)
def test_no_interleaving_gives_a_torn_vector(start: int, rounds: list[int], steps: list[int]) -> None:
    memory, remaining = make_memory(), iter(steps)
    writer = Writer(memory, 5)
    for _ in range(start):
        writer.advance()

    def pause() -> None:
        for _ in range(next(remaining, 0)):
            writer.advance()

    reader, got = make_ring(memory, pause), np.zeros(NUM_WEIGHTS, np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights_module, "unpack", read_piece_by_piece(pause))
        for round_ in rounds:
            try:
                control = reader.read(round_, got)
            except TransportError:
                continue
            assert control == control_of(round_) and np.array_equal(got, weights_of(round_))
    writer.finish()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 60))
def test_what_has_been_published_can_be_read_while_the_next_is_written(steps: int) -> None:
    memory = make_memory()
    writer, reader = Writer(memory, 5), make_ring(memory)
    for _ in range(steps):
        writer.advance()
    newest = max((round_ for round_ in range(5) if reader.has(round_)), default=None)
    if newest is not None:
        got = np.zeros(NUM_WEIGHTS, np.float32)
        assert reader.read(newest, got) == control_of(newest) and np.array_equal(got, weights_of(newest))
    writer.finish()


class Blocked(Exception):
    """A wait that only the other side can end."""


class Impatient:
    """A waiter that doesn't wait."""

    def until(self, ready: Callable[[], bool]) -> None:
        if not ready():
            raise Blocked


WAITER = cast(Any, Impatient())


def make_ends(actor: int = 4) -> tuple[SharedSender, SharedReceiver]:
    memory = aligned_zeros(slots_nbytes(SPEC))
    return SharedSender(SPEC, memory, no_fence), SharedReceiver(actor, SPEC, memory, no_fence)


def send(sender: SharedSender, number: int, actor: int = 4) -> None:
    unroll = sender.next_slot(WAITER)
    unroll.set_header(actor=actor)
    unroll.reward[:] = number
    sender.send(WAITER)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["send", "receive", "release"]), max_size=40))
def test_unrolls_arrive_once_in_order_and_wait_for_room(operations: list[str]) -> None:
    sender, receiver = make_ends()
    waiting: deque[int] = deque()
    sent, received = 0, False
    for operation in operations:
        if operation == "send":
            if len(waiting) == NUM_SLOTS:
                with pytest.raises(Blocked):
                    send(sender, sent)
            else:
                send(sender, sent)
                waiting.append(sent)
                sent += 1
        elif operation == "receive" and not waiting:
            with pytest.raises(Blocked):
                receiver.receive(WAITER)
        elif operation == "receive":
            unroll = receiver.receive(WAITER)
            received = True
            assert unroll.sequence == waiting[0] and (unroll.reward == waiting[0]).all()
        elif received:
            receiver.release()
            waiting.popleft()
            received = False


def test_a_slot_that_is_being_read_is_not_filled() -> None:
    sender, receiver = make_ends()
    send(sender, 1)
    unroll = receiver.receive(WAITER)
    send(sender, 2)
    with pytest.raises(Blocked):
        sender.next_slot(WAITER)
    assert (unroll.reward == 1).all()
    receiver.release()
    assert np.shares_memory(sender.next_slot(WAITER).buffer, unroll.buffer)


def test_unrolls_of_another_sequence_or_actor_are_refused() -> None:
    sender, receiver = make_ends()
    send(sender, 0, actor=5)
    with pytest.raises(TransportError, match="expected unroll 0 of rank 4, got unroll 0 of rank 5"):
        receiver.receive(WAITER)
    sender, receiver = make_ends()
    send(sender, 0)
    receiver.receive(WAITER).set_header(sequence=9)
    with pytest.raises(TransportError, match="expected unroll 0 of rank 4, got unroll 9 of rank 4"):
        receiver.receive(WAITER)


def test_content_is_complete_before_the_slot_is_handed_over() -> None:
    memory, seen = aligned_zeros(slots_nbytes(SPEC)), []
    receiver = SharedReceiver(4, SPEC, memory, no_fence)

    def look() -> None:
        try:
            unroll = receiver.receive(WAITER)
        except Blocked:
            return
        seen.append((unroll.sequence, float(unroll.reward[0, 0])))
        receiver.release()

    sender = SharedSender(SPEC, memory, look)
    for number in range(5):
        send(sender, number)
    assert seen == [(number, float(number)) for number in range(5)]
