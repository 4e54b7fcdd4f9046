"""Connects the roles of a layout: which transport each actor has to its learner, and the memory that they share."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hpcrl.cluster.ranks import Ranks
from hpcrl.cluster.shared_memory import SharedSegments
from hpcrl.cluster.transport import (
    MessageReceiver,
    MessageSender,
    SharedReceiver,
    SharedSender,
    UnrollReceiver,
    UnrollSender,
    slots_nbytes,
)
from hpcrl.cluster.waiting import Waiter
from hpcrl.cluster.weights import WeightsPublisher, WeightsRing, WeightsSubscriber
from hpcrl.unroll import UnrollSpec

#: In lockstep an actor has read a round before the next but one is written.
_RING_SLOTS = 2


class Links:
    """The ends of the transports of one rank. Collective over the world to make.

    Args:
        ranks: the world and its layout.
        specs: the unroll of every actor rank.
        num_weights: length of the flat weight vector.
    """

    def __init__(self, ranks: Ranks, specs: Mapping[int, UnrollSpec], num_weights: int) -> None:
        self._ranks, self._specs, self._num_weights = ranks, specs, num_weights
        self._segments: SharedSegments | None = None
        if ranks.cell.size > 1:
            self._segments = SharedSegments(ranks.cell, self._own_nbytes())
        self._receivers: list[MessageReceiver] = []
        self._publisher: WeightsPublisher | None = None
        self._subscriber: WeightsSubscriber | None = None

    @property
    def _ring_writer(self) -> int:
        """World rank that writes this cell's ring: the learner, or who receives for a cell without one."""
        return self._ranks.learner if self._ranks.learner_is_near else self._ranks.cell_ranks[0]

    def _own_nbytes(self) -> int:
        if self._ranks.rank == self._ring_writer:
            return WeightsRing.nbytes_for(self._num_weights, _RING_SLOTS)
        return slots_nbytes(self._specs[self._ranks.rank]) if self._ranks.learner_is_near else 0

    def _segment(self, rank: int) -> np.ndarray:
        assert self._segments is not None
        return self._segments.segment(self._ranks.cell_ranks.index(rank))

    def _ring(self) -> WeightsRing | None:
        if self._segments is None:
            return None
        return WeightsRing(self._segment(self._ring_writer), self._num_weights, _RING_SLOTS, self._segments.fence)

    def publisher(self) -> WeightsPublisher:
        """A learner's end for weights. Local."""
        ranks = self._ranks
        self._publisher = WeightsPublisher(self._ring(), ranks.world, ranks.far_cells(), self._num_weights)
        return self._publisher

    def subscriber(self) -> WeightsSubscriber:
        """An actor's end for weights. Local."""
        ranks = self._ranks
        receives = not ranks.learner_is_near and ranks.rank == self._ring_writer
        self._subscriber = WeightsSubscriber(self._ring(), ranks.world, ranks.learner, receives, self._num_weights)
        return self._subscriber

    def sender(self) -> UnrollSender:
        """An actor's end for unrolls. Local."""
        ranks, spec = self._ranks, self._specs[self._ranks.rank]
        if ranks.learner_is_near:
            assert self._segments is not None
            return SharedSender(spec, self._segment(ranks.rank), self._segments.fence)
        return MessageSender(spec, ranks.world, ranks.learner)

    def receiver(self, actor: int) -> UnrollReceiver:
        """A learner's end for the unrolls of one of its actors, on another rank. Local."""
        spec = self._specs[actor]
        if actor in self._ranks.cell_ranks:
            assert self._segments is not None
            return SharedReceiver(actor, spec, self._segment(actor), self._segments.fence)
        receiver = MessageReceiver(actor, spec, self._ranks.world)
        self._receivers.append(receiver)
        return receiver

    def close(self, waiter: Waiter) -> None:
        """Finish what is under way, and give the shared memory back. Collective over the world."""
        if self._publisher is not None:
            self._publisher.drain(waiter)
        if self._subscriber is not None:
            self._subscriber.cancel()
        for receiver in self._receivers:
            receiver.cancel()
        if self._segments is not None:
            waiter.request(self._ranks.cell.Ibarrier())
            self._segments.free()
