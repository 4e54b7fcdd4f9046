"""Clocks of several nodes, which start anywhere, are told apart by no more than they say."""

from __future__ import annotations

import time

import numpy as np
import pytest

from hpcrl.activity import Activity
from hpcrl.cluster.waiting import Waiter

_HOUR_NS = 3600 * 10**9


@pytest.mark.mpi(ranks=(4,))
def test_offsets_bring_every_clock_to_that_of_rank_0() -> None:
    from hpcrl.cluster.clocks import clock_offsets
    from hpcrl.cluster.mpi import world

    comm, node_of = world(), [5, 2, 5, 2]
    ahead = -_HOUR_NS if node_of[comm.rank] == 2 else 0
    offsets, errors = clock_offsets(comm, node_of, Waiter(Activity()), lambda: time.monotonic_ns() + ahead)
    if comm.rank == 0:
        assert (np.abs(offsets - [0, _HOUR_NS, 0, _HOUR_NS]) <= errors + 1).all()
        assert errors[[0, 2]].tolist() == [0, 0]
        # The quickest of some answers on a machine that others use too.
        assert errors.max() < 5_000_000
    else:
        assert not offsets.any() and not errors.any()


@pytest.mark.mpi(ranks=(2,))
def test_ranks_of_one_node_have_one_clock() -> None:
    from hpcrl.cluster.clocks import clock_offsets
    from hpcrl.cluster.mpi import world

    offsets, errors = clock_offsets(world(), [0, 0], Waiter(Activity()), clock=lambda: 1 // 0)
    assert not offsets.any() and not errors.any()
