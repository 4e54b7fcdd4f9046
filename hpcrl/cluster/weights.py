"""Weights on their way from a learner to its actors: a ring of publications in shared memory, one message a node.

A publication is the flat weight vector before a batch and the control word that goes with it. Actors read the newest
one, or exactly the one that their schedule names. A boundary, at which all ranks meet, is announced apart from the
ring, so that an actor that passes publications over passes over no boundary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpcrl.cluster.mpi import MPI, Comm, Request
from hpcrl.cluster.shared_memory import CACHE_LINE, counters
from hpcrl.cluster.waiting import Waiter
from hpcrl.errors import TransportError

_TAG = 11
_MAX_RETRIES = 100
_HEADER_WORDS = 8
#: Ahead of the slots: the newest publication and its slot, the boundaries announced, and the words of their last.
_COMMON_LINES = 4


class Control(NamedTuple):
    """What goes with the weights of a publication.

    Attributes:
        publication: its number, from 0, without gaps.
        policy_version: learner updates in these weights.
        flags: what all ranks do before they act on, `hpcrl.roles.boundary.Boundary`; with any it is a boundary.
        env_steps: environment steps learned from so far, over all actors.
        boundaries: how many boundaries there were, with this one.
    """

    publication: int
    policy_version: int
    flags: int
    env_steps: int
    boundaries: int


class WeightsRing:
    """A ring of publications in memory that one rank writes and others read.

    Each slot has a begin and an end counter around its contents (a sequence lock): the writer raises begin, copies,
    and sets end to the same value; a reader that finds begin moved on while it copied tries again.

    Args:
        memory: uint8 [nbytes_for(...)], zeros at first.
        num_weights: N, length of the flat vector.
        num_slots: publications that stay readable.
        fence: orders loads and stores of this rank.
    """

    def __init__(self, memory: NDArray[np.uint8], num_weights: int, num_slots: int, fence: Callable[[], None]) -> None:
        self._newest, self._newest_slot, self._boundaries, _, *lines = counters(memory, _COMMON_LINES + 2 * num_slots)
        self._boundary_words = memory[3 * CACHE_LINE : 4 * CACHE_LINE].view(np.int64)[: len(Control._fields)]
        self._begin, self._end = lines[:num_slots], lines[num_slots:]
        self._num_slots, self._fence = num_slots, fence
        self._written = 0
        start = (_COMMON_LINES + 2 * num_slots) * CACHE_LINE
        size = message_nbytes(num_weights)
        self._messages = [memory[start + slot * size : start + (slot + 1) * size] for slot in range(num_slots)]

    @staticmethod
    def nbytes_for(num_weights: int, num_slots: int) -> int:
        """Bytes of memory that a ring needs."""
        return (_COMMON_LINES + 2 * num_slots) * CACHE_LINE + num_slots * message_nbytes(num_weights)

    def write(self, control: Control, fill: Callable[[NDArray[np.uint8]], None]) -> None:
        """Publish; `fill` writes the message in place. Local."""
        # In turn, whatever was passed over, so that the newest stays whole while the next is written.
        slot, count = self._written % self._num_slots, control.publication + 1
        self._written += 1
        self._begin[slot][0] = count
        self._fence()
        fill(self._messages[slot])
        if control.flags:
            # Nobody reads the last boundary any more: its writer waited for all ranks there.
            self._boundary_words[:] = control
        self._fence()
        self._end[slot][0] = count
        self._newest_slot[0] = slot
        self._fence()
        # In this order: who sees a boundary finds its weights, and who sees the number sees the boundary.
        self._boundaries[0] = control.boundaries
        self._fence()
        self._newest[0] = count

    @property
    def newest(self) -> int:
        """Number of the newest publication, -1 before there is one. Local."""
        self._fence()
        return int(self._newest[0]) - 1

    @property
    def boundaries(self) -> int:
        """How many were announced. Local."""
        return int(self._boundaries[0])

    def boundary(self, seen: int) -> Control | None:
        """The boundary after the first `seen` ones, once it is announced. Local."""
        if self.boundaries <= seen:
            return None
        self._fence()
        return Control(*self._boundary_words.tolist())

    def read(self, publication: int, weights: NDArray[np.float32]) -> Control:
        """Copy the weights of a publication into `weights`, float32 [N]; none may have been passed over. Local.

        Raises:
            TransportError: it was overwritten, or the writer interfered too often.
        """
        slot = publication % self._num_slots
        for _ in range(_MAX_RETRIES):
            control = self._try(slot, weights)
            if control is not None and control.publication == publication:
                return control
            begin = int(self._begin[slot][0])
            if begin > publication + 1:
                raise TransportError(f"the weights of publication {publication} were overwritten by {begin - 1}")
        raise TransportError(f"the weights of publication {publication} could not be read in {_MAX_RETRIES} tries")

    def read_newest(self, weights: NDArray[np.float32]) -> Control:
        """Copy the newest weights into `weights`, float32 [N]. Local.

        Raises:
            TransportError: the writer interfered too often.
        """
        for _ in range(_MAX_RETRIES):
            self._fence()
            if (control := self._try(int(self._newest_slot[0]), weights)) is not None:
                return control
        raise TransportError(f"the newest weights could not be read whole in {_MAX_RETRIES} tries")

    def _try(self, slot: int, weights: NDArray[np.float32]) -> Control | None:
        end = int(self._end[slot][0])
        self._fence()
        control = unpack(self._messages[slot], weights)
        self._fence()
        begin = int(self._begin[slot][0])
        return control if begin == end == control.publication + 1 else None


def message_nbytes(num_weights: int) -> int:
    """Bytes of one publication: the control word, then float32 [N], rounded up to a cache line."""
    return -(-(_HEADER_WORDS * 8 + 4 * num_weights) // CACHE_LINE) * CACHE_LINE


def pack(message: NDArray[np.uint8], control: Control, weights: NDArray[np.float32]) -> None:
    """Write a publication into `message`."""
    message[: 8 * len(control)].view(np.int64)[:] = control
    message[_HEADER_WORDS * 8 :][: 4 * weights.size].view(np.float32)[:] = weights


def unpack(message: NDArray[np.uint8], weights: NDArray[np.float32]) -> Control:
    """Copy the weights out of `message`; its control word."""
    control = control_of(message)
    weights[:] = message[_HEADER_WORDS * 8 :][: 4 * weights.size].view(np.float32)
    return control


def control_of(message: NDArray[np.uint8]) -> Control:
    """The control word of a publication."""
    return Control(*message[: 8 * len(Control._fields)].view(np.int64).tolist())


class WeightsPublisher:
    """The learner's end: writes the ring of its own cell, and sends a message to each other node of its group.

    Args:
        ring: of its own cell, if it has company there.
        world: carries the messages.
        far_cells: ranks that receive for the other cells.
        num_weights: N.
        every: whether each publication must arrive; else a cell that is still busy with one gets the newest next.
    """

    def __init__(
        self, ring: WeightsRing | None, world: Comm, far_cells: Sequence[int], num_weights: int, every: bool
    ) -> None:
        self._ring, self._every = ring, every
        self._newest = np.zeros(message_nbytes(num_weights), np.uint8)
        self._cells = [_FarCell(world, cell, self._newest) for cell in far_cells]

    def publish(self, control: Control, weights: NDArray[np.float32], waiter: Waiter) -> None:
        """Publish to all actors of this learner; boundaries reach every one. Local."""
        self.offer(control, weights)
        if self._cells and (self._every or control.flags):
            waiter.until(self._has_left)

    def offer(self, control: Control, weights: NDArray[np.float32]) -> None:
        """Publish without waiting: a cell that is busy gets what is the newest then. Local."""
        if self._ring is not None:
            self._ring.write(control, lambda message: pack(message, control, weights))
        if not self._cells:
            return
        pack(self._newest, control, weights)
        for cell in self._cells:
            cell.is_due = True
        self.progress()

    def progress(self) -> bool:
        """Send what is due and can leave; whether anything did. Local."""
        return any([cell.progress() for cell in self._cells])

    def _has_left(self) -> bool:
        """Send what can leave; whether nothing is due any more, to any cell."""
        self.progress()
        return not any(cell.is_due for cell in self._cells)

    def drain(self, waiter: Waiter) -> None:
        """Return once every message has left. Local."""
        for cell in self._cells:
            waiter.until(cell.is_idle)

    @property
    def sent_bytes(self) -> int:
        """Bytes of weights sent so far."""
        return sum(cell.sent_bytes for cell in self._cells)


class _FarCell:
    """One message at a time to another node."""

    def __init__(self, world: Comm, rank: int, newest: NDArray[np.uint8]) -> None:
        self._world, self._rank, self._newest = world, rank, newest
        self._outgoing = np.zeros_like(newest)
        self._send: Request | None = None
        self.is_due = False
        self.sent_bytes = 0

    def is_idle(self) -> bool:
        if self._send is not None and self._send.Test():
            self._send = None
        return self._send is None

    def progress(self) -> bool:
        # Also where nothing is due: MPI moves a message on only while somebody looks at it.
        if not self.is_idle() or not self.is_due:
            return False
        self._outgoing[:] = self._newest
        # Synchronous: complete once received, so that a slow node has one message on its way, never a queue.
        self._send = self._world.Issend([self._outgoing, MPI.BYTE], self._rank, _TAG)
        self.sent_bytes += self._outgoing.size
        self.is_due = False
        return True


class WeightsSubscriber:
    """An actor's end: reads the ring of its cell. On a node without the learner the cell's first rank writes it."""

    def __init__(self, ring: WeightsRing, relay: WeightsRelay | None) -> None:
        self._ring, self._relay = ring, relay
        self._boundaries = 0

    @property
    def newest(self) -> int:
        """Number of the newest publication, -1 before there is one. Local."""
        if self._relay is not None:
            self._relay.progress()
        return self._ring.newest

    def has(self, publication: int) -> bool:
        """Whether a publication is there. Local."""
        return self.newest >= publication

    def boundary(self) -> Control | None:
        """The next boundary, once; None where there is none to meet the others at. Local."""
        control = self._ring.boundary(self._boundaries)
        if control is not None:
            self._boundaries = control.boundaries
        return control

    def announces_boundary(self) -> bool:
        """Whether `boundary` has one. Local."""
        return self._ring.boundaries > self._boundaries

    def pass_boundary(self, boundaries: int) -> None:
        """Count a boundary as met that the ranks agreed on by themselves: there were so many, with it. Local."""
        self._boundaries = boundaries

    def fetch(self, publication: int, weights: NDArray[np.float32]) -> Control:
        """Copy the weights of exactly one publication that is there into `weights`, float32 [N]. Local."""
        return self._ring.read(publication, weights)

    def fetch_newest(self, weights: NDArray[np.float32], held: Control | None) -> Control:
        """Copy the newest weights unless they are those at hand. Local."""
        if held is not None and held.publication == self._ring.newest:
            return held
        return self._ring.read_newest(weights)


class WeightsRelay:
    """Receives the weights for a cell without a learner, and writes its ring."""

    def __init__(self, ring: WeightsRing, world: Comm, learner: int, num_weights: int) -> None:
        self._ring, self._world, self._learner = ring, world, learner
        self._incoming = np.zeros(message_nbytes(num_weights), np.uint8)
        self._receive: Request | None = self._post()

    def _post(self) -> Request:
        return self._world.Irecv([self._incoming, MPI.BYTE], self._learner, _TAG)

    def progress(self) -> bool:
        """Pass on what has arrived; whether something had. Local."""
        if self._receive is None or not self._receive.Test():
            return False
        self._ring.write(control_of(self._incoming), lambda message: np.copyto(message, self._incoming))
        self._receive = self._post()
        return True

    def cancel(self) -> None:
        """Withdraw the receive that waits for weights that won't come. Local."""
        if self._receive is not None:
            self._receive.Cancel()
            self._receive.Wait()
            self._receive = None
