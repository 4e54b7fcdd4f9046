"""The owner of a shard: gradients are applied as they arrive, each once, and boundaries are announced once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import tests.no_mpi  # noqa: F401

# isort: split
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hpcrl.cluster.pushes import Push, PushReceiver
from hpcrl.cluster.weights import Control
from hpcrl.config import A3CConfig
from hpcrl.roles.boundary import Boundary
from hpcrl.roles.parameter_owner import ParameterOwner
from hpcrl.signals import Requests
from tests.asynchronous import make_channel
from tests.playing import BusyWaiter

NONE, EVALUATE, REPORT, SAVE, STOP = Boundary.NONE, Boundary.EVALUATE, Boundary.REPORT, Boundary.SAVE, Boundary.STOP
NUM_WEIGHTS, WORKERS = 5, (2, 5, 7)
#: Boundaries at every 100 and 150 steps.
CONFIG = A3CConfig(total_env_steps=1000, num_iterations=10, checkpoint_every=150)
FIRST = np.arange(NUM_WEIGHTS, dtype=np.float32)


class Watched:
    """A receiver that writes down when it is asked."""

    def __init__(self, receiver: PushReceiver, asked: list[int]) -> None:
        self._receiver, self._asked = receiver, asked
        self.worker, self.release = receiver.worker, receiver.release

    @property
    def received(self) -> int:
        return self._receiver.received

    def poll(self) -> Push | None:
        self._asked.append(self.worker)
        return self._receiver.poll()


class Recording:
    """A publisher that keeps all publications."""

    def __init__(self) -> None:
        self.controls: list[Control] = []
        self.weights: list[NDArray[np.float32]] = []
        self.sent_bytes = 0

    def offer(self, control: Control, weights: NDArray[np.float32]) -> None:
        self.controls.append(control)
        self.weights.append(weights.copy())


class Owning:
    """An owner, its workers' ends, and what it published."""

    def __init__(self, config: A3CConfig = CONFIG, is_lead: bool = True, version: int = 0, env_steps: int = 0) -> None:
        channels = {worker: make_channel(NUM_WEIGHTS, worker) for worker in WORKERS}
        self.senders = {worker: channel.sender for worker, channel in channels.items()}
        self.asked: list[int] = []
        self.published, self.requests = Recording(), Requests()
        self.first = torch.from_numpy(FIRST.copy())
        self.owner = ParameterOwner(
            config,
            self.first,
            [cast(Any, Watched(channel.receiver, self.asked)) for channel in channels.values()],
            cast(Any, self.published),
            is_lead,
            self.requests,
            cast(Any, BusyWaiter()),
        )
        self.owner.version, self.owner.env_steps = version, env_steps
        self.owner.start()

    def push(
        self,
        steps: int,
        worker: int = WORKERS[0],
        version: int = 0,
        gradient: NDArray[np.float32] | None = None,
        stop: bool = False,
        save: bool = False,
    ) -> None:
        assert self.senders[worker].is_free()
        gradient = np.ones(NUM_WEIGHTS, np.float32) if gradient is None else gradient
        self.senders[worker].send(gradient, version, steps, stop, save)

    def apply(self, steps: int, **wishes: bool) -> Control:
        """Push a gradient over so many steps; the publication that comes of it."""
        before = len(self.published.controls)
        self.push(steps, **cast(Any, wishes))
        assert self.owner.serve() and len(self.published.controls) == before + 1
        return self.published.controls[-1]

    def meet(self) -> Boundary:
        """What the owner wants all ranks to do, who do it."""
        flags = self.owner.close_boundary()
        self.owner.reopen()
        return flags

    def announced(self, steps: int, **wishes: bool) -> tuple[Boundary, int]:
        """The flags and number of boundaries of the publication of a gradient over so many steps."""
        control = self.apply(steps, **wishes)
        return Boundary(control.flags), control.boundaries


TORCHS: dict[str, Callable[[list[torch.Tensor]], torch.optim.Optimizer]] = {
    "rmsprop": lambda weights: torch.optim.RMSprop(weights, alpha=0.9, eps=0.01),
    "adam": lambda weights: torch.optim.Adam(weights, eps=0.01, foreach=False),
}


