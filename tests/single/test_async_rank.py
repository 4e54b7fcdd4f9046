"""The loop of a rank of an asynchronous run: where it meets the others, and a run of one rank against a2c."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import tests.no_mpi  # noqa: F401

# isort: split
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hpcrl.cluster.layout import plan_layout, plan_workers
from hpcrl.cluster.pushes import PushSender
from hpcrl.cluster.shards import ShardedWeights
from hpcrl.cluster.weights import Control, WeightsPublisher
from hpcrl.config import A2CConfig, A3CConfig, ActorCriticConfig
from hpcrl.devices.accelerator import Accelerator
from hpcrl.envs.factory import describe_task
from hpcrl.envs.world import worlds_of
from hpcrl.errors import RankError
from hpcrl.metrics import UPDATE_METRICS, RangeReducer
from hpcrl.roles.account import GradientAccount
from hpcrl.roles.async_rank import AsyncRank
from hpcrl.roles.asynchronous import AsynchronousStation
from hpcrl.roles.boundary import Boundary
from hpcrl.roles.parameter_owner import ParameterOwner
from hpcrl.roles.station import Station
from hpcrl.roles.synchronous import SynchronousStation
from hpcrl.signals import Requests
from tests.asynchronous import Published, Request, ServingWaiter, make_channel
from tests.playing import Blocked
from tests.single.test_actor import SHORT

NONE, EVALUATE, REPORT, SAVE, STOP = Boundary.NONE, Boundary.EVALUATE, Boundary.REPORT, Boundary.SAVE, Boundary.STOP


# Alone


class Alone:
    """A communicator of one rank."""

    rank, size = 0, 1

    def Ibarrier(self) -> Request:  # noqa: N802
        return Request()


def station_of(config: ActorCriticConfig, requests: Requests, accelerator: Accelerator | None = None) -> Station:
    """All parts of a run of one rank."""
    is_a3c = isinstance(config, A3CConfig)
    plan = plan_workers if is_a3c else plan_layout
    ranks = SimpleNamespace(
        world=Alone(),
        node=Alone(),
        learners=Alone(),
        cell=Alone(),
        cell_ranks=(0,),
        rank=0,
        size=1,
        is_actor=True,
        is_learner=True,
        learner=0,
        learner_is_near=True,
        layout=plan(["here"], "auto", "split", config.num_envs),
        far_cells=lambda: [],
    )
    task = describe_task(worlds_of(config)[0])
    parts = (cast(Any, config), task, cast(Any, ranks), requests, cast(Any, ServingWaiter()))
    return AsynchronousStation(*parts) if is_a3c else SynchronousStation(*parts, accelerator)


class Meeting(NamedTuple):
    """Where all ranks met."""

    flags: int
    env_steps: int
    updates: int
    weights: bytes
    reported: list[float]
    episodes: bytes


def meetings(config: ActorCriticConfig) -> tuple[list[Meeting], Station]:
    """Of a whole run, and what is left of it."""
    station = station_of(config, Requests())
    role, seen = station.role, list[Meeting]()
    control = role.start()
    for _ in range(100):
        if control.flags:
            assert role.reducer is not None
            weights = station.flat.weights.detach().numpy().tobytes()
            counts = control.flags, control.env_steps, control.policy_version
            reported = np.concatenate(list(role.reducer.take_state().values())).tolist()
            seen.append(Meeting(*counts, weights, reported, role.take_episodes().tobytes()))
        if control.flags & STOP:
            return seen, station
        control = role.advance()
    raise AssertionError("the run does not end")


OPTIONS: dict[str, Any] = {
    "num_envs": 4,
    "unroll_length": 8,
    "hidden_sizes": (8,),
    "total_env_steps": 640,
    "num_iterations": 4,
    "checkpoint_every": 96,
    "eval_at_start": True,
    "entropy_coef": 0.1,
    "entropy_coef_final": 0.0,
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "adam", "normalise_advantages": True, "gae_lambda": 0.9},
        {"loss_reduction": "sum", "max_grad_norm": 0.0, "learning_rate": 1e-4, "shared_encoder": True},
        {"env": SHORT, "num_envs": 3},
    ],
)
def test_a_run_of_one_rank_is_that_of_a2c_bit_for_bit(changes: dict[str, Any]) -> None:
    expected, a2c = meetings(A2CConfig(**OPTIONS | changes))
    got, a3c = meetings(A3CConfig(**OPTIONS | changes))
    assert len(expected) > 6 and len({meeting.weights for meeting in expected}) == len(expected)
    for meeting, synchronous in zip(got, expected, strict=True):
        assert meeting == synchronous
    assert got[-1].env_steps >= 640 and got[0][:3] == (EVALUATE | REPORT, 0, 0)
    account, updates = cast(GradientAccount, a3c.role.account), got[-1].updates
    assert account == GradientAccount(updates, 0, (updates,)) and account.under_way == (0,)
    # One update, one publication, one fetch: nothing ever lags.
    assert a3c.role.take_ranges() == {"lag/": (updates, 0, 0, 0), "lag/shard_spread_": (updates, 0, 0, 0)}
    assert a3c.role.unrolls_cut == a2c.role.unrolls_cut
    counts = a3c.role.take_counts()
    assert counts.pop("comm/gradient_bytes") == updates * 4 * len(a3c.flat)
    assert not any(counts.values()) and not any(a3c.role.take_counts().values())
    for station in (a2c, a3c):
        assert station.actor is not None
        station.actor.close()


def test_a_run_of_one_rank_stops_where_it_is_asked_to() -> None:
    requests = Requests()
    station = station_of(A3CConfig(**OPTIONS | {"eval_at_start": False, "checkpoint_every": 0}), requests)
    role = station.role
    assert role.start() == Control(0, 0, 0, 0, 0)
    role.advance()
    requests.save = True
    flags = [role.advance().flags for _ in range(3)]
    assert flags == [0, SAVE, 0]
    requests.stop = "SIGTERM"
    role.advance()
    assert role.advance() == Control(4, 4, int(SAVE | STOP), 4 * 32, 2)
    assert station.actor is not None
    station.actor.close()


# Among others


class World:
    """A communicator whose other ranks answer as told: what rank r says in the next gathering, row r."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.answers: deque[list[list[int]]] = deque()
        self.said: list[list[int]] = []
        self.all_have_the_weights = True

    def Iallgather(self, mine: NDArray[np.int64], table: NDArray[np.int64]) -> Request:  # noqa: N802
        self.said.append(mine.tolist())
        table[:] = self.answers.popleft()
        table[self.rank] = mine
        return Request()

    def Ibarrier(self) -> Request:  # noqa: N802
        return Request(self.all_have_the_weights)


