"""Unrolls on their way from actors to learners: slots in shared memory on a node, messages between nodes.

Both ends count: unroll number s of an actor lies in slot s mod S, arrives once, in order, and is checked. An actor
whose slots are all on their way waits, so memory is bounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hpcrl.cluster.mpi import MPI, Comm, Request
from hpcrl.cluster.shared_memory import CACHE_LINE, counters
from hpcrl.errors import TransportError
from hpcrl.unroll import Unroll, UnrollSpec

_TAG = 12
#: A sender of messages fills one slot while the other travels; the receiver has as many as a batch may need.
_NUM_OUTGOING = 2


class UnrollSender(Protocol):
    """The actor's end.

    Attributes:
        sequence: unrolls sent so far, the number of the next one.
    """

    sequence: int

    def is_free(self) -> bool:
        """Whether there is a slot to fill. Local."""

    def slot(self) -> Unroll:
        """The slot to fill next, which must be free. Local."""

    def send(self) -> None:
        """Hand that slot over. Local."""


class UnrollReceiver(Protocol):
    """The learner's end of one actor. Several unrolls may be held at once; they are given back in order.

    Attributes:
        actor: world rank of the actor.
        received: unrolls taken so far.
    """

    actor: int
    received: int

    def poll(self) -> Unroll | None:
        """The actor's next unroll, if it has arrived; valid until its `release`. Local."""

    def release(self) -> None:
        """Give the slot of the oldest unroll that is held back to the actor. Local."""


def slots_nbytes(spec: UnrollSpec, num_slots: int) -> int:
    """Bytes of shared memory for an actor's slots and their counters."""
    return 2 * num_slots * CACHE_LINE + num_slots * spec.nbytes


class _SharedSlots:
    """The slots of one actor in shared memory: `filled` and `released` count the unrolls of each slot."""

    def __init__(self, spec: UnrollSpec, memory: NDArray[np.uint8], num_slots: int, fence: Callable[[], None]) -> None:
        lines = counters(memory, 2 * num_slots)
        self._filled, self._released = lines[:num_slots], lines[num_slots:]
        self._fence, self._num_slots = fence, num_slots
        start = 2 * num_slots * CACHE_LINE
        pieces = [memory[start + slot * spec.nbytes :][: spec.nbytes] for slot in range(num_slots)]
        self._unrolls = [Unroll(spec, piece) for piece in pieces]

    def unroll(self, sequence: int) -> Unroll:
        return self._unrolls[sequence % self._num_slots]

    def is_free(self, sequence: int) -> bool:
        """Whether the slot of an unroll has been given back by the one before it."""
        round_, slot = divmod(sequence, self._num_slots)
        self._fence()
        return bool(self._released[slot][0] == round_)

    def is_filled(self, sequence: int) -> bool:
        round_, slot = divmod(sequence, self._num_slots)
        self._fence()
        return bool(self._filled[slot][0] > round_)

    def fill(self, sequence: int) -> None:
        self._fence()
        self._filled[sequence % self._num_slots][0] += 1
        self._fence()

    def release(self, sequence: int) -> None:
        self._fence()
        self._released[sequence % self._num_slots][0] += 1
        self._fence()


class SharedSender:
    """Hands slots over in place."""

    def __init__(self, spec: UnrollSpec, memory: NDArray[np.uint8], num_slots: int, fence: Callable[[], None]) -> None:
        self._slots = _SharedSlots(spec, memory, num_slots, fence)
        self.sequence = 0

    def is_free(self) -> bool:
        return self._slots.is_free(self.sequence)

    def slot(self) -> Unroll:
        return self._slots.unroll(self.sequence)

    def send(self) -> None:
        self.slot().set_header(sequence=self.sequence)
        self._slots.fill(self.sequence)
        self.sequence += 1


