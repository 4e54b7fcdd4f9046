"""One-way channels for messages of one size: slots in shared memory on a node, MPI messages between nodes.

Both ends count: message number s lies in slot s mod S and arrives once, in order. A sender whose slots are all on
their way waits, so memory is bounded. The sender fills a slot in place, the receiver reads one in place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hpcrl.cluster.mpi import MPI, Comm, Request
from hpcrl.cluster.shared_memory import CACHE_LINE, counters
from hpcrl.unroll import aligned_zeros

#: A sender of messages fills one slot while the other travels.
_NUM_OUTGOING = 2


class Outbox(Protocol):
    """The sender's end.

    Attributes:
        slots: their memory, uint8 [message size] each; message s belongs into slot s mod S.
        sent: messages so far, the number of the next one.
    """

    slots: list[NDArray[np.uint8]]
    sent: int

    def is_free(self) -> bool:
        """Whether the next slot may be filled. Local."""

    def send(self) -> None:
        """Hand the next slot over; it must have been free. Local."""


class Inbox(Protocol):
    """The receiver's end. Several messages may be held at once; they are given back in order.

    Attributes:
        slots: their memory, uint8 [message size] each; message s lies in slot s mod S.
        received, released: messages taken, and given back.
    """

    slots: list[NDArray[np.uint8]]
    received: int
    released: int

    def poll(self) -> int | None:
        """The slot of the next message, if it has arrived; it stays as it is until its `release`. Local."""

    def release(self) -> None:
        """Give the slot of the oldest message that is held back to the sender. Local."""


def channel_nbytes(message_nbytes: int, num_slots: int) -> int:
    """Bytes of shared memory for a channel: the counters of its slots, then the slots."""
    return 2 * num_slots * CACHE_LINE + num_slots * _aligned(message_nbytes)


class _SharedSlots:
    """Slots in shared memory: `filled` and `released` count the messages of each."""

    def __init__(
        self, message_nbytes: int, memory: NDArray[np.uint8], num_slots: int, fence: Callable[[], None]
    ) -> None:
        lines = counters(memory, 2 * num_slots)
        self._filled, self._released = lines[:num_slots], lines[num_slots:]
        self._fence, self._num_slots = fence, num_slots
        first, step = 2 * num_slots * CACHE_LINE, _aligned(message_nbytes)
        self.memory = [memory[first + slot * step :][:message_nbytes] for slot in range(num_slots)]

    def is_free(self, number: int) -> bool:
        """Whether the slot of a message has been given back by the one before it."""
        round_, slot = divmod(number, self._num_slots)
        self._fence()
        return bool(self._released[slot][0] == round_)

    def is_filled(self, number: int) -> bool:
        round_, slot = divmod(number, self._num_slots)
        self._fence()
        return bool(self._filled[slot][0] > round_)

    def fill(self, number: int) -> None:
        self._fence()
        self._filled[number % self._num_slots][0] += 1
        self._fence()

    def release(self, number: int) -> None:
        self._fence()
        self._released[number % self._num_slots][0] += 1
        self._fence()


class SharedOutbox:
    """Hands slots over in place.

    Args:
        message_nbytes: of every message.
        memory: uint8 [channel_nbytes(...)], zeros at first, seen by both ends.
        num_slots: messages on their way or held.
        fence: orders loads and stores of this rank.
    """

    def __init__(
        self, message_nbytes: int, memory: NDArray[np.uint8], num_slots: int, fence: Callable[[], None]
    ) -> None:
        self._shared = _SharedSlots(message_nbytes, memory, num_slots, fence)
        self.slots = self._shared.memory
        self.sent = 0

    def is_free(self) -> bool:
        return self._shared.is_free(self.sent)

    def send(self) -> None:
        self._shared.fill(self.sent)
        self.sent += 1


class SharedInbox:
    """Reads the sender's slots in place; arguments as of `SharedOutbox`."""

    def __init__(
        self, message_nbytes: int, memory: NDArray[np.uint8], num_slots: int, fence: Callable[[], None]
    ) -> None:
        self._shared = _SharedSlots(message_nbytes, memory, num_slots, fence)
        self.slots = self._shared.memory
        self.received = self.released = 0

    def poll(self) -> int | None:
        if not self._shared.is_filled(self.received):
            return None
        self.received += 1
        return (self.received - 1) % len(self.slots)

    def release(self) -> None:
        self._shared.release(self.released)
        self.released += 1


class MessageOutbox:
    """Sends slots as messages. Synchronous sends complete when received: the receiver's slots are credits."""

    def __init__(self, message_nbytes: int, world: Comm, receiver: int, tag: int) -> None:
        self._world, self._receiver, self._tag = world, receiver, tag
        self.slots = [aligned_zeros(message_nbytes) for _ in range(_NUM_OUTGOING)]
        self._sends: list[Request | None] = [None] * _NUM_OUTGOING
        self.sent = 0

    def is_free(self) -> bool:
        return self._is_back(self.sent % _NUM_OUTGOING)

    def _is_back(self, slot: int) -> bool:
        send = self._sends[slot]
        if send is not None and send.Test():
            self._sends[slot] = None
        return self._sends[slot] is None

    def send(self) -> None:
        slot = self.sent % _NUM_OUTGOING
        self._sends[slot] = self._world.Issend([self.slots[slot], MPI.BYTE], self._receiver, self._tag)
        self.sent += 1

    def progress(self) -> bool:
        """Let what is on its way move on while the rank works or waits; whether a slot came back. Local."""
        before = self._sends.count(None)
        return sum(self._is_back(slot) for slot in range(_NUM_OUTGOING)) > before

    def is_drained(self) -> bool:
        """Whether everything has been received. Local."""
        return all([self._is_back(slot) for slot in range(_NUM_OUTGOING)])


class MessageInbox:
    """Receives messages into slots whose receives are posted ahead."""

    def __init__(self, message_nbytes: int, world: Comm, sender: int, tag: int, num_slots: int) -> None:
        self._world, self._sender, self._tag = world, sender, tag
        self.slots = [aligned_zeros(message_nbytes) for _ in range(num_slots)]
        self._receives: list[Request | None] = [self._post(slot) for slot in range(num_slots)]
        self.received = self.released = 0

    def _post(self, slot: int) -> Request:
        return self._world.Irecv([self.slots[slot], MPI.BYTE], self._sender, self._tag)

    def poll(self) -> int | None:
        slot = self.received % len(self.slots)
        receive = self._receives[slot]
        if receive is None or not receive.Test():
            return None
        self._receives[slot] = None
        self.received += 1
        return slot

    def release(self) -> None:
        slot = self.released % len(self.slots)
        self._receives[slot] = self._post(slot)
        self.released += 1

    def cancel(self) -> None:
        """Withdraw the posted receives. Local."""
        for receive in self._receives:
            if receive is not None:
                receive.Cancel()
                receive.Wait()


def _aligned(nbytes: int) -> int:
    return -(-nbytes // CACHE_LINE) * CACHE_LINE
