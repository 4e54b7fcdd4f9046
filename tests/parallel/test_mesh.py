"""Weights and gradients between owners and workers under random delays: whole, in order, once, and nothing is left."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from hpcrl.activity import Activity
from hpcrl.cluster.waiting import Waiter

if TYPE_CHECKING:
    from hpcrl.cluster.mesh import Mesh
    from hpcrl.cluster.mpi import Comm
    from hpcrl.cluster.ranks import Ranks
    from hpcrl.cluster.shards import ShardedWeights
    from hpcrl.cluster.weights import WeightsSubscriber

_NUM_WEIGHTS, _NUM_OWNERS, _SECONDS = 20_003, 2, 1.0
_PAUSED_SHARE = 0.05
_ONE_NODE, _TWO_NODES = (0, 0, 0, 0), (0, 0, 1, 1)


@pytest.mark.mpi(ranks=(4,))
def test_shards_and_gradients_arrive_whole_and_nothing_is_left_behind() -> None:
    """On one node, and with a node border between two owners that have a worker each."""
    from hpcrl.cluster.layout import plan_workers
    from hpcrl.cluster.mesh import Mesh
    from hpcrl.cluster.mpi import MPI, world
    from hpcrl.cluster.ranks import Ranks
    from hpcrl.cluster.shards import ShardedWeights, split_weights
    from hpcrl.cluster.weights import Control
    from tests.torn import TornShards

    comm, torn = world(), TornShards(_PAUSED_SHARE, is_locked=True)
    torn.install()
    for nodes in (_ONE_NODE, _TWO_NODES):
        layout = plan_workers(nodes, _NUM_OWNERS, "split", num_envs=4)
        assert layout.learners == ((0, 1) if nodes == _ONE_NODE else (0, 2))
        ranks = Ranks(comm, layout, comm.Split(nodes[comm.rank], comm.rank))
        waiter, shards, copy = (
            Waiter(Activity()),
            split_weights(_NUM_WEIGHTS, _NUM_OWNERS),
            np.zeros(_NUM_WEIGHTS, "f4"),
        )
        mesh = Mesh(ranks, shards, waiter)
        subscribers = mesh.subscribers()
        weights = ShardedWeights(copy, shards, subscribers)
        if ranks.is_learner:
            sent, version = 0, _own(mesh, ranks, shards, subscribers[0], waiter)
        else:
            sent, version = _work(mesh, shards, weights, copy, subscribers[0], waiter), 0
        versions = _gather(ranks.world, version, waiter)[list(layout.learners)]
        waiter.until(lambda weights=weights, versions=versions: weights.has(versions.min()))  # type: ignore[misc]
        waiter.until(lambda weights=weights, versions=versions: _fetched(weights, versions))  # type: ignore[misc]
        assert [float(copy[shard].min()) for shard in shards] == versions.tolist()
        waiter.request(ranks.world.Ibarrier())
        # One publication more, which nobody asks for: on its way when all leave.
        if mesh._publisher is not None:
            shard = shards[layout.learners.index(ranks.rank)]
            control = Control(version + 1, version + 1, 0, 0, 0)
            mesh._publisher.offer(control, np.zeros(shard.stop - shard.start, np.float32))
        mesh.close()
        assert waiter.chores == []
        waiter.request(ranks.world.Ibarrier())
        assert not ranks.world.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG)
        waiter.request(ranks.world.Ibarrier())
        assert ranks.is_learner or sent > 20
    totals = comm.allgather((torn.reads, torn.retries, torn.pushes))
    reads, _retries, pushes = np.sum(totals, axis=0).tolist()
    assert reads > 100 and pushes > 100


def _own(mesh: Mesh, ranks: Ranks, shards: list[slice], announcements: WeightsSubscriber, waiter: Waiter) -> int:
    """Publish without a pause, and look at every gradient; the last version. The lead ends it after a while."""
    from hpcrl.cluster.weights import Control

    shard = ranks.layout.learners.index(ranks.rank)
    size = shards[shard].stop - shards[shard].start
    publisher, receivers = mesh.publisher(), mesh.receivers()
    is_lead, end = shard == 0, time.monotonic() + _SECONDS
    version, is_over = 0, False

    def take() -> bool:
        found = False
        for receiver in receivers:
            if (push := receiver.poll()) is not None:
                header, found = push.header, True
                assert (header.worker, header.sequence) == (receiver.worker, receiver.received - 1)
                assert header.version <= version and header.steps == header.sequence + 1
                assert push.gradient.shape == (size,) and (push.gradient == header.sequence + 0.5).all()
                receiver.release()
        return found

    while not is_over:
        is_over = time.monotonic() > end if is_lead else announcements.announces_boundary()
        is_announced = int(is_lead and is_over)
        publisher.offer(Control(version, version, is_announced, 0, is_announced), np.full(size, version, np.float32))
        take()
        waiter.tick()
        version += 1
    waiter.chores.append(take)
    waiter.until(announcements.announces_boundary)
    sent = _gather(ranks.world, 0, waiter)
    waiter.until(lambda: all(receiver.received == sent[receiver.worker] for receiver in receivers))
    waiter.chores.remove(take)
    return version - 1


def _work(
    mesh: Mesh,
    shards: list[slice],
    weights: ShardedWeights,
    copy: np.ndarray,
    announcements: WeightsSubscriber,
    waiter: Waiter,
) -> int:
    """Fetch and push until the lead announces the end; how many gradients were pushed."""
    senders, before = mesh.senders(), [0] * len(shards)
    waiter.until(lambda: weights.has(0))
    sent = 0
    while not announcements.announces_boundary():
        weights.fetch()
        assert all(now >= then for now, then in zip(weights.versions, before, strict=True))
        before = weights.versions
        for shard, version in zip(shards, before, strict=True):
            assert (copy[shard] == version).all()
        # Weights can be read a moment before their number is the newest.
        assert weights.lag() >= -1 and weights.spread() == abs(before[0] - before[1])
        waiter.until(lambda: all([sender.is_free() for sender in senders]))
        for sender, shard, version in zip(senders, shards, before, strict=True):
            sender.send(np.full(shard.stop - shard.start, sent + 0.5, np.float32), version, sent + 1, False, False)
        sent += 1
        waiter.tick()
    assert _gather(mesh._ranks.world, sent, waiter).sum() > sent
    return sent


def _fetched(weights: ShardedWeights, versions: np.ndarray) -> bool:
    """Whether the last version of every shard has come, which the owners' nodes get before the others."""
    weights.fetch()
    return weights.versions == versions.tolist()


def _gather(comm: Comm, number: int, waiter: Waiter) -> np.ndarray:
    """The number of every rank, int64 [size]; what a rank has to do meanwhile goes on."""
    numbers = np.zeros(comm.size, np.int64)
    waiter.request(comm.Iallgather(np.array([number]), numbers))
    return numbers
