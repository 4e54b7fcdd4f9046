"""Weights on their way from a learner to its actors: a ring of publications in shared memory, one message a node.

A publication is the flat weight vector of one round and the control word that goes with it. In a lockstep algorithm
round k is what unroll k of every actor is acted with.
"""

from __future__ import annotations

from collections.abc import Callable
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


class Control(NamedTuple):
    """What goes with the weights of a round.

    Attributes:
        round: number of the publication, from 0, without gaps.
        policy_version: learner updates in these weights.
        flags: what all ranks do before they act with them, `hpcrl.roles.boundary.Boundary`.
        env_steps: environment steps learned from so far, over all actors.
    """

    round: int
    policy_version: int
    flags: int
    env_steps: int


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
        self._newest, *lines = counters(memory, 1 + 2 * num_slots)
        self._begin, self._end = lines[:num_slots], lines[num_slots:]
        self._num_slots, self._fence = num_slots, fence
        start = (1 + 2 * num_slots) * CACHE_LINE
        size = message_nbytes(num_weights)
        self._messages = [memory[start + slot * size : start + (slot + 1) * size] for slot in range(num_slots)]

    @staticmethod
    def nbytes_for(num_weights: int, num_slots: int) -> int:
        """Bytes of memory that a ring needs."""
        return (1 + 2 * num_slots) * CACHE_LINE + num_slots * message_nbytes(num_weights)

    def message(self, round_: int) -> NDArray[np.uint8]:
        """The bytes of a round's slot, for sending on: uint8 [message_nbytes]."""
        return self._messages[round_ % self._num_slots]

    def write(self, round_: int, fill: Callable[[NDArray[np.uint8]], None]) -> None:
        """Publish round `round_`; `fill` writes the message in place. Local."""
        slot = round_ % self._num_slots
        self._begin[slot][0] = round_ + 1
        self._fence()
        fill(self._messages[slot])
        self._fence()
        self._end[slot][0] = round_ + 1
        self._fence()
        self._newest[0] = round_ + 1

    def has(self, round_: int) -> bool:
        """Whether `round_` has been published. Local."""
        self._fence()
        return bool(self._newest[0] > round_)

    def read(self, round_: int, weights: NDArray[np.float32]) -> Control:
        """Copy the weights of a published round into `weights`, float32 [N]. Local.

        Raises:
            TransportError: the round was overwritten, or the writer interfered too often.
        """
        slot = round_ % self._num_slots
        for _ in range(_MAX_RETRIES):
            end = int(self._end[slot][0])
            self._fence()
            control = unpack(self._messages[slot], weights)
            self._fence()
            begin = int(self._begin[slot][0])
            if begin == end == round_ + 1:
                return control
            if begin > round_ + 1:
                raise TransportError(f"the weights of round {round_} were overwritten by round {begin - 1}")
        raise TransportError(f"the weights of round {round_} could not be read whole in {_MAX_RETRIES} tries")


def message_nbytes(num_weights: int) -> int:
    """Bytes of one publication: the control word, then float32 [N], rounded up to a cache line."""
    return -(-(_HEADER_WORDS * 8 + 4 * num_weights) // CACHE_LINE) * CACHE_LINE


def pack(message: NDArray[np.uint8], control: Control, weights: NDArray[np.float32]) -> None:
    """Write a publication into `message`."""
    message[: 8 * len(control)].view(np.int64)[:] = control
    message[_HEADER_WORDS * 8 :][: 4 * weights.size].view(np.float32)[:] = weights


def unpack(message: NDArray[np.uint8], weights: NDArray[np.float32]) -> Control:
    """Copy the weights out of `message`; its control word."""
    control = Control(*(int(word) for word in message[: 8 * len(Control._fields)].view(np.int64)))
    weights[:] = message[_HEADER_WORDS * 8 :][: 4 * weights.size].view(np.float32)
    return control


class WeightsPublisher:
    """The learner's end: writes the ring of its own cell, and sends a message to each other node of its group."""

    def __init__(self, ring: WeightsRing | None, world: Comm, far_cells: list[int], num_weights: int) -> None:
        self._ring, self._world, self._far_cells = ring, world, far_cells
        self._outgoing = np.zeros(message_nbytes(num_weights), np.uint8)
        self._sends: list[Request] = []
        self.sent_bytes = 0

    def publish(self, control: Control, weights: NDArray[np.float32], waiter: Waiter) -> None:
        """Publish a round to all actors of this learner. Local."""
        if self._ring is not None:
            self._ring.write(control.round, lambda message: pack(message, control, weights))
        if not self._far_cells:
            return
        for send in self._sends:
            waiter.request(send)
        pack(self._outgoing, control, weights)
        self._sends = [self._world.Isend([self._outgoing, MPI.BYTE], cell, _TAG) for cell in self._far_cells]
        for send in self._sends:
            waiter.in_background(send)
        self.sent_bytes += self._outgoing.size * len(self._sends)

    def drain(self, waiter: Waiter) -> None:
        """Return once every message has left. Local."""
        for send in self._sends:
            waiter.request(send)
        self._sends = []


class WeightsSubscriber:
    """An actor's end. On a node without the learner the cell's first rank receives and writes the ring."""

    def __init__(self, ring: WeightsRing | None, world: Comm, learner: int, receives: bool, num_weights: int) -> None:
        self._ring, self._world, self._learner = ring, world, learner
        self._incoming = np.zeros(message_nbytes(num_weights), np.uint8)
        self._receive: Request | None = self._post() if receives else None

    def _post(self) -> Request:
        return self._world.Irecv([self._incoming, MPI.BYTE], self._learner, _TAG)

    def fetch(self, round_: int, weights: NDArray[np.float32], waiter: Waiter) -> Control:
        """Wait for a round and copy its weights into `weights`, float32 [N]. Local."""
        if self._receive is not None:
            return self._fetch_message(round_, weights, waiter)
        assert self._ring is not None
        ring = self._ring
        waiter.until(lambda: ring.has(round_))
        return ring.read(round_, weights)

    def _fetch_message(self, round_: int, weights: NDArray[np.float32], waiter: Waiter) -> Control:
        assert self._receive is not None
        waiter.until(self._receive.Test)
        control = unpack(self._incoming, weights)
        if control.round != round_:
            raise TransportError(f"expected the weights of round {round_}, got round {control.round}")
        if self._ring is not None:
            self._ring.write(round_, lambda message: np.copyto(message, self._incoming))
        self._receive = self._post()
        return control

    def cancel(self) -> None:
        """Withdraw the receive that waits for a round that won't come. Local."""
        if self._receive is not None:
            self._receive.Cancel()
            self._receive.Wait()
            self._receive = None
