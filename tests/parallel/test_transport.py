"""Unrolls and weights between real processes, under random delays: whole, in order, once."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest

from hpcrl.activity import Activity
from hpcrl.cluster.waiting import Waiter
from hpcrl.errors import TransportError
from hpcrl.spaces import Space, Task
from hpcrl.unroll import Unroll, UnrollSpec

_TASK = Task(Space("box", (3,), "float32"), Space("discrete", (), "int64", 2), 10, True)
_SPEC = UnrollSpec(_TASK, unroll_length=5, num_envs=4, first_env=0, num_finals=8)
_ROUNDS = 400
_NUM_WEIGHTS = 20_000


def _pause(generator: random.Random) -> None:
    """Now and then, as a descheduled process would."""
    if generator.random() < 0.05:
        time.sleep(generator.random() * 2e-3)


def _fill(unroll: Unroll, number: int) -> None:
    unroll.buffer[:] = number % 251
    unroll.set_header(actor=1, sequence=-1, num_finals=0, length=5)


@pytest.mark.mpi(ranks=(2,))
@pytest.mark.parametrize("kind", ["shared", "message"])
def test_unrolls_arrive_whole_and_in_order(kind: str) -> None:
    from hpcrl.cluster.mpi import world
    from hpcrl.cluster.shared_memory import SharedSegments
    from hpcrl.cluster.transport import MessageReceiver, MessageSender, SharedReceiver, SharedSender, slots_nbytes

    comm, waiter, generator = world(), Waiter(Activity()), random.Random(world().rank)
    segments = SharedSegments(comm, slots_nbytes(_SPEC) if comm.rank == 1 else 0)
    if comm.rank == 1:
        sender = (
            SharedSender(_SPEC, segments.segment(1), segments.fence)
            if kind == "shared"
            else MessageSender(_SPEC, comm, 0)
        )
        for number in range(_ROUNDS):
            _fill(sender.next_slot(waiter), number)
            _pause(generator)
            sender.send(waiter)
        sender.next_slot(waiter)
    else:
        receiver = (
            SharedReceiver(1, _SPEC, segments.segment(1), segments.fence)
            if kind == "shared"
            else MessageReceiver(1, _SPEC, comm)
        )
        for number in range(_ROUNDS):
            unroll = receiver.receive(waiter)
            _pause(generator)
            assert unroll.sequence == number
            assert (unroll.observation.view(np.uint8) == number % 251).all()
            assert (unroll.episode_length.view(np.uint8) == number % 251).all()
            receiver.release()
        if isinstance(receiver, MessageReceiver):
            receiver.cancel()
    waiter.request(comm.Ibarrier())
    segments.free()


@pytest.mark.mpi(ranks=(4,))
def test_a_reader_never_sees_half_of_the_weights() -> None:
    from hpcrl.cluster.mpi import world
    from hpcrl.cluster.shared_memory import SharedSegments
    from hpcrl.cluster.weights import Control, WeightsRing, pack

    comm, waiter, generator = world(), Waiter(Activity()), random.Random(world().rank)
    segments = SharedSegments(comm, WeightsRing.nbytes_for(_NUM_WEIGHTS, 2) if comm.rank == 0 else 0)
    ring = WeightsRing(segments.segment(0), _NUM_WEIGHTS, 2, segments.fence)
    weights = np.zeros(_NUM_WEIGHTS, np.float32)
    if comm.rank == 0:

        def fill(message: np.ndarray, number: int) -> None:
            pack(message, Control(number, number, 0, 0), np.full(_NUM_WEIGHTS, number, np.float32))
            _pause(generator)

        for number in range(_ROUNDS):
            ring.write(number, lambda message, number=number: fill(message, number))
            _pause(generator)
    else:
        number = read = 0
        while number < _ROUNDS:
            # The writer waits for nobody, so a slow reader meets rounds that were overwritten.
            waiter.until(lambda wanted=number: ring.has(wanted))
            try:
                control = ring.read(number, weights)
            except TransportError:
                number += 1
                continue
            assert control.round == number
            assert (weights == number).all()
            number, read = number + 1, read + 1
        assert read > 0
    waiter.request(comm.Ibarrier())
    segments.free()


@pytest.mark.mpi(ranks=(2,))
def test_shared_memory_that_is_too_small_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcrl.cluster import shared_memory
    from hpcrl.cluster.mpi import world

    with pytest.raises(TransportError, match="of shared memory but /dev/shm has"):
        shared_memory.SharedSegments(world(), 1 << 50)
