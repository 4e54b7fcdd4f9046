"""Weights to cells on other nodes: boundaries reach every one, and a slow one holds nobody up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from hpcrl.activity import Activity
from hpcrl.cluster.waiting import Waiter
from hpcrl.unroll import aligned_zeros

if TYPE_CHECKING:
    from hpcrl.cluster.mpi import Comm

_NUM_WEIGHTS, _COUNT = 5000, 30
_BOUNDARIES = (0, 9, 19, 29)


@pytest.mark.mpi(ranks=(3,), timeout=120)
def test_every_publication_or_the_newest_reaches_the_other_nodes() -> None:
    from hpcrl.cluster.mpi import world

    comm, waiter = world(), Waiter(Activity())
    for every in (True, False):
        if comm.rank == 0:
            _publish(comm, waiter, every)
        else:
            _follow(comm, waiter, every)
        waiter.chores.clear()
        waiter.request(comm.Ibarrier())
        assert not comm.Iprobe()
        waiter.request(comm.Ibarrier())


def _publish(comm: Comm, waiter: Waiter, every: bool) -> None:
    from hpcrl.cluster.weights import Control, WeightsPublisher, message_nbytes

    publisher = WeightsPublisher(None, comm, [1, 2], _NUM_WEIGHTS, every)
    waiter.chores.append(publisher.progress)
    boundaries = 0
    for number in range(_COUNT):
        boundaries += number in _BOUNDARIES
        control = Control(number, 2 * number, 4 * (number in _BOUNDARIES), 10 * number, boundaries)
        publisher.publish(control, np.full(_NUM_WEIGHTS, number, np.float32), waiter)
        if number in _BOUNDARIES or number + 1 in _BOUNDARIES:
            # Where a boundary comes next, rank 2 has not looked for a while, and publishing went on.
            waiter.request(comm.Ibarrier())
    assert boundaries == len(_BOUNDARIES)
    publisher.drain(waiter)
    messages = publisher.sent_bytes / message_nbytes(_NUM_WEIGHTS)
    assert messages == 2 * _COUNT if every else 2 * len(_BOUNDARIES) <= messages < 2 * _COUNT


def _follow(comm: Comm, waiter: Waiter, every: bool) -> None:
    """Read what comes; rank 2 looks at boundaries only where it may pass publications over."""
    from hpcrl.cluster.weights import WeightsRelay, WeightsRing, WeightsSubscriber

    ring = WeightsRing(aligned_zeros(WeightsRing.nbytes_for(_NUM_WEIGHTS, 3)), _NUM_WEIGHTS, 3, lambda: None)
    relay = WeightsRelay(ring, comm, 0, _NUM_WEIGHTS)
    subscriber = WeightsSubscriber(ring, relay)
    weights = np.zeros(_NUM_WEIGHTS, np.float32)
    seen = [-1]
    for target in _BOUNDARIES:
        if target:
            wanted = range(seen[-1] + 1, target if every else seen[-1] + 1 + (comm.rank == 1))
            for number in wanted:
                waiter.until(lambda number=number: subscriber.has(number))  # type: ignore[misc]
                assert subscriber.boundary() is None
                held = subscriber.fetch(number, weights) if every else subscriber.fetch_newest(weights, None)
                assert held.publication == number or (not every and number < held.publication < target)
                assert (weights == held.publication).all() and held.policy_version == 2 * held.publication
                seen.append(held.publication)
            waiter.request(comm.Ibarrier())
        waiter.until(lambda target=target: subscriber.has(target))  # type: ignore[misc]
        boundary = subscriber.boundary()
        assert boundary is not None and (boundary.publication, boundary.flags) == (target, 4)
        assert subscriber.boundary() is None
        assert subscriber.fetch_newest(weights, None) == boundary and (weights == target).all()
        seen.append(target)
        waiter.request(comm.Ibarrier())
    assert not every or seen == list(range(-1, _COUNT))
    relay.cancel()