@pytest.mark.parametrize("optimizer", TORCHS)
def test_gradients_are_applied_one_after_the_other_as_torch_applies_them(optimizer: str) -> None:
    config = A3CConfig(
        optimizer=cast(Any, optimizer),
        total_env_steps=300,
        learning_rate=0.1,
        learning_rate_final=0.02,
        optimizer_epsilon=0.01,
        rmsprop_decay=0.9,
        rmsprop_epsilon_inside=False,
    )
    owning, rng = Owning(config), np.random.default_rng(1)
    expected = torch.from_numpy(FIRST.copy())
    theirs, env_steps = TORCHS[optimizer]([expected]), 0
    # The last of them come when the learning rate is at its end.
    for serve in range(9):
        steps = dict(zip(WORKERS, rng.integers(1, 30, 3).tolist(), strict=True))
        gradients = dict(zip(WORKERS, rng.normal(0, 1, (3, NUM_WEIGHTS)).astype(np.float32), strict=True))
        for worker in WORKERS[: 1 + serve % 3]:
            owning.push(steps[worker], worker, gradient=gradients[worker])
        owning.asked.clear()
        assert owning.owner.serve()
        for worker in owning.asked:
            if worker in WORKERS[: 1 + serve % 3]:
                theirs.param_groups[0]["lr"] = 0.1 - 0.08 * min(env_steps / 300, 1)
                expected.grad = torch.from_numpy(gradients[worker])
                theirs.step()
                env_steps += steps[worker]
        np.testing.assert_allclose(owning.published.weights[-1], expected.numpy(), rtol=1e-5, atol=1e-6)
    assert env_steps > 300 and owning.owner.env_steps == env_steps


def test_every_gradient_is_counted_and_all_that_was_found_is_published_once() -> None:
    owning = Owning(version=40, env_steps=13)
    for steps, worker in ((3, 7), (4, 2)):
        owning.push(steps, worker, version=38)
    assert owning.owner.serve()
    owning.push(5, 5, version=41)
    assert owning.owner.serve() and not owning.owner.serve()
    assert [tuple(control) for control in owning.published.controls] == [
        (40, 40, 0, 13, 0),
        (42, 42, 0, 20, 0),
        (43, 43, 0, 25, 0),
    ]
    assert (owning.owner.version, owning.owner.env_steps, owning.owner.applied) == (43, 25, 3)
    # 40 and 41 applied to with those of 38; 42 with those of 41.
    assert owning.owner.lag.take() == (3, 2 + 3 + 1, 1, 3)


def test_a_message_without_steps_brings_nothing_but_wishes() -> None:
    owning = Owning()
    owning.apply(10)
    state = {key: value.clone() for key, value in owning.owner.optimizer.state.items()}
    weights, lag = owning.published.weights[-1], owning.owner.lag.take()
    owning.push(0, gradient=np.full(NUM_WEIGHTS, np.nan, np.float32), version=-5, save=True)
    assert owning.owner.serve() and len(owning.published.controls) == 2
    assert (owning.owner.version, owning.owner.env_steps, owning.owner.applied) == (1, 10, 1)
    assert owning.owner.lag.take()[0] == 0 and lag[0] == 1
    assert all(torch.equal(value, state[key]) for key, value in owning.owner.optimizer.state.items())
    # The wish is announced with the next weights.
    assert owning.announced(10) == (SAVE, 1) and np.isfinite(owning.published.weights[-1]).all()
    assert not np.array_equal(owning.published.weights[-1], weights)


def test_a_worker_has_one_gradient_applied_at_a_time_and_none_is_always_first() -> None:
    owning = Owning()
    for worker in WORKERS:
        owning.push(1, worker)
        owning.push(1, worker)
    firsts = []
    for applied in (3, 6):
        owning.asked.clear()
        assert owning.owner.serve() and owning.owner.applied == applied
        assert sorted(owning.asked) == sorted(WORKERS)
        firsts.append(owning.asked[0])
    owning.asked.clear()
    assert not owning.owner.serve()
    assert {*firsts, owning.asked[0]} == set(WORKERS)
    assert all(sender.is_free() for sender in owning.senders.values()) and len(owning.published.controls) == 3


def test_a_boundary_is_announced_once_until_it_is_met_with_all_that_became_due() -> None:
    owning = Owning()
    seen = [owning.announced(60) for _ in range(4)]
    # 120 crosses a report; the checkpoint at 150 is due when all have come, not announced a second time.
    assert seen == [(NONE, 0), (REPORT, 1), (REPORT, 1), (REPORT, 1)]
    assert owning.meet() == REPORT | SAVE
    # Decided at 240: 250 crosses nothing, 310 does.
    assert [owning.announced(steps) for steps in (10, 60)] == [(NONE, 1), (REPORT | SAVE, 2)]
    assert owning.meet() == REPORT | SAVE
    assert owning.announced(800) == (REPORT | SAVE | STOP, 3) and owning.owner.boundaries == 3


def test_what_one_serve_finds_together_announces_one_boundary() -> None:
    owning = Owning()
    for worker in WORKERS:
        owning.push(60, worker)
    owning.owner.serve()
    assert owning.published.controls[-1] == Control(3, 3, int(REPORT | SAVE), 180, 1)


def test_the_end_of_a_run_that_comes_while_the_others_are_awaited_is_not_missed() -> None:
    owning = Owning()
    assert owning.announced(100) == (REPORT, 1) and owning.announced(900) == (REPORT, 1)
    assert owning.meet() == REPORT | SAVE | STOP


