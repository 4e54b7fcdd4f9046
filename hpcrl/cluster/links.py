"""Connects the roles of a layout: which transport each actor has to its learner, and the memory that they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from hpcrl.cluster.inference import (
    AnswerChannel,
    MessageAnswers,
    MessageQuestions,
    QuestionChannel,
    QuestionSpec,
    SharedChannel,
)
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
from hpcrl.cluster.weights import WeightsPublisher, WeightsRelay, WeightsRing, WeightsSubscriber
from hpcrl.unroll import UnrollSpec, aligned_zeros


@dataclass(frozen=True)
class LinkSizes:
    """What the links of a run carry.

    Attributes:
        unrolls: of every actor rank.
        questions: of every actor rank, one for each group of its environments; empty without central inference.
        num_slots: unrolls of an actor that may be on their way or in its learner's hands.
        num_weights: N, length of the flat vector.
        ring_slots: publications that stay readable.
        every_publication: whether each must reach every node, or the newest is enough.
    """

    unrolls: Mapping[int, UnrollSpec]
    questions: Mapping[int, Sequence[QuestionSpec]]
    num_slots: int
    num_weights: int
    ring_slots: int
    every_publication: bool


class Links:
    """The ends of the transports of one rank. Collective over the world to make.

    Args:
        ranks: the world and its layout.
        sizes: the same on all ranks.
        waiter: gets as chores what must go on between nodes.
    """

    def __init__(self, ranks: Ranks, sizes: LinkSizes, waiter: Waiter) -> None:
        self._ranks, self._sizes, self._waiter = ranks, sizes, waiter
        self._segments: SharedSegments | None = None
        if ranks.cell.size > 1:
            self._segments = SharedSegments(ranks.cell, self._own_nbytes())
        self._receivers: list[MessageReceiver] = []
        self._answers: list[MessageAnswers] = []
        self._sender: UnrollSender | None = None
        self._publisher: WeightsPublisher | None = None
        self._relay: WeightsRelay | None = None

    @property
    def _ring_writer(self) -> int:
        """World rank that writes this cell's ring: the learner, or who receives for a cell without one."""
        return self._ranks.learner if self._ranks.learner_is_near else self._ranks.cell_ranks[0]

    @property
    def _ring_nbytes(self) -> int:
        return WeightsRing.nbytes_for(self._sizes.num_weights, self._sizes.ring_slots)

    def _own_nbytes(self) -> int:
        ranks, sizes = self._ranks, self._sizes
        if ranks.rank == self._ring_writer:
            return self._ring_nbytes
        if not ranks.learner_is_near:
            return 0
        return self._unroll_nbytes(ranks.rank) + sum(spec.nbytes for spec in sizes.questions.get(ranks.rank, ()))

    def _unroll_nbytes(self, actor: int) -> int:
        return slots_nbytes(self._sizes.unrolls[actor], self._sizes.num_slots)

    def _segment(self, rank: int) -> np.ndarray:
        assert self._segments is not None
        return self._segments.segment(self._ranks.cell_ranks.index(rank))

    def _ring(self) -> WeightsRing:
        """The ring of this rank's cell; in memory of its own where it has no company."""
        num_weights, num_slots = self._sizes.num_weights, self._sizes.ring_slots
        if self._segments is None:
            return WeightsRing(aligned_zeros(self._ring_nbytes), num_weights, num_slots, lambda: None)
        return WeightsRing(self._segment(self._ring_writer), num_weights, num_slots, self._segments.fence)

    def publisher(self) -> WeightsPublisher:
        """A learner's end for weights. Local."""
        ranks, sizes = self._ranks, self._sizes
        ring = None if self._segments is None else self._ring()
        self._publisher = WeightsPublisher(
            ring, ranks.world, ranks.far_cells(), sizes.num_weights, sizes.every_publication
        )
        if ranks.far_cells():
            self._waiter.chores.append(self._publisher.progress)
        return self._publisher

    def subscriber(self) -> WeightsSubscriber:
        """An actor's end for weights. Local."""
        ranks, ring = self._ranks, self._ring()
        if not ranks.learner_is_near and ranks.rank == self._ring_writer:
            self._relay = WeightsRelay(ring, ranks.world, ranks.learner, self._sizes.num_weights)
            self._waiter.chores.append(self._relay.progress)
        return WeightsSubscriber(ring, self._relay)

    def sender(self) -> UnrollSender:
        """An actor's end for unrolls. Local."""
        ranks, spec = self._ranks, self._sizes.unrolls[self._ranks.rank]
        if ranks.learner_is_near:
            assert self._segments is not None
            memory = self._segment(ranks.rank)[: self._unroll_nbytes(ranks.rank)]
            self._sender = SharedSender(spec, memory, self._sizes.num_slots, self._segments.fence)
        else:
            self._sender = sender = MessageSender(spec, ranks.world, ranks.learner)
            self._waiter.chores.append(sender.progress)
        return self._sender

    def receiver(self, actor: int) -> UnrollReceiver:
        """A learner's end for the unrolls of one of its actors, on another rank. Local."""
        spec, num_slots = self._sizes.unrolls[actor], self._sizes.num_slots
        if actor in self._ranks.cell_ranks:
            assert self._segments is not None
            return SharedReceiver(actor, spec, self._segment(actor), num_slots, self._segments.fence)
        receiver = MessageReceiver(actor, spec, self._ranks.world, num_slots)
        self._receivers.append(receiver)
        return receiver

    def questions(self) -> list[QuestionChannel]:
        """An actor's ends for central inference, one for each group of its environments. Local."""
        ranks = self._ranks
        if ranks.learner_is_near:
            return [*self._shared_channels(ranks.rank)]
        specs = self._sizes.questions[ranks.rank]
        return [MessageQuestions(spec, group, ranks.world, ranks.learner) for group, spec in enumerate(specs)]

    def answers(self, actor: int) -> list[AnswerChannel]:
        """A learner's ends for central inference of one actor. Local."""
        if actor in self._ranks.cell_ranks:
            return [*self._shared_channels(actor)]
        specs = self._sizes.questions[actor]
        channels = [MessageAnswers(spec, group, self._ranks.world, actor) for group, spec in enumerate(specs)]
        self._answers += channels
        return [*channels]

    def _shared_channels(self, actor: int) -> list[SharedChannel]:
        assert self._segments is not None
        channels, start = [], self._unroll_nbytes(actor)
        for spec in self._sizes.questions[actor]:
            memory = self._segment(actor)[start : start + spec.nbytes]
            channels.append(SharedChannel(spec, memory, self._segments.fence))
            start += spec.nbytes
        return channels

    def close(self) -> None:
        """Finish what is under way, and give the shared memory back. Collective over the world."""
        ranks, waiter = self._ranks, self._waiter
        sent = np.zeros(ranks.size, np.int64)
        mine = np.array([0 if self._sender is None else self._sender.sequence], np.int64)
        waiter.request(ranks.world.Iallgather(mine, sent))
        for receiver in self._receivers:
            waiter.until(partial(receiver.drain, int(sent[receiver.actor])))
        if isinstance(self._sender, MessageSender):
            waiter.until(self._sender.is_drained)
        if self._publisher is not None:
            self._publisher.drain(waiter)
        # What one rank waits to have received, another one's chores may have to pass on.
        waiter.request(ranks.world.Ibarrier())
        waiter.chores.clear()
        if self._relay is not None:
            self._relay.cancel()
        for receiver in self._receivers:
            receiver.cancel()
        for channel in self._answers:
            channel.cancel()
        if self._segments is not None:
            self._segments.free()
