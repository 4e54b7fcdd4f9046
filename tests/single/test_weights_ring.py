"""Shared memory: no reader ever sees half a publication, and no slot is taken before it is free."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

import tests.no_mpi  # noqa: F401

# isort: split
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import hpcrl.cluster.weights as weights_module
from hpcrl.cluster.shared_memory import CACHE_LINE, counters
from hpcrl.cluster.transport import SharedReceiver, SharedSender, slots_nbytes
from hpcrl.cluster.weights import Control, WeightsRing, WeightsSubscriber, message_nbytes, pack, unpack
from hpcrl.errors import TransportError
from hpcrl.spaces import Space, Task
from hpcrl.unroll import Unroll, UnrollSpec, aligned_zeros

NUM_WEIGHTS, RING_SLOTS = 3, 2
TASK = Task(Space("box", (2,), "float32"), Space("discrete", (), "int64", 2), None, True)
SPEC = UnrollSpec(TASK, 3, 2, 0, 4)


def no_fence() -> None:
    pass


def flags_of(publication: int) -> int:
    """Every third publication is a boundary."""
    return publication % 4 if publication % 3 == 1 else 0


def control_of(publication: int) -> Control:
    boundaries = sum(flags_of(earlier) > 0 for earlier in range(min(publication, 100) + 1))
    return Control(publication, 10 + publication, flags_of(publication), 100 * publication, boundaries)


def weights_of(publication: int) -> NDArray[np.float32]:
    return np.full(NUM_WEIGHTS, publication + 0.5, np.float32)


def make_memory() -> NDArray[np.uint8]:
    return aligned_zeros(WeightsRing.nbytes_for(NUM_WEIGHTS, RING_SLOTS))


def make_ring(memory: NDArray[np.uint8], fence: Callable[[], None] = no_fence) -> WeightsRing:
    return WeightsRing(memory, NUM_WEIGHTS, RING_SLOTS, fence)


def publish(ring: WeightsRing, publication: int) -> None:
    control = control_of(publication)
    ring.write(control, lambda message: pack(message, control, weights_of(publication)))


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


def test_the_newest_publications_can_be_read_and_older_ones_are_named() -> None:
    memory = make_memory()
    writer, reader = make_ring(memory), make_ring(memory)
    got = np.zeros(NUM_WEIGHTS, np.float32)
    assert reader.newest == -1
    for newest in range(6):
        publish(writer, newest)
        assert reader.newest == newest
        for publication in range(max(0, newest - RING_SLOTS + 1), newest + 1):
            assert reader.read(publication, got) == control_of(publication)
            assert np.array_equal(got, weights_of(publication))
        assert reader.read_newest(got) == control_of(newest) and np.array_equal(got, weights_of(newest))
    with pytest.raises(TransportError, match="publication 2 were overwritten by 4"):
        reader.read(2, got)
    with pytest.raises(TransportError, match="publication 6 could not be read"):
        reader.read(6, got)


def test_a_publication_that_was_passed_over_can_not_be_read() -> None:
    memory = make_memory()
    writer, reader = make_ring(memory), make_ring(memory)
    got = np.zeros(NUM_WEIGHTS, np.float32)
    for publication in (0, 3, 4, 9):
        publish(writer, publication)
        assert reader.read_newest(got) == control_of(publication) and np.array_equal(got, weights_of(publication))
    for missing in (5, 7):
        with pytest.raises(TransportError):
            reader.read(missing, got)


class Writer:
    """Publishes on a thread that moves on only when told to, a store or fence at a time.

    Args:
        met: boundaries at which the reader was, for which the writer waits; None to wait for nobody.
    """

    def __init__(self, memory: NDArray[np.uint8], publications: Iterable[int], met: list[int] | None) -> None:
        self._met = met
        self._go, self._paused, self.over = threading.Semaphore(0), threading.Semaphore(0), False
        self._ring, self._publications = make_ring(memory, self._pause), publications
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._paused.acquire()

    def advance(self) -> None:
        if not self.over:
            self._go.release()
            self._paused.acquire()

    def finish(self) -> None:
        self._met = None
        while not self.over:
            self.advance()
        self._thread.join()

    def _pause(self) -> None:
        self._paused.release()
        self._go.acquire()

    def _run(self) -> None:
        for number in self._publications:
            self._pause()
            self._ring.write(control_of(number), partial(self._fill, number=number))
            while flags_of(number) and self._met is not None and number not in self._met:
                self._pause()
        self.over = True
        self._paused.release()

    def _fill(self, message: NDArray[np.uint8], number: int) -> None:
        whole = np.zeros_like(message)
        pack(whole, control_of(number), weights_of(number))
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


STEPS = st.lists(st.sampled_from([0, 0, 0, 1, 2, 5, 12, 25]), max_size=40)


class Interleaved:
    """A writer, and a reader in whose pauses the writer moves on by so many steps."""

    def __init__(self, publications: Iterable[int], start: int, steps: list[int], met: list[int] | None = None) -> None:
        memory, self._remaining = make_memory(), iter(steps)
        self.writer = Writer(memory, publications, met)
        for _ in range(start):
            self.writer.advance()
        self.reader, self.got = make_ring(memory, self.pause), np.zeros(NUM_WEIGHTS, np.float32)

    def pause(self) -> None:
        for _ in range(next(self._remaining, 0)):
            self.writer.advance()

    def __enter__(self) -> Interleaved:
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(weights_module, "unpack", read_piece_by_piece(self.pause))
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()
        self.writer.finish()

    def expect(self, control: Control) -> None:
        assert control == control_of(control.publication)
        assert np.array_equal(self.got, weights_of(control.publication))


@settings(max_examples=250, deadline=None)
@given(start=st.integers(0, 40), numbers=st.lists(st.integers(0, 4), min_size=1, max_size=3), steps=STEPS)
def test_no_interleaving_gives_a_torn_vector(start: int, numbers: list[int], steps: list[int]) -> None:
    with Interleaved(range(5), start, steps) as world:
        for number in numbers:
            try:
                control = world.reader.read(number, world.got)
            except TransportError:
                continue
            assert control.publication == number
            world.expect(control)


PASSING_OVER = st.lists(st.integers(1, 3), max_size=4).map(lambda gaps: [sum(gaps[:n]) for n in range(len(gaps) + 1)])


@settings(max_examples=250, deadline=None)
@given(publications=PASSING_OVER, start=st.integers(12, 60), steps=STEPS)
def test_the_newest_weights_are_whole_and_never_older_than_what_was_seen(
    publications: list[int], start: int, steps: list[int]
) -> None:
    with Interleaved(publications, start, steps) as world:
        for _ in range(3):
            seen = world.reader.newest
            if seen < 0:
                world.pause()
                continue
            control = world.reader.read_newest(world.got)
            assert control.publication >= seen
            world.expect(control)


def keep_boundaries(gaps: list[int]) -> list[int]:
    """Publications of which some are passed over, but no boundary."""
    chosen = {sum(gaps[:n]) for n in range(len(gaps) + 1)}
    return [number for number in range(max(chosen) + 1) if number in chosen or flags_of(number)]


@settings(max_examples=250, deadline=None)
@given(publications=st.lists(st.integers(1, 3), max_size=4).map(keep_boundaries), start=st.integers(0, 60), steps=STEPS)
def test_every_boundary_is_met_once_with_its_weights_before_any_later_ones(
    publications: list[int], start: int, steps: list[int]
) -> None:
    met: list[int] = []
    with Interleaved(publications, start, steps, met) as world:
        subscriber = WeightsSubscriber(world.reader, None)
        looks = 0
        while world.reader.newest < publications[-1] or looks < 3:
            looks += world.reader.newest == publications[-1]
            seen = world.reader.newest
            announced = subscriber.announces_boundary()
            boundary = subscriber.boundary()
            assert boundary is not None or not announced
            if boundary is not None:
                assert boundary == control_of(boundary.publication)
                newest = subscriber.fetch_newest(world.got, None)
                assert newest == boundary
                world.expect(newest)
                met.append(boundary.publication)
            assert [number for number in publications if number <= seen and flags_of(number)] == [
                number for number in met if number <= seen
            ]
            world.writer.advance()
    assert met == [number for number in publications if flags_of(number)]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 60))
def test_what_has_been_published_can_be_read_while_the_next_is_written(steps: int) -> None:
    with Interleaved(range(5), steps, []) as world:
        if (newest := world.reader.newest) >= 0:
            world.expect(world.reader.read(newest, world.got))


def test_weights_that_are_at_hand_are_not_copied_again() -> None:
    memory = make_memory()
    writer, subscriber = make_ring(memory), WeightsSubscriber(make_ring(memory), None)
    got = np.zeros(NUM_WEIGHTS, np.float32)
    assert not subscriber.has(0)
    publish(writer, 0)
    held = subscriber.fetch_newest(got, None)
    got[:] = 99
    assert subscriber.has(0) and not subscriber.has(1)
    assert subscriber.fetch_newest(got, held) is held and (got == 99).all()
    publish(writer, 2)
    assert subscriber.has(1) and subscriber.fetch_newest(got, held) == control_of(2)
    assert np.array_equal(got, weights_of(2)) and subscriber.fetch(0, got) == control_of(0)


def make_ends(actor: int = 4, num_slots: int = 2) -> tuple[SharedSender, SharedReceiver]:
    memory = aligned_zeros(slots_nbytes(SPEC, num_slots))
    return SharedSender(SPEC, memory, num_slots, no_fence), SharedReceiver(actor, SPEC, memory, num_slots, no_fence)


def send(sender: SharedSender, number: int, actor: int = 4) -> None:
    assert sender.is_free()
    unroll = sender.slot()
    unroll.set_header(actor=actor)
    unroll.reward[:] = number
    sender.send()


def receive(receiver: SharedReceiver) -> Unroll:
    unroll = receiver.poll()
    assert unroll is not None
    return unroll


@settings(max_examples=150, deadline=None)
@given(st.integers(2, 5), st.lists(st.sampled_from(["send", "send", "receive", "release"]), max_size=60))
def test_unrolls_arrive_once_in_order_and_wait_for_room(num_slots: int, operations: list[str]) -> None:
    sender, receiver = make_ends(num_slots=num_slots)
    waiting: deque[int] = deque()
    held: deque[tuple[int, Unroll]] = deque()
    for operation in operations:
        assert sender.is_free() == (len(waiting) + len(held) < num_slots)
        if operation == "send" and sender.is_free():
            waiting.append(sender.sequence)
            send(sender, sender.sequence)
        elif operation == "receive" and not waiting:
            assert receiver.poll() is None
        elif operation == "receive":
            number = waiting.popleft()
            held.append((number, receive(receiver)))
            assert receiver.received == number + 1
        elif operation == "release" and held:
            held.popleft()
            receiver.release()
        # Whatever is held stays as it came.
        for number, unroll in held:
            assert unroll.sequence == number and (unroll.reward == number).all()


def test_a_slot_that_is_held_is_not_filled() -> None:
    sender, receiver = make_ends(num_slots=3)
    for number in range(3):
        send(sender, number)
    unrolls = [receive(receiver), receive(receiver)]
    assert not sender.is_free()
    receiver.release()
    assert sender.is_free() and np.shares_memory(sender.slot().buffer, unrolls[0].buffer)
    send(sender, 3)
    assert not sender.is_free() and (unrolls[1].reward == 1).all()


def test_unrolls_of_another_sequence_or_actor_are_refused() -> None:
    sender, receiver = make_ends()
    send(sender, 0, actor=5)
    with pytest.raises(TransportError, match="expected unroll 0 of rank 4, got unroll 0 of rank 5"):
        receiver.poll()
    sender, receiver = make_ends()
    sent = sender.slot()
    send(sender, 0)
    sent.set_header(sequence=9)
    with pytest.raises(TransportError, match="expected unroll 0 of rank 4, got unroll 9 of rank 4"):
        receiver.poll()


def test_content_is_complete_before_the_slot_is_handed_over() -> None:
    memory, seen = aligned_zeros(slots_nbytes(SPEC, 2)), []
    receiver = SharedReceiver(4, SPEC, memory, 2, no_fence)

    def look() -> None:
        if (unroll := receiver.poll()) is not None:
            seen.append((unroll.sequence, float(unroll.reward[0, 0])))
            receiver.release()

    sender = SharedSender(SPEC, memory, 2, look)
    for number in range(5):
        send(sender, number)
    assert seen == [(number, float(number)) for number in range(5)]