LEAD, OWNER, WORKER = 0, 1, 2
SHARDS = [slice(0, 2), slice(2, 5)]


class Among:
    """One of three ranks: the lead, another owner, and a worker. What this rank is not is played by hand."""

    def __init__(self, rank: int) -> None:
        config = A3CConfig(total_env_steps=1000, num_iterations=10, checkpoint_every=0)
        self.published = [Published(shard.stop - shard.start) for shard in SHARDS]
        self.copy = torch.full((5,), -1.0)
        self.world, self.waiter, self.requests = World(rank, 3), ServingWaiter(), Requests()
        subscribers = [each.subscriber() for each in self.published]
        self.sender: PushSender | None = None
        owner = None
        if rank != WORKER:
            shard = SHARDS[rank]
            self.sender, receiver = make_channel(shard.stop - shard.start, WORKER)
            publisher = WeightsPublisher(
                self.published[rank].ring, cast(Any, None), [], shard.stop - shard.start, every=False
            )
            first = torch.zeros(shard.stop - shard.start)
            parts = (self.requests, cast(Any, self.waiter))
            owner = ParameterOwner(config, first, [receiver], publisher, rank == LEAD, *parts)
            self.waiter.chores.append(owner.serve)
        self.worker = None if rank != WORKER else Acting()
        self.compared: list[int] = []
        self.role = AsyncRank(
            cast(Any, self.world),
            (LEAD, OWNER),
            cast(Any, self.worker),
            owner,
            ShardedWeights(self.copy.numpy(), SHARDS, subscribers),
            subscribers[0],
            cast(Any, self.waiter),
            self.compared.append,
        )

    def publish(
        self, shard: int, version: int, flags: Boundary = NONE, env_steps: int = 0, boundaries: int = 0
    ) -> None:
        size = SHARDS[shard].stop - SHARDS[shard].start
        self.published[shard].write(version, np.full(size, version, np.float32), flags, env_steps, boundaries)

    def push(self, steps: int) -> None:
        assert self.sender is not None
        self.sender.send(np.ones(2, np.float32), 0, steps, False, False)

    def others_say(self, *rows: list[list[int]]) -> None:
        self.world.answers.extend(rows)


