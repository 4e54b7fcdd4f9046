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
from hpcrl.cluster.waiting import Waiter
from hpcrl.errors import TransportError
from hpcrl.unroll import Unroll, UnrollSpec

#: An actor fills one slot while the other travels.
NUM_SLOTS = 2
_TAG = 12


class UnrollSender(Protocol):
    """The actor's end."""

    def next_slot(self, waiter: Waiter) -> Unroll:
        """The slot to fill next; waits until it is free. Local."""

    def send(self, waiter: Waiter) -> None:
        """Hand that slot over. Local."""


class UnrollReceiver(Protocol):
    """The learner's end of one actor."""

    actor: int

    def receive(self, waiter: Waiter) -> Unroll:
        """The actor's next unroll; waits for it. Valid until `release`. Local."""

    def release(self) -> None:
        """Give the slot of the last unroll back to the actor. Local."""


def slots_nbytes(spec: UnrollSpec) -> int:
    """Bytes of shared memory for an actor's slots and their counters."""
    return 2 * NUM_SLOTS * CACHE_LINE + NUM_SLOTS * spec.nbytes


class _SharedSlots:
    """The slots of one actor in shared memory: `filled` and `released` count the unrolls of each slot."""

    def __init__(self, spec: UnrollSpec, memory: NDArray[np.uint8], fence: Callable[[], None]) -> None:
        lines = counters(memory, 2 * NUM_SLOTS)
        self.filled, self.released = lines[:NUM_SLOTS], lines[NUM_SLOTS:]
        self.fence = fence
        start = 2 * NUM_SLOTS * CACHE_LINE
        pieces = [memory[start + slot * spec.nbytes :][: spec.nbytes] for slot in range(NUM_SLOTS)]
        self.unrolls = [Unroll(spec, piece) for piece in pieces]


class SharedSender:
    """Hands slots over in place."""

    def __init__(self, spec: UnrollSpec, memory: NDArray[np.uint8], fence: Callable[[], None]) -> None:
        self._slots = _SharedSlots(spec, memory, fence)
        self._sequence = 0

    def next_slot(self, waiter: Waiter) -> Unroll:
        slot = self._sequence % NUM_SLOTS
        waiter.until(lambda: self._is_free(slot))
        return self._slots.unrolls[slot]

    def _is_free(self, slot: int) -> bool:
        self._slots.fence()
        return bool(self._slots.released[slot][0] == self._slots.filled[slot][0])

    def send(self, waiter: Waiter) -> None:
        slot = self._sequence % NUM_SLOTS
        self._slots.unrolls[slot].set_header(sequence=self._sequence)
        self._slots.fence()
        self._slots.filled[slot][0] += 1
        self._slots.fence()
        self._sequence += 1


class SharedReceiver:
    """Reads an actor's slots in place: no copy before the batch."""

    def __init__(self, actor: int, spec: UnrollSpec, memory: NDArray[np.uint8], fence: Callable[[], None]) -> None:
        self.actor = actor
        self._slots = _SharedSlots(spec, memory, fence)
        self._sequence = 0

    def receive(self, waiter: Waiter) -> Unroll:
        slot = self._sequence % NUM_SLOTS
        waiter.until(lambda: self._is_filled(slot))
        unroll = self._slots.unrolls[slot]
        _check(unroll, self.actor, self._sequence)
        return unroll

    def _is_filled(self, slot: int) -> bool:
        self._slots.fence()
        return bool(self._slots.filled[slot][0] > self._slots.released[slot][0])

    def release(self) -> None:
        slot = self._sequence % NUM_SLOTS
        self._slots.fence()
        self._slots.released[slot][0] += 1
        self._slots.fence()
        self._sequence += 1


class MessageSender:
    """Sends slots as messages. Synchronous sends complete when received: the receiver's slots are credits."""

    def __init__(self, spec: UnrollSpec, world: Comm, learner: int) -> None:
        self._world, self._learner = world, learner
        self._unrolls = [Unroll(spec) for _ in range(NUM_SLOTS)]
        self._sends: list[Request | None] = [None] * NUM_SLOTS
        self._sequence = 0

    def next_slot(self, waiter: Waiter) -> Unroll:
        slot = self._sequence % NUM_SLOTS
        if (send := self._sends[slot]) is not None:
            waiter.request(send)
        return self._unrolls[slot]

    def send(self, waiter: Waiter) -> None:
        slot = self._sequence % NUM_SLOTS
        self._unrolls[slot].set_header(sequence=self._sequence)
        send = self._world.Issend([self._unrolls[slot].buffer, MPI.BYTE], self._learner, _TAG)
        waiter.in_background(send)
        self._sends[slot] = send
        self._sequence += 1


class MessageReceiver:
    """Receives an actor's messages into slots whose receives are posted ahead."""

    def __init__(self, actor: int, spec: UnrollSpec, world: Comm) -> None:
        self.actor = actor
        self._world = world
        self._unrolls = [Unroll(spec) for _ in range(NUM_SLOTS)]
        self._receives = [self._post(slot) for slot in range(NUM_SLOTS)]
        self._sequence = 0

    def _post(self, slot: int) -> Request:
        return self._world.Irecv([self._unrolls[slot].buffer, MPI.BYTE], self.actor, _TAG)

    def receive(self, waiter: Waiter) -> Unroll:
        slot = self._sequence % NUM_SLOTS
        waiter.until(self._receives[slot].Test)
        _check(self._unrolls[slot], self.actor, self._sequence)
        return self._unrolls[slot]

    def release(self) -> None:
        slot = self._sequence % NUM_SLOTS
        self._receives[slot] = self._post(slot)
        self._sequence += 1

    def cancel(self) -> None:
        """Withdraw the posted receives. Local."""
        for receive in self._receives:
            receive.Cancel()
            receive.Wait()


def _check(unroll: Unroll, actor: int, sequence: int) -> None:
    if (unroll.actor, unroll.sequence) != (actor, sequence):
        raise TransportError(
            f"expected unroll {sequence} of rank {actor}, got unroll {unroll.sequence} of rank {unroll.actor}"
        )