class SharedReceiver:
    """Reads an actor's slots in place: no copy before the batch."""

    def __init__(
        self, actor: int, spec: UnrollSpec, memory: NDArray[np.uint8], num_slots: int, fence: Callable[[], None]
    ) -> None:
        self.actor = actor
        self._slots = _SharedSlots(spec, memory, num_slots, fence)
        self.received = self._released = 0

    def poll(self) -> Unroll | None:
        if not self._slots.is_filled(self.received):
            return None
        unroll = _checked(self._slots.unroll(self.received), self.actor, self.received)
        self.received += 1
        return unroll

    def release(self) -> None:
        self._slots.release(self._released)
        self._released += 1


class MessageSender:
    """Sends slots as messages. Synchronous sends complete when received: the receiver's slots are credits."""

    def __init__(self, spec: UnrollSpec, world: Comm, learner: int) -> None:
        self._world, self._learner = world, learner
        self._unrolls = [Unroll(spec) for _ in range(_NUM_OUTGOING)]
        self._sends: list[Request | None] = [None] * _NUM_OUTGOING
        self.sequence = 0

    def is_free(self) -> bool:
        return self._is_back(self.sequence % _NUM_OUTGOING)

    def _is_back(self, slot: int) -> bool:
        send = self._sends[slot]
        if send is not None and send.Test():
            self._sends[slot] = None
        return self._sends[slot] is None

    def slot(self) -> Unroll:
        return self._unrolls[self.sequence % _NUM_OUTGOING]

    def send(self) -> None:
        self.slot().set_header(sequence=self.sequence)
        send = self._world.Issend([self.slot().buffer, MPI.BYTE], self._learner, _TAG)
        self._sends[self.sequence % _NUM_OUTGOING] = send
        self.sequence += 1

    def progress(self) -> bool:
        """Let what is on its way move on while the rank acts or waits; whether a slot came back. Local."""
        before = self._sends.count(None)
        return sum(self._is_back(slot) for slot in range(_NUM_OUTGOING)) > before

    def is_drained(self) -> bool:
        """Whether everything has been received. Local."""
        return all([self._is_back(slot) for slot in range(_NUM_OUTGOING)])


class MessageReceiver:
    """Receives an actor's messages into slots whose receives are posted ahead."""

    def __init__(self, actor: int, spec: UnrollSpec, world: Comm, num_slots: int) -> None:
        self.actor = actor
        self._world, self._num_slots = world, num_slots
        self._unrolls = [Unroll(spec) for _ in range(num_slots)]
        self._receives: list[Request | None] = [self._post(slot) for slot in range(num_slots)]
        self.received = self._released = 0

    def _post(self, slot: int) -> Request:
        return self._world.Irecv([self._unrolls[slot].buffer, MPI.BYTE], self.actor, _TAG)

    def poll(self) -> Unroll | None:
        slot = self.received % self._num_slots
        receive = self._receives[slot]
        if receive is None or not receive.Test():
            return None
        self._receives[slot] = None
        unroll = _checked(self._unrolls[slot], self.actor, self.received)
        self.received += 1
        return unroll

    def release(self) -> None:
        slot = self._released % self._num_slots
        self._receives[slot] = self._post(slot)
        self._released += 1

    def drain(self, sent: int) -> bool:
        """Receive what was sent, and forget it; whether all of it is here. Local."""
        while self._released < self.received:
            self.release()
        while self.received < sent:
            if self.poll() is None:
                return False
            self.release()
        return True

    def cancel(self) -> None:
        """Withdraw the posted receives. Local."""
        for receive in self._receives:
            if receive is not None:
                receive.Cancel()
                receive.Wait()


def _checked(unroll: Unroll, actor: int, sequence: int) -> Unroll:
    if (unroll.actor, unroll.sequence) != (actor, sequence):
        raise TransportError(
            f"expected unroll {sequence} of rank {actor}, got unroll {unroll.sequence} of rank {unroll.actor}"
        )
    return unroll
