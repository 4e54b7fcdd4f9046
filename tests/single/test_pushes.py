"""Gradients on their way: they arrive as sent, once, in order, and nothing that is held is overwritten."""

from __future__ import annotations

from collections import deque

import tests.no_mpi  # noqa: F401

# isort: split
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hpcrl.cluster.channels import Inbox, Outbox, SharedInbox, SharedOutbox, channel_nbytes
from hpcrl.cluster.pushes import NUM_PUSHES, Push, PushReceiver, PushSender, push_nbytes
from hpcrl.errors import TransportError
from hpcrl.unroll import aligned_zeros
from tests.asynchronous import make_channel
from tests.playing import no_fence

WORKER, NUM_WEIGHTS = 6, 5
INT64 = st.integers(-(2**63), 2**63 - 1)


def gradient_of(number: int) -> NDArray[np.float32]:
    return np.full(NUM_WEIGHTS, number + 0.5, np.float32)


def send(sender: PushSender, number: int) -> None:
    gradient = gradient_of(number)
    sender.send(gradient, 10 + number, 100 + number, False, False)
    # The sender's own memory is free again at once.
    gradient[:] = -1


def receive(receiver: PushReceiver) -> Push:
    push = receiver.poll()
    assert push is not None
    return push


def raw_ends(receiver_of: int) -> tuple[Outbox, PushSender, PushReceiver]:
    """A channel from `WORKER` whose receiver believes in another one, and the memory that messages go through."""
    nbytes = push_nbytes(NUM_WEIGHTS)
    memory = aligned_zeros(channel_nbytes(nbytes, NUM_PUSHES))
    outbox: Outbox = SharedOutbox(nbytes, memory, NUM_PUSHES, no_fence)
    inbox: Inbox = SharedInbox(nbytes, memory, NUM_PUSHES, no_fence)
    return outbox, PushSender(WORKER, outbox), PushReceiver(receiver_of, inbox)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([0, 1, 16, 17, 100]), INT64, INT64, INT64, st.booleans(), st.booleans(), st.integers(0, 99))
def test_header_and_gradient_arrive_as_sent(
    num_weights: int, worker: int, version: int, steps: int, stop: bool, save: bool, seed: int
) -> None:
    channel = make_channel(num_weights, worker)
    bits = np.random.default_rng(seed).integers(0, 256, 4 * num_weights, np.uint8)
    for sequence in range(3):
        channel.sender.send(bits.view(np.float32), version, steps, stop, save)
        push = receive(channel.receiver)
        assert tuple(push.header) == (worker, sequence, version, steps, stop, save)
        # NaNs and negative zeros too.
        assert push.gradient.dtype == np.float32 and push.gradient.tobytes() == bits.tobytes()
        channel.receiver.release()


def test_a_message_is_as_large_as_its_shard_and_a_cache_line() -> None:
    assert [push_nbytes(count) for count in (0, 1, 16, 17)] == [64, 68, 128, 132]
    channel = make_channel(17, WORKER)
    for number in range(NUM_PUSHES):
        channel.sender.send(np.zeros(17, np.float32), number, 1, False, False)
        assert receive(channel.receiver).gradient.ctypes.data % 64 == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["send", "send", "receive", "release"]), max_size=50))
def test_gradients_arrive_once_in_order_and_two_may_be_under_way(operations: list[str]) -> None:
    sender, receiver = make_channel(NUM_WEIGHTS, WORKER)
    waiting: deque[int] = deque()
    held: deque[tuple[int, Push]] = deque()
    for operation in operations:
        assert sender.is_free() == (len(waiting) + len(held) < 2)
        if operation == "send" and sender.is_free():
            waiting.append(sender.sent)
            send(sender, sender.sent)
        elif operation == "receive" and not waiting:
            assert receiver.poll() is None
        elif operation == "receive":
            held.append((waiting.popleft(), receive(receiver)))
        elif operation == "release" and held:
            held.popleft()
            receiver.release()
        assert receiver.received == sender.sent - len(waiting)
        # Whatever is held stays as it came.
        for number, push in held:
            assert tuple(push.header) == (WORKER, number, 10 + number, 100 + number, False, False)
            assert np.array_equal(push.gradient, gradient_of(number))


@pytest.mark.parametrize(("expected", "sequence"), [(7, 0), (WORKER, 1), (WORKER, -1)])
def test_gradients_of_another_worker_or_sequence_are_refused(expected: int, sequence: int) -> None:
    outbox, sender, receiver = raw_ends(expected)
    send(sender, 0)
    outbox.slots[0][8:16].view(np.int64)[0] = sequence
    text = f"expected gradient 0 of rank {expected}, got gradient {sequence} of rank {WORKER}"
    with pytest.raises(TransportError, match=text):
        receiver.poll()


def test_a_gradient_that_comes_twice_is_refused() -> None:
    outbox, sender, receiver = raw_ends(WORKER)
    for number in range(2):
        send(sender, number)
    outbox.slots[1][:] = outbox.slots[0]
    receive(receiver)
    with pytest.raises(TransportError, match="expected gradient 1 of rank 6, got gradient 0 of rank 6"):
        receiver.poll()


def test_content_is_complete_before_the_slot_is_handed_over() -> None:
    seen: list[tuple[int, int, list[float]]] = []

    def look() -> None:
        if (push := receiver.poll()) is not None:
            seen.append((push.header.sequence, push.header.steps, push.gradient.tolist()))
            receiver.release()

    nbytes = push_nbytes(NUM_WEIGHTS)
    memory = aligned_zeros(channel_nbytes(nbytes, NUM_PUSHES))
    receiver = PushReceiver(WORKER, SharedInbox(nbytes, memory, NUM_PUSHES, no_fence))
    sender = PushSender(WORKER, SharedOutbox(nbytes, memory, NUM_PUSHES, look))
    for number in range(5):
        send(sender, number)
    assert seen == [(number, 100 + number, gradient_of(number).tolist()) for number in range(5)]
