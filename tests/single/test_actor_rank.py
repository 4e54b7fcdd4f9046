"""The loop of an acting rank: what it waits for, with which weights it acts, and where it meets the others."""

from __future__ import annotations

from typing import Any, cast

import tests.no_mpi  # noqa: F401

# isort: split
import pytest
import torch

from hpcrl.cluster.transport import SharedReceiver, SharedSender, slots_nbytes
from hpcrl.cluster.weights import Control, WeightsRing, WeightsSubscriber, pack
from hpcrl.roles.actor import ActorRank
from hpcrl.roles.boundary import Boundary
from hpcrl.roles.schedule import Schedule
from hpcrl.unroll import aligned_zeros
from tests.playing import Blocked, Playing, no_fence

NUM_WEIGHTS, RANK, EPOCHS = 3, 3, 2
LOCKSTEP = Schedule(2, 2, in_rounds=True, exact=True, slack=None)
EXACT = Schedule(2, 2, in_rounds=True, exact=True, slack=2)
WAITING = Schedule(2, 2, in_rounds=True, exact=False, slack=2)
FREE = Schedule(2, 2, in_rounds=False, exact=False, slack=2)


class Rank:
    """An acting rank, and a learner by hand."""

    def __init__(self, schedule: Schedule, num_envs: int = 2, own_network: bool = True, num_slots: int = 8) -> None:
        self.playing = Playing("CartPole-v1", num_envs, 4 * num_envs, rank=RANK)
        ring = aligned_zeros(WeightsRing.nbytes_for(NUM_WEIGHTS, schedule.ring_slots))
        self._ring = WeightsRing(ring, NUM_WEIGHTS, schedule.ring_slots, no_fence)
        slots = aligned_zeros(slots_nbytes(self.playing.spec, num_slots))
        self.receiver = SharedReceiver(RANK, self.playing.spec, slots, num_slots, no_fence)
        self.weights = torch.zeros(NUM_WEIGHTS)
        self._published = self._boundaries = 0
        self.role = ActorRank(
            self.playing.actor,
            schedule,
            self.weights,
            WeightsSubscriber(WeightsRing(ring, NUM_WEIGHTS, schedule.ring_slots, no_fence), None),
            SharedSender(self.playing.spec, slots, num_slots, no_fence),
            cast(Any, self.playing.waiter),
            own_network,
        )

    def publish(self, flags: Boundary = Boundary.NONE) -> None:
        number = self._published
        self._boundaries += flags is not Boundary.NONE
        control = Control(number, EPOCHS * number, int(flags), 16 * number, self._boundaries)
        weights = torch.full((NUM_WEIGHTS,), float(number)).numpy()
        self._ring.write(control, lambda message: pack(message, control, weights))
        self._published += 1

    def advance(self) -> tuple[int, int]:
        """The publication that this rank acted with or met the others at, and the flags."""
        control = self.role.advance()
        assert (self.weights == control.publication).all() or not self.role._own_network
        return control.publication, control.flags

    def versions(self) -> list[int]:
        """Of the unrolls sent since the last call."""
        found = []
        while (unroll := self.receiver.poll()) is not None:
            found.append(unroll.policy_version)
            self.receiver.release()
        return found


def test_no_rank_starts_before_there_are_weights() -> None:
    rank = Rank(LOCKSTEP)
    with pytest.raises(Blocked):
        rank.role.start()
    rank.publish(Boundary.EVALUATE)
    assert rank.role.start().flags == Boundary.EVALUATE
    assert rank.advance() == (0, 0)


def test_in_lockstep_every_unroll_waits_for_the_next_weights() -> None:
    rank = Rank(LOCKSTEP)
    rank.publish()
    rank.role.start()
    for number in range(4):
        assert rank.advance() == (number, 0)
        with pytest.raises(Blocked):
            rank.advance()
        rank.publish()
    assert rank.versions() == [0, 2, 4, 6]
    assert rank.role.take_counts() == {"wait/actor_for_slot": 0, "wait/actor_for_weights": 4}


def test_exact_unrolls_are_acted_with_the_weights_of_so_many_batches_ago_whatever_is_newer() -> None:
    rank = Rank(EXACT)
    for _ in range(3):
        rank.publish()
    rank.role.start()
    assert [rank.advance()[0] for _ in range(5)] == [0, 0, 0, 1, 2]
    with pytest.raises(Blocked):
        rank.advance()


def test_a_rank_that_waits_acts_with_the_newest_once_those_it_needs_are_there() -> None:
    rank = Rank(WAITING)
    rank.publish()
    rank.role.start()
    assert [rank.advance()[0] for _ in range(3)] == [0, 0, 0]
    with pytest.raises(Blocked):
        rank.advance()
    rank.publish()
    rank.publish()
    assert [rank.advance()[0] for _ in range(2)] == [2, 2]


def test_a_free_rank_waits_for_slots_alone() -> None:
    rank = Rank(FREE, num_slots=3)
    rank.publish()
    rank.role.start()
    assert [rank.advance()[0] for _ in range(3)] == [0, 0, 0]
    with pytest.raises(Blocked):
        rank.advance()
    assert rank.versions() == [0, 0, 0]
    rank.publish()
    assert rank.advance()[0] == 1
    assert rank.role.take_counts() == {"wait/actor_for_slot": 1, "wait/actor_for_weights": 0}
    assert rank.role.take_counts() == {"wait/actor_for_slot": 0, "wait/actor_for_weights": 0}


@pytest.mark.parametrize("schedule", [LOCKSTEP, EXACT, WAITING, FREE])
def test_a_boundary_comes_before_unrolls_with_its_newest_weights(schedule: Schedule) -> None:
    rank = Rank(schedule)
    rank.publish()
    rank.role.start()
    rank.advance()
    rank.publish(Boundary.EVALUATE | Boundary.SAVE)
    assert rank.advance() == (1, Boundary.EVALUATE | Boundary.SAVE)
    # Evaluated with the newest; then each acts with what its schedule names.
    assert rank.advance() == (0 if schedule is EXACT else 1, 0)
    rank.publish()
    rank.publish(Boundary.STOP)
    assert rank.advance() == (3, Boundary.STOP)


@pytest.mark.parametrize("schedule", [LOCKSTEP, EXACT, WAITING, FREE])
def test_a_rank_without_a_slot_or_without_environments_meets_the_others(schedule: Schedule) -> None:
    for rank in (Rank(schedule, num_slots=1), Rank(schedule, num_envs=0)):
        rank.publish()
        rank.role.start()
        if rank.playing.actor.num_envs:
            rank.advance()
        for number in range(1, 4):
            with pytest.raises(Blocked):
                rank.advance()
            rank.publish(Boundary.REPORT)
            assert rank.advance() == (number, Boundary.REPORT)


def test_without_a_network_of_its_own_weights_are_fetched_to_evaluate_only() -> None:
    rank = Rank(FREE, own_network=False)
    rank.publish()
    rank.role.start()
    rank.publish()
    rank.advance()
    assert (rank.weights == 0).all()
    rank.publish(Boundary.EVALUATE)
    assert rank.advance() == (2, Boundary.EVALUATE) and (rank.weights == 2).all()


def test_unrolls_are_counted() -> None:
    rank = Rank(FREE)
    rank.publish()
    rank.role.start()
    for _ in range(3):
        rank.advance()
    assert rank.role.account.acted == 3
