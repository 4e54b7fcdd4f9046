"""Unrolls and weights between real processes, under random delays: whole, in order, once."""

from __future__ import annotations

import random
import time
from collections import deque
from typing import TYPE_CHECKING

import numpy as np
import pytest

from hpcrl.activity import Activity
from hpcrl.cluster.waiting import Waiter
from hpcrl.errors import TransportError
from hpcrl.spaces import Space, Task
from hpcrl.unroll import Unroll, UnrollSpec

if TYPE_CHECKING:
    from hpcrl.cluster.mpi import Comm
    from hpcrl.cluster.transport import UnrollReceiver, UnrollSender

_TASK = Task(Space("box", (3,), "float32"), Space("discrete", (), "int64", 2), 10, True)
_SPEC = UnrollSpec(_TASK, unroll_length=5, num_envs=4, first_env=0, num_finals=8)
_ROUNDS = 200
_NUM_WEIGHTS = 20_000


def _pause(generator: random.Random) -> None:
    """Now and then, as a descheduled process would."""
    if generator.random() < 0.05:
        time.sleep(generator.random() * 2e-3)


def _fill(unroll: Unroll, number: int) -> None:
    unroll.buffer[:] = number % 251
    unroll.set_header(actor=1, sequence=-1, num_finals=0, length=5)


@pytest.mark.mpi(ranks=(2,))
def test_unrolls_arrive_whole_and_in_order_while_several_are_held() -> None:
    from hpcrl.cluster.mpi import world
    from hpcrl.cluster.shared_memory import SharedSegments
    from hpcrl.cluster.transport import MessageReceiver, MessageSender, SharedReceiver, SharedSender, slots_nbytes

    comm, waiter, generator = world(), Waiter(Activity()), random.Random(world().rank)
    for num_slots in (2, 5):
        segments = SharedSegments(comm, slots_nbytes(_SPEC, num_slots) if comm.rank == 1 else 0)
        memory = segments.segment(1)
        for kind in ("shared", "message"):
            if comm.rank == 1:
                sender: UnrollSender = (
                    SharedSender(_SPEC, memory, num_slots, segments.fence)
                    if kind == "shared"
                    else MessageSender(_SPEC, comm, 0)
                )
                for number in range(_ROUNDS):
                    waiter.until(sender.is_free)
                    _fill(sender.slot(), number)
                    _pause(generator)
                    sender.send()
                if isinstance(sender, MessageSender):
                    waiter.until(sender.is_drained)
            else:
                receiver: UnrollReceiver = (
                    SharedReceiver(1, _SPEC, memory, num_slots, segments.fence)
                    if kind == "shared"
                    else MessageReceiver(1, _SPEC, comm, num_slots)
                )
                held: deque[Unroll] = deque()
                released = 0
                while released < _ROUNDS:
                    if receiver.received < _ROUNDS and len(held) < num_slots and (unroll := receiver.poll()):
                        held.append(unroll)
                        assert unroll.sequence == receiver.received - 1
                    _pause(generator)
                    # As a learner would: nothing, one, or all that it holds are used up.
                    for _ in range(generator.choice((0, 1, len(held))) if held else 0):
                        unroll = held.popleft()
                        assert unroll.sequence == released
                        assert (unroll.observation.view(np.uint8) == released % 251).all()
                        assert (unroll.episode_length.view(np.uint8) == released % 251).all()
                        receiver.release()
                        released += 1
                assert receiver.poll() is None
                if isinstance(receiver, MessageReceiver):
                    receiver.cancel()
            waiter.request(comm.Ibarrier())
        segments.free()


@pytest.mark.mpi(ranks=(2,))
def test_what_is_under_way_at_the_end_is_received() -> None:
    from hpcrl.cluster.mpi import world

    comm, waiter = world(), Waiter(Activity())
    for held, sent in ((0, 0), (0, 2), (1, 4), (3, 5)):
        (_send_and_leave if comm.rank == 1 else _receive_and_leave)(comm, waiter, held, sent)
        waiter.request(comm.Ibarrier())
        # Nothing is left that a later receive could take for its own.
        assert not comm.Iprobe(1 - comm.rank)
        waiter.request(comm.Ibarrier())


def _send_and_leave(comm: Comm, waiter: Waiter, _held: int, sent: int) -> None:
    from hpcrl.cluster.transport import MessageSender

    sender = MessageSender(_SPEC, comm, 0)
    waiter.chores.append(sender.progress)
    for number in range(sent):
        waiter.until(sender.is_free)
        _fill(sender.slot(), number)
        sender.send()
    waiter.request(comm.Iallgather(np.array([sender.sequence]), np.zeros(2, np.int64)))
    waiter.until(sender.is_drained)
    assert sender.is_free()
    waiter.chores.clear()


