"""Learners that have unequal amounts of data learn from whole batches all the same, and agree on everything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hpcrl.activity import Activity
from hpcrl.cluster.waiting import Waiter
from hpcrl.signals import Requests

_BATCH = 6


class _Side:
    """One learner's intake, whose actors send when told."""

    def __init__(self, comm: Any) -> None:
        from hpcrl.roles.batching import Batcher
        from hpcrl.roles.intake import Intake
        from hpcrl.roles.schedule import Schedule
        from tests.single.test_inbox import TASK, TIME, Sending

        self.sender, self.requests = Sending(2 + comm.rank, 4), Requests()
        self.agreements = 0
        self.on_agreement: dict[int, Any] = {}
        waiter = Waiter(Activity())
        schedule = Schedule(8, _BATCH, in_rounds=False, exact=False, slack=4)
        batcher = Batcher(TASK, TIME)
        self.intake = Intake(schedule, comm, comm.rank, [self.sender], 4, batcher, 1, self.requests, waiter)
        self.steps_a_column, self._agree = TIME, self.intake._agree
        self.intake._agree = self._count  # type: ignore[method-assign]

    def _count(self, columns: int, steps: int) -> Any:
        agreed = self._agree(columns, steps)
        self.agreements += 1
        self.on_agreement.get(self.agreements, lambda: None)()
        return agreed

    def put(self, count: int, **header: int) -> None:
        for _ in range(count):
            self.sender.put()
            self.sender._waiting[-1].set_header(**header)


@pytest.mark.mpi(ranks=(2,), timeout=120)
def test_a_learner_without_data_holds_nobody_up_and_all_agree() -> None:
    from hpcrl.cluster.mpi import world

    comm = world()
    side = _Side(comm)
    taken = np.zeros(2, np.int64)
    told = []
    for batch in range(20):
        # Rank 1 gets nothing in the first half, rank 0 nothing in the second, but for their first batches.
        side.put(0 if (batch < 10) == (comm.rank == 1) and batch % 10 else 2)
        agreed = side.intake.next(batch, 0)
        told.append((agreed.columns.tolist(), agreed[1:]))
        assert agreed.columns.sum() == _BATCH and agreed.steps == _BATCH * side.steps_a_column
        assert side.intake.batcher.batch.valid.shape[1] == agreed.columns[comm.rank]
        assert not agreed.stop and not agreed.save
        taken += agreed.columns
        # What rank 1 had got at first is learned from by then.
        if batch in range(5, 10):
            assert agreed.columns.tolist() == [_BATCH, 0]
    assert comm.allgather(told) == [told, told]
    assert taken.sum() == 20 * _BATCH and taken.min() > 0
    received = comm.allgather(4 * side.sender.received)
    left = comm.allgather(side.intake.inbox.columns)
    assert [have - rest for have, rest in zip(received, left, strict=True)] == taken.tolist()


@pytest.mark.mpi(ranks=(2,), timeout=120)
def test_no_wish_is_lost_while_learners_wait_and_a_stop_of_one_ends_the_wait_of_all() -> None:
    from hpcrl.cluster.mpi import world

    comm = world()
    side = _Side(comm)
    told = []
    # A save and a cut unroll come with an agreement that has too few columns; the rest comes three rounds later.
    if comm.rank == 0:
        side.requests.save = True
        side.put(1, length=1)
        side.on_agreement[3] = lambda: side.put(1)
    agreed = side.intake.next(0, 0)
    told.append((agreed.columns.tolist(), agreed[1:]))
    assert side.agreements > 3
    assert (agreed.columns.tolist(), agreed.save, agreed.cut, agreed.stop) == ([6, 0], True, 1, False)
    if comm.rank == 1:
        side.put(2)
    agreed = side.intake.next(1, 0)
    told.append((agreed.columns.tolist(), agreed[1:]))
    assert agreed.columns.sum() == _BATCH and not agreed.save and agreed.cut == 0
    # Four columns are left, too few for a batch.
    if comm.rank == 1:
        side.on_agreement[side.agreements + 2] = lambda: setattr(side.requests, "stop", "SIGTERM")
    agreed = side.intake.next(2, 0)
    told.append((agreed.columns.tolist(), agreed[1:]))
    assert agreed.stop and agreed.steps == 0 and not agreed.columns.any()
    assert comm.allgather(told) == [told, told]
