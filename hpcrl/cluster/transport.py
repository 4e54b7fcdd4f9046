"""Unrolls on their way from actors to learners, through a channel for each actor; every one is checked on arrival."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hpcrl.cluster.channels import Inbox, MessageInbox, MessageOutbox, Outbox, SharedInbox, SharedOutbox, channel_nbytes
from hpcrl.cluster.mpi import Comm
from hpcrl.errors import TransportError
from hpcrl.unroll import Unroll, UnrollSpec

UNROLL_TAG = 12


class UnrollSender(Protocol):
    """The actor's end.

    Attributes:
        sequence: unrolls sent so far, the number of the next one.
    """

    @property
    def sequence(self) -> int: ...

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
        unrolls: over all slots.
        received: unrolls taken so far.
    """

    actor: int
    unrolls: list[Unroll]

    @property
    def received(self) -> int: ...

    def poll(self) -> Unroll | None:
        """The actor's next unroll, if it has arrived; valid until its `release`. Local."""

    def release(self) -> None:
        """Give the slot of the oldest unroll that is held back to the actor. Local."""


def slots_nbytes(spec: UnrollSpec, num_slots: int) -> int:
    """Bytes of shared memory for an actor's slots and their counters."""
    return channel_nbytes(spec.nbytes, num_slots)


class _Sender:
    """Unrolls into an outbox."""

    def __init__(self, spec: UnrollSpec, outbox: Outbox) -> None:
        self._outbox = outbox
        self._unrolls = [Unroll(spec, slot) for slot in outbox.slots]

    @property
    def sequence(self) -> int:
        return self._outbox.sent

    def is_free(self) -> bool:
        return self._outbox.is_free()

    def slot(self) -> Unroll:
        return self._unrolls[self._outbox.sent % len(self._unrolls)]

    def send(self) -> None:
        self.slot().set_header(sequence=self._outbox.sent)
        self._outbox.send()


class SharedSender(_Sender):
    """To a learner of the same node: in place."""

    def __init__(self, spec: UnrollSpec, memory: NDArray[np.uint8], num_slots: int, fence: Callable[[], None]) -> None:
        super().__init__(spec, SharedOutbox(spec.nbytes, memory, num_slots, fence))


class MessageSender(_Sender):
    """To a learner of another node."""

    def __init__(self, spec: UnrollSpec, world: Comm, learner: int) -> None:
        outbox = MessageOutbox(spec.nbytes, world, learner, UNROLL_TAG)
        super().__init__(spec, outbox)
        self.progress, self.is_drained = outbox.progress, outbox.is_drained


class _Receiver:
    """Unrolls of one actor out of an inbox."""

    def __init__(self, actor: int, spec: UnrollSpec, inbox: Inbox) -> None:
        self.actor = actor
        self._inbox = inbox
        self.unrolls = [Unroll(spec, slot) for slot in inbox.slots]

    @property
    def received(self) -> int:
        return self._inbox.received

    def poll(self) -> Unroll | None:
        slot = self._inbox.poll()
        return None if slot is None else _checked(self.unrolls[slot], self.actor, self._inbox.received - 1)

    def release(self) -> None:
        self._inbox.release()


class SharedReceiver(_Receiver):
    """From an actor of the same node: no copy before the batch."""

    def __init__(
        self, actor: int, spec: UnrollSpec, memory: NDArray[np.uint8], num_slots: int, fence: Callable[[], None]
    ) -> None:
        super().__init__(actor, spec, SharedInbox(spec.nbytes, memory, num_slots, fence))


class MessageReceiver(_Receiver):
    """From an actor of another node."""

    def __init__(self, actor: int, spec: UnrollSpec, world: Comm, num_slots: int) -> None:
        inbox = MessageInbox(spec.nbytes, world, actor, UNROLL_TAG, num_slots)
        super().__init__(actor, spec, inbox)
        self.cancel = inbox.cancel

    def drain(self, sent: int) -> bool:
        """Receive what was sent, and forget it; whether all of it is here. Local."""
        while self._inbox.released < self._inbox.received:
            self.release()
        while self.received < sent:
            if self.poll() is None:
                return False
            self.release()
        return True


def _checked(unroll: Unroll, actor: int, sequence: int) -> Unroll:
    if (unroll.actor, unroll.sequence) != (actor, sequence):
        raise TransportError(
            f"expected unroll {sequence} of rank {actor}, got unroll {unroll.sequence} of rank {unroll.actor}"
        )
    return unroll
