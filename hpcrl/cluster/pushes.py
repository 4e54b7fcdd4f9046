"""Gradients on their way from workers to the owners of shards of the weights, through a channel for each pair."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpcrl.cluster.channels import Inbox, Outbox
from hpcrl.errors import TransportError

PUSH_TAG = 15
#: Pushes of one worker to one owner that may be on their way: it computes one while the other is applied.
NUM_PUSHES = 2
_HEADER_BYTES = 64


class PushHeader(NamedTuple):
    """What goes with a gradient.

    Attributes:
        worker: world rank.
        sequence: number of the message, from 0, without gaps.
        version: of this shard's weights that the gradient was computed from.
        steps: valid environment steps in it; 0: nothing to apply, the message carries wishes only.
        stop_requested, save_requested: wishes.
    """

    worker: int
    sequence: int
    version: int
    steps: int
    stop_requested: int
    save_requested: int


def push_nbytes(num_weights: int) -> int:
    """Bytes of one message about a shard of so many weights."""
    return _HEADER_BYTES + 4 * num_weights


class Push(NamedTuple):
    """One message.

    Attributes:
        header: see there.
        gradient: float32 [n], of the mean (or sum) over `steps`, clipped; valid until the next `release`.
    """

    header: PushHeader
    gradient: NDArray[np.float32]


class PushSender:
    """A worker's end of one shard.

    Args:
        worker: its world rank.
        outbox: of the channel.
    """

    def __init__(self, worker: int, outbox: Outbox) -> None:
        self._worker, self._outbox = worker, outbox
        self._headers = [_header(slot) for slot in outbox.slots]
        self._gradients = [_gradient(slot) for slot in outbox.slots]

    @property
    def sent(self) -> int:
        """Messages so far."""
        return self._outbox.sent

    def is_free(self) -> bool:
        """Whether there is room for the next one. Local."""
        return self._outbox.is_free()

    def send(self, gradient: NDArray[np.float32], version: int, steps: int, stop: bool, save: bool) -> None:
        """Copy float32 [n] into the next slot, which must be free, and hand it over. Local."""
        slot = self.sent % len(self._headers)
        self._headers[slot][:] = PushHeader(self._worker, self.sent, version, steps, stop, save)
        self._gradients[slot][:] = gradient
        self._outbox.send()


class PushReceiver:
    """An owner's end of one worker.

    Args:
        worker: its world rank.
        inbox: of the channel.
    """

    def __init__(self, worker: int, inbox: Inbox) -> None:
        self.worker, self._inbox = worker, inbox
        self._headers = [_header(slot) for slot in inbox.slots]
        self._gradients = [_gradient(slot) for slot in inbox.slots]

    @property
    def received(self) -> int:
        """Messages taken."""
        return self._inbox.received

    def poll(self) -> Push | None:
        """The next message, if it has arrived. Local.

        Raises:
            TransportError: it is another worker's, or not the next one.
        """
        slot = self._inbox.poll()
        if slot is None:
            return None
        header = PushHeader(*self._headers[slot].tolist())
        if (header.worker, header.sequence) != (self.worker, self.received - 1):
            raise TransportError(
                f"expected gradient {self.received - 1} of rank {self.worker}, "
                f"got gradient {header.sequence} of rank {header.worker}"
            )
        return Push(header, self._gradients[slot])

    def release(self) -> None:
        """Give its slot back. Local."""
        self._inbox.release()


def _header(slot: NDArray[np.uint8]) -> NDArray[np.int64]:
    return slot[: 8 * len(PushHeader._fields)].view(np.int64)


def _gradient(slot: NDArray[np.uint8]) -> NDArray[np.float32]:
    return slot[_HEADER_BYTES:].view(np.float32)