class Acting:
    """A worker that only counts."""

    def __init__(self) -> None:
        self.sent = self.pushed = self.dropped = self.dropped_steps = self.waits = self.pushed_bytes = 0
        self.spread, self.unrolls_cut = RangeReducer(), 0

    def advance(self) -> None:
        self.sent += 1


def test_no_rank_starts_before_every_shard_is_there() -> None:
    among = Among(WORKER)
    among.publish(0, 0)
    with pytest.raises(Blocked):
        among.role.start()
    among.publish(1, 0)
    assert among.role.start() == Control(0, 0, 0, 0, 0) and not among.world.said


def test_a_rank_that_only_owns_serves_until_there_is_a_meeting() -> None:
    among = Among(LEAD)
    among.publish(1, 0)
    among.role.start()
    for _ in range(2):
        among.push(30)
    with pytest.raises(Blocked):
        among.role.advance()
    assert among.role.owner is not None and among.role.owner.version == 2
    among.push(40)
    among.publish(1, 3, env_steps=100)
    among.others_say([[0], [0], [3]], [[0] * 4, [3, 100, 0, 1], [0] * 4])
    assert among.role.advance() == Control(3, 3, int(REPORT), 100, 1)
    with pytest.raises(Blocked):
        among.role.advance()


def test_all_that_is_under_way_is_applied_before_they_agree_and_every_wish_counts() -> None:
    among = Among(LEAD)
    among.publish(1, 0)
    among.role.start()
    among.push(100)
    among.push(7)
    among.publish(1, 2, env_steps=107)
    # The other owner wishes a save, which it says here; the worker's second gradient is on its way yet.
    among.others_say([[0], [0], [2]], [[0] * 4, [2, 107, int(SAVE), 1], [0] * 4])
    assert among.role.advance() == Control(2, 2, int(REPORT | SAVE), 107, 1)
    assert among.world.said == [[0], [2, 107, int(REPORT), 1]]
    assert (among.copy[2:] == 2).all() and (among.copy[:2] < 0).all() and (among.copy[:2] != -1).all()
    assert among.role.account == GradientAccount(0, 0, (2, 0))
    assert int(among.waiter.activity.stamp[1]) == 2


def test_nobody_leaves_a_meeting_before_all_have_the_weights_and_its_owner_rests_until_it_goes_on() -> None:
    among = Among(LEAD)
    owner = among.role.owner
    assert owner is not None
    among.publish(1, 0)
    among.role.start()
    among.push(100)
    among.publish(1, 1)
    told = [[0], [0], [1]], [[0] * 4, [1, 100, 0, 1], [0] * 4]
    among.others_say(*told)
    among.world.all_have_the_weights = False
    with pytest.raises(Blocked):
        among.role.advance()
    assert (among.copy >= -1).all() and (among.copy[2:] == 1).all() and not among.compared
    among.world.all_have_the_weights = True
    among.others_say(*told)
    among.role.advance()
    assert among.compared == [1]
    # A worker that was through earlier has pushed already.
    among.push(10)
    among.waiter.tick()
    assert owner.version == 1
    with pytest.raises(Blocked):
        among.role.advance()
    assert owner.version == 2