@pytest.mark.parametrize(
    ("env_steps", "eval_at_start", "expected"),
    [(0, False, NONE), (0, True, EVALUATE | REPORT), (50, True, NONE), (1000, True, STOP)],
)
def test_what_is_due_at_the_start_is_announced_with_the_first_weights(
    env_steps: int, eval_at_start: bool, expected: Boundary
) -> None:
    config = A3CConfig(total_env_steps=1000, eval_at_start=eval_at_start)
    owning = Owning(config, version=4, env_steps=env_steps)
    assert owning.published.controls == [Control(4, 4, int(expected), env_steps, int(expected is not NONE))]
    if expected is not NONE:
        assert owning.meet() == expected and owning.meet() == NONE
    other = Owning(config, is_lead=False, version=4, env_steps=env_steps)
    assert other.published.controls == [Control(4, 4, 0, env_steps, 0)]


def test_a_run_that_goes_on_decides_from_where_it_stands() -> None:
    owning = Owning(version=9, env_steps=310)
    assert owning.announced(80) == (NONE, 0) and owning.announced(10) == (REPORT, 1)


WISHES = [({"stop": True}, SAVE | STOP), ({"save": True}, SAVE), ({"stop": True, "save": True}, SAVE | STOP)]


def wish(owning: Owning, wishes: dict[str, bool], by_signal: bool) -> tuple[Boundary, int]:
    """Wish with a gradient, or by a signal to the owner's own rank; what is published next."""
    if not by_signal:
        return owning.announced(1, **wishes)
    owning.requests.stop = "SIGTERM" if wishes.get("stop") else None
    owning.requests.save = wishes.get("save", False)
    seen = owning.announced(1)
    owning.requests.stop = None
    return seen


@pytest.mark.parametrize("by_signal", [True, False])
@pytest.mark.parametrize(("wishes", "flags"), WISHES)
def test_the_lead_announces_wishes_once_and_forgets_them_when_all_have_met(
    wishes: dict[str, bool], flags: Boundary, by_signal: bool
) -> None:
    owning = Owning()
    assert wish(owning, wishes, by_signal) == (flags, 1) and owning.announced(1) == (flags, 1)
    assert owning.meet() == flags
    assert owning.announced(1) == (NONE, 1) and owning.meet() == NONE


def test_a_wish_that_comes_while_the_others_are_awaited_is_met_with_the_rest() -> None:
    owning = Owning()
    assert owning.announced(100) == (REPORT, 1)
    owning.push(0, save=True)
    owning.owner.serve()
    assert owning.meet() == REPORT | SAVE and owning.announced(1) == (NONE, 1)


@pytest.mark.parametrize("by_signal", [True, False])
@pytest.mark.parametrize(("wishes", "flags"), WISHES)
def test_an_owner_that_does_not_lead_announces_nothing_but_publishes_wishes(
    wishes: dict[str, bool], flags: Boundary, by_signal: bool
) -> None:
    owning = Owning(is_lead=False)
    assert owning.announced(400) == (NONE, 0)
    assert wish(owning, wishes, by_signal) == (flags, 0) and owning.announced(700) == (flags, 0)
    assert owning.meet() == flags
    # It counts the boundaries that the lead announces.
    assert owning.owner.boundaries == 1 and owning.announced(1) == (NONE, 1)
    assert owning.meet() == NONE and owning.owner.boundaries == 2


def test_an_owner_rests_while_all_ranks_are_together() -> None:
    owning = Owning()
    owning.announced(100)
    owning.push(60)
    assert owning.owner.close_boundary() == REPORT
    for _ in range(2):
        assert not owning.owner.serve()
    assert len(owning.published.controls) == 2 and owning.owner.env_steps == 100
    owning.owner.reopen()
    assert owning.owner.serve() and owning.published.controls[-1] == Control(2, 2, int(SAVE), 160, 2)


def test_what_has_been_received_is_compared_with_what_each_worker_sent() -> None:
    owning = Owning()
    for worker in (2, 2, 7):
        owning.push(1, worker)
    sent = {0: 99, 2: 2, 5: 0, 7: 1}
    for _ in range(2):
        assert not owning.owner.has_received(sent)
        owning.owner.serve()
    assert owning.owner.has_received(sent)
    for worker, count in ((5, 1), (7, 2), (2, 1)):
        assert not owning.owner.has_received(sent | {worker: count})


def test_the_first_weights_are_those_at_the_start_and_a_copy() -> None:
    owning = Owning()
    owning.first[:] = 7
    owning.owner.start()
    assert (owning.published.weights[-1] == 7).all()
    owning.first[:] = 9
    owning.apply(1)
    assert (owning.published.weights[-1] < 7).all() and (owning.first == 9).all()
