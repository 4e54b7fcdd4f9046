"""Connects every worker with every owner of a shard of the weights, within nodes and between them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hpcrl.cluster.channels import MessageInbox, MessageOutbox, SharedInbox, SharedOutbox, channel_nbytes
from hpcrl.cluster.pushes import NUM_PUSHES, PUSH_TAG, PushReceiver, PushSender, push_nbytes
from hpcrl.cluster.ranks import Ranks
from hpcrl.cluster.shared_memory import OwnSegment, SharedSegments
from hpcrl.cluster.waiting import Waiter
from hpcrl.cluster.weights import WeightsPublisher, WeightsRelay, WeightsRing, WeightsSubscriber

#: Readers take the newest; the two others keep it whole while the next one is written.
_RING_SLOTS = 3


class Mesh:
    """The ends of the transports of one rank. Collective over the world to make.

    A node's ranks share one window. In it lies a ring of publications for every shard, written by its owner, or by
    the rank that receives it for this node; and a channel from every worker to every owner of the same node.

    Args:
        ranks: the world and its layout: learners own shards, actors are workers.
        shards: of the flat vector, in the order of their owners.
        waiter: gets as chores what must go on between nodes.
    """

    def __init__(self, ranks: Ranks, shards: Sequence[slice], waiter: Waiter) -> None:
        self._ranks, self._waiter = ranks, waiter
        self._owners = ranks.layout.learners
        self._sizes = [shard.stop - shard.start for shard in shards]
        self._node_ranks = next(node for node in self._nodes() if ranks.rank in node)
        nbytes = sum(size for _, size in self._pieces(ranks.rank))
        self._segments = SharedSegments(ranks.node, nbytes) if ranks.node.size > 1 else OwnSegment(nbytes)
        self._publisher: WeightsPublisher | None = None
        self._relays: list[WeightsRelay] = []
        self._outboxes: list[MessageOutbox] = []
        self._inboxes: list[MessageInbox] = []

    def _pieces(self, rank: int) -> list[tuple[tuple[str, int], int]]:
        """What lies in the segment of a rank of this node, in order: (kind, shard) and bytes."""
        pieces = []
        for shard, owner in enumerate(self._owners):
            if self._ring_writer(shard, self._node_ranks) == rank:
                pieces.append((("ring", shard), WeightsRing.nbytes_for(self._sizes[shard], _RING_SLOTS)))
            if rank in self._ranks.layout.actors and owner in self._node_ranks:
                pieces.append((("pushes", shard), channel_nbytes(push_nbytes(self._sizes[shard]), NUM_PUSHES)))
        return pieces

    def _ring_writer(self, shard: int, node_ranks: Sequence[int]) -> int:
        """Who writes a shard's ring on a node: its owner, else one of the ranks there, in turn."""
        owner = self._owners[shard]
        return owner if owner in node_ranks else node_ranks[shard % len(node_ranks)]

    def _memory(self, rank: int, kind: str, shard: int) -> NDArray[np.uint8]:
        segment = self._segments.segment(self._node_ranks.index(rank))
        start = 0
        for key, nbytes in self._pieces(rank):
            if key == (kind, shard):
                return segment[start : start + nbytes]
            start += nbytes
        raise AssertionError(f"rank {rank} has no {kind} of shard {shard}")

    def _ring(self, shard: int) -> WeightsRing:
        memory = self._memory(self._ring_writer(shard, self._node_ranks), "ring", shard)
        return WeightsRing(memory, self._sizes[shard], _RING_SLOTS, self._segments.fence)

    def publisher(self) -> WeightsPublisher:
        """An owner's end for the weights of its shard. Local."""
        ranks, shard = self._ranks, self._owners.index(self._ranks.rank)
        far = [self._ring_writer(shard, node) for node in self._nodes() if ranks.rank not in node]
        self._publisher = WeightsPublisher(self._ring(shard), ranks.world, far, self._sizes[shard], every=False)
        if far:
            self._waiter.chores.append(self._publisher.progress)
        return self._publisher

    def _nodes(self) -> list[list[int]]:
        """The ranks of every node."""
        node_of = self._ranks.layout.node_of
        return [[rank for rank in range(self._ranks.size) if node_of[rank] == node] for node in sorted(set(node_of))]

    def subscribers(self) -> list[WeightsSubscriber]:
        """Any rank's ends for the weights of all shards. Local."""
        return [self._subscriber(shard) for shard in range(len(self._owners))]

    def _subscriber(self, shard: int) -> WeightsSubscriber:
        owner, ring = self._owners[shard], self._ring(shard)
        if owner in self._node_ranks or self._ring_writer(shard, self._node_ranks) != self._ranks.rank:
            return WeightsSubscriber(ring, None)
        relay = WeightsRelay(ring, self._ranks.world, owner, self._sizes[shard])
        self._relays.append(relay)
        self._waiter.chores.append(relay.progress)
        return WeightsSubscriber(ring, relay)

    def senders(self) -> list[PushSender]:
        """A worker's ends for gradients, one for each shard. Local."""
        return [self._sender(shard) for shard in range(len(self._owners))]

    def _sender(self, shard: int) -> PushSender:
        owner, nbytes, rank = self._owners[shard], push_nbytes(self._sizes[shard]), self._ranks.rank
        if owner in self._node_ranks:
            memory = self._memory(rank, "pushes", shard)
            return PushSender(rank, SharedOutbox(nbytes, memory, NUM_PUSHES, self._segments.fence))
        outbox = MessageOutbox(nbytes, self._ranks.world, owner, PUSH_TAG)
        self._outboxes.append(outbox)
        self._waiter.chores.append(outbox.progress)
        return PushSender(rank, outbox)

    def receivers(self) -> list[PushReceiver]:
        """An owner's ends for the gradients of all workers, in rank order. Local."""
        return [self._receiver(worker) for worker in self._ranks.layout.actors]

    def _receiver(self, worker: int) -> PushReceiver:
        shard = self._owners.index(self._ranks.rank)
        nbytes = push_nbytes(self._sizes[shard])
        if worker in self._node_ranks:
            memory = self._memory(worker, "pushes", shard)
            return PushReceiver(worker, SharedInbox(nbytes, memory, NUM_PUSHES, self._segments.fence))
        inbox = MessageInbox(nbytes, self._ranks.world, worker, PUSH_TAG, NUM_PUSHES)
        self._inboxes.append(inbox)
        return PushReceiver(worker, inbox)

    def close(self) -> None:
        """Finish what is under way, all gradients being received, and give the memory back. Collective."""
        waiter = self._waiter
        for outbox in self._outboxes:
            waiter.until(outbox.is_drained)
        if self._publisher is not None:
            self._publisher.drain(waiter)
        # What one rank waits to have received, another one's chores may have to pass on.
        waiter.request(self._ranks.world.Ibarrier())
        waiter.chores.clear()
        for relay in self._relays:
            relay.cancel()
        for inbox in self._inboxes:
            inbox.cancel()
        self._segments.free()