def test_a_gradient_that_does_not_come_is_waited_for() -> None:
    among = Among(LEAD)
    among.publish(1, 0)
    among.role.start()
    among.push(100)
    among.others_say([[0], [0], [2]])
    with pytest.raises(Blocked):
        among.role.advance()
    assert among.world.said == [[0]]


@pytest.mark.parametrize("theirs", [(3, 100), (1, 100), (2, 90)])
def test_shards_that_count_otherwise_after_a_meeting_are_an_error(theirs: tuple[int, int]) -> None:
    among = Among(LEAD)
    among.publish(1, 0)
    among.role.start()
    among.push(60)
    among.push(40)
    among.publish(1, 5)
    among.others_say([[0], [0], [2]], [[0] * 4, [*theirs, 0, 1], [0] * 4])
    with pytest.raises(RankError, match=rf"different versions, \[2, {theirs[0]}\]: a gradient was lost on its way"):
        among.role.advance()


def test_a_worker_comes_to_a_meeting_between_two_unrolls_and_takes_the_weights_of_all_shards() -> None:
    among = Among(WORKER)
    assert among.worker is not None
    for shard in range(2):
        among.publish(shard, 0)
    among.role.start()
    assert among.role.advance() == Control(0, 0, 0, 0, 0) and among.worker.sent == 1
    assert among.waiter.ticks == 1
    among.publish(0, 1, SAVE, env_steps=10, boundaries=1)
    among.publish(0, 4, SAVE, env_steps=40, boundaries=1)
    told = [[0], [0], [0]], [[4, 40, int(SAVE), 1], [4, 40, int(REPORT), 1], [0] * 4]
    among.others_say(*told)
    # One shard is not there yet in the version that the owners agreed on.
    with pytest.raises(Blocked):
        among.role.advance()
    assert among.worker.sent == 1 and among.world.said == [[1], [0, 0, 0, 0]]
    among.publish(1, 4)
    among.others_say(*told)
    assert among.role.advance() == Control(4, 4, int(SAVE | REPORT), 40, 1) and (among.copy == 4).all()
    # What it is given between meetings has no flags.
    assert among.role.advance() == Control(4, 4, 0, 40, 1) and among.worker.sent == 2


def test_what_is_due_before_the_first_unroll_is_met_at_the_start() -> None:
    among = Among(WORKER)
    among.publish(0, 3, STOP, env_steps=1000, boundaries=1)
    among.publish(1, 3)
    among.others_say([[0], [0], [0]], [[3, 1000, int(STOP), 1], [3, 1000, 0, 1], [0] * 4])
    assert among.role.start() == Control(3, 3, int(STOP), 1000, 1)


def test_ranks_report_what_they_are() -> None:
    owner, worker = Among(OWNER), Among(WORKER)
    assert worker.worker is not None
    worker.worker.pushed, worker.worker.dropped, worker.worker.waits = 7, 2, 4
    worker.worker.pushed_bytes, worker.worker.dropped_steps = 90, 30
    assert worker.role.account == GradientAccount(7, 2, (0, 0))
    expected = {"comm/gradient_bytes": 90, "lag/dropped_unrolls": 2, "lag/dropped_steps": 30, "wait/actor_for_slot": 4}
    assert worker.role.take_counts() == expected and not any(worker.role.take_counts().values())
    assert list(worker.role.take_ranges()) == ["lag/shard_spread_"] and list(owner.role.take_ranges()) == ["lag/"]
    assert owner.role.owner is not None
    owner.role.owner.applied = 5
    assert owner.role.account == GradientAccount(0, 0, (0, 5)) and owner.role.take_counts() == {"comm/weights_bytes": 0}
    assert len(owner.role.take_episodes()) == 0 and owner.role.unrolls_cut == 0
    # What a checkpoint brought is kept where there is no worker.
    owner.role.reducer.restore({"sums": np.full(len(UPDATE_METRICS), 6.0), "count": np.array([2])})
    assert owner.role.reducer.take()["train/entropy"] == 3