def _receive_and_leave(comm: Comm, waiter: Waiter, held: int, sent: int) -> None:
    from hpcrl.cluster.transport import MessageReceiver

    receiver, counts = MessageReceiver(1, _SPEC, comm, 3), np.zeros(2, np.int64)
    for _ in range(held):
        waiter.until(lambda: receiver.poll() is not None)
    waiter.request(comm.Iallgather(np.array([0]), counts))
    assert counts[1] == sent and receiver.received == held
    waiter.until(lambda: receiver.drain(int(counts[1])))
    assert receiver.received == sent
    receiver.cancel()


@pytest.mark.mpi(ranks=(2,))
def test_a_message_out_of_sequence_is_refused() -> None:
    from hpcrl.cluster.channels import MessageOutbox
    from hpcrl.cluster.mpi import world
    from hpcrl.cluster.transport import UNROLL_TAG, MessageReceiver

    comm, waiter = world(), Waiter(Activity())
    if comm.rank == 1:
        outbox = MessageOutbox(_SPEC.nbytes, comm, 0, UNROLL_TAG)
        for slot, sequence in zip(outbox.slots, (0, 2), strict=True):
            Unroll(_SPEC, slot).set_header(actor=1, sequence=sequence)
            outbox.send()
        waiter.until(outbox.is_drained)
    else:
        receiver = MessageReceiver(1, _SPEC, comm, 2)
        waiter.until(lambda: receiver.poll() is not None)
        with pytest.raises(TransportError, match="expected unroll 1 of rank 1, got unroll 2 of rank 1"):
            waiter.until(lambda: receiver.poll() is not None)
        receiver.cancel()
    waiter.request(comm.Ibarrier())


def _is_boundary(number: int) -> bool:
    return number % 50 == 49


@pytest.mark.mpi(ranks=(4,))
def test_a_reader_never_sees_half_of_the_weights() -> None:
    from hpcrl.cluster.mpi import world
    from hpcrl.cluster.shared_memory import SharedSegments
    from hpcrl.cluster.weights import Control, WeightsRing, WeightsSubscriber, pack

    comm, waiter, generator = world(), Waiter(Activity()), random.Random(world().rank)
    segments = SharedSegments(comm, WeightsRing.nbytes_for(_NUM_WEIGHTS, 3) if comm.rank == 0 else 0)
    ring = WeightsRing(segments.segment(0), _NUM_WEIGHTS, 3, segments.fence)
    weights = np.zeros(_NUM_WEIGHTS, np.float32)
    boundaries = [number for number in range(_ROUNDS) if _is_boundary(number)]
    if comm.rank == 0:

        def fill(message: np.ndarray, control: Control) -> None:
            pack(message, control, np.full(_NUM_WEIGHTS, control.publication, np.float32))
            _pause(generator)

        for number in range(_ROUNDS):
            control = Control(number, number, int(_is_boundary(number)), 0, (number + 1) // 50)
            ring.write(control, lambda message, control=control: fill(message, control))  # type: ignore[misc]
            _pause(generator)
            if _is_boundary(number):
                waiter.request(comm.Ibarrier())
    else:
        subscriber = WeightsSubscriber(ring, None)
        number = read = 0
        met: list[int] = []
        held: Control | None = None
        while len(met) < len(boundaries):
            # The writer waits for nobody but at boundaries, so a slow reader meets publications that were overwritten.
            waiter.until(lambda wanted=number: subscriber.has(wanted) or subscriber.announces_boundary())  # type: ignore[misc]
            if (boundary := subscriber.boundary()) is not None:
                held = subscriber.fetch_newest(weights, None)
                assert held == boundary and (weights == boundary.publication).all()
                met.append(boundary.publication)
                waiter.request(comm.Ibarrier())
                number = boundary.publication + 1
            elif comm.rank % 2:
                held = subscriber.fetch_newest(weights, held)
                assert held.publication >= number and (weights == held.publication).all()
                number, read = held.publication + 1, read + 1
            else:
                try:
                    held = subscriber.fetch(number, weights)
                    assert held.publication == number and (weights == number).all()
                    read += 1
                except TransportError as error:
                    assert "overwritten" in str(error)
                number += 1
        assert read > 0 and met == boundaries
    waiter.request(comm.Ibarrier())
    segments.free()


@pytest.mark.mpi(ranks=(2,))
def test_shared_memory_that_is_too_small_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcrl.cluster import shared_memory
    from hpcrl.cluster.mpi import world

    with pytest.raises(TransportError, match="of shared memory but /dev/shm has"):
        shared_memory.SharedSegments(world(), 1 << 50)
