"""The parts of an asynchronous run in one process: channels and rings in plain memory, and a waiter."""

from __future__ import annotations

from typing import NamedTuple

import tests.no_mpi  # noqa: F401

# isort: split
import numpy as np
from numpy.typing import NDArray

from hpcrl.cluster.channels import SharedInbox, SharedOutbox, channel_nbytes
from hpcrl.cluster.pushes import NUM_PUSHES, PushReceiver, PushSender, push_nbytes
from hpcrl.cluster.weights import Control, WeightsRing, WeightsSubscriber, pack
from hpcrl.roles.boundary import Boundary
from hpcrl.unroll import aligned_zeros
from tests.playing import BusyWaiter, no_fence

RING_SLOTS = 3


class ServingWaiter(BusyWaiter):
    """A waiter whose ticks look after the chores, too."""

    def tick(self) -> None:
        super().tick()
        for chore in list(self.chores):
            chore()

    def request(self, request: Request, *_: object) -> None:
        self.until(request.Test)


class Request:
    """Of something that others take part in: complete once they do."""

    def __init__(self, is_complete: bool = True) -> None:
        self._is_complete = is_complete

    def Test(self) -> bool:  # noqa: N802
        return self._is_complete


class Channel(NamedTuple):
    """Both ends of a channel for gradients."""

    sender: PushSender
    receiver: PushReceiver


def make_channel(num_weights: int, worker: int) -> Channel:
    nbytes = push_nbytes(num_weights)
    memory = aligned_zeros(channel_nbytes(nbytes, NUM_PUSHES))
    sender = PushSender(worker, SharedOutbox(nbytes, memory, NUM_PUSHES, no_fence))
    return Channel(sender, PushReceiver(worker, SharedInbox(nbytes, memory, NUM_PUSHES, no_fence)))


class Published:
    """The publications of one shard, written by hand."""

    def __init__(self, num_weights: int) -> None:
        self._num_weights = num_weights
        self._memory = aligned_zeros(WeightsRing.nbytes_for(num_weights, RING_SLOTS))
        self.ring = WeightsRing(self._memory, num_weights, RING_SLOTS, no_fence)

    def subscriber(self) -> WeightsSubscriber:
        return WeightsSubscriber(WeightsRing(self._memory, self._num_weights, RING_SLOTS, no_fence), None)

    def write(
        self,
        version: int,
        weights: NDArray[np.float32],
        flags: Boundary = Boundary.NONE,
        env_steps: int = 0,
        boundaries: int = 0,
    ) -> Control:
        control = Control(version, version, int(flags), env_steps, boundaries)
        self.ring.write(control, lambda message: pack(message, control, weights))
        return control
