"""Waiting: what must go on goes on, and so do the signs of life."""

from __future__ import annotations

import tests.no_mpi  # noqa: F401

# isort: split
import pytest

from hpcrl.activity import Activity, Phase
from hpcrl.cluster.waiting import Waiter
from hpcrl.errors import RankError


class Countdown:
    """Ready at the n-th look."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def __call__(self) -> bool:
        self.looks -= 1
        return self.looks < 0


def test_no_chore_is_left_out_because_another_has_something_to_do() -> None:
    waiter, done = Waiter(Activity()), [0, 0, 0]

    def chore(index: int) -> bool:
        done[index] += 1
        return index == 1

    waiter.chores += [lambda index=index: chore(index) for index in range(3)]  # type: ignore[misc]
    waiter.until(Countdown(60))
    assert done[0] == done[1] == done[2] > 10


def test_a_rank_that_always_has_something_to_do_for_others_still_looks_after_them() -> None:
    looks: list[int] = []
    waiter = Waiter(Activity(), lambda: looks.append(1))
    waiter.chores.append(lambda: True)
    before = int(waiter.activity.stamp[2])
    waiter.until(Countdown(60))
    assert len(looks) > 10 and int(waiter.activity.stamp[2]) > before


def test_a_wait_in_vain_ends() -> None:
    def stuck() -> None:
        raise RankError("rank 3 is stuck")

    waiter = Waiter(Activity(), stuck)
    with pytest.raises(RankError, match="rank 3 is stuck"):
        waiter.until(lambda: False)


def test_a_tick_shows_life_and_does_the_chores() -> None:
    looks: list[str] = []
    waiter = Waiter(Activity(), lambda: looks.append("watch"))
    waiter.chores.append(lambda: bool(looks.append("chore")))
    before = int(waiter.activity.stamp[2])
    waiter.tick()
    assert looks == ["chore", "watch"] and int(waiter.activity.stamp[2]) > before


def test_the_time_of_a_wait_is_counted_and_then_the_phase_is_the_one_before() -> None:
    waiter = Waiter(Activity())
    waiter.activity.enter(Phase.LEARNING)
    seen: list[Phase] = []

    def ready() -> bool:
        seen.append(waiter.activity.phase)
        return len(seen) > 40

    waiter.until(ready, Phase.REDUCING)
    assert set(seen) == {Phase.LEARNING, Phase.REDUCING} and waiter.activity.phase is Phase.LEARNING
