"""hpcrl whose a3c checks a sum over all weights and gradients: `python -m tests.torn checked@SHARE train a3c ...`.

A sleep follows that share of the steps in which weights are written and read. `unlocked@SHARE` also takes away what
keeps readers from torn weights.
"""

from __future__ import annotations

import random
import sys
import time
import zlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

import hpcrl.cluster.weights as weights_module
from hpcrl.cluster.pushes import Push, PushReceiver, PushSender
from hpcrl.cluster.weights import Control, WeightsRing
from hpcrl.commands.main import main
from tests.faults import own_rank


class TornShards:
    """Sleeps between the steps of writing and reading, and a sum over everything that is published or pushed.

    The sum lies in a word of the header that nothing else uses. It is made where the numbers come from and checked
    where they are taken for whole: in the weights that a reader accepts, and in the gradients that an owner gets.

    Attributes:
        reads, retries, pushes: weights that were accepted, tries that were not, gradients that arrived.
    """

    #: Words of the headers of weights and of gradients; the last is free.
    _WORDS = 8

    def __init__(self, share: float, is_locked: bool) -> None:
        self._share, self._is_locked = share, is_locked
        self._random = random.Random(int(own_rank()))
        self._sum_read = 0
        self.reads = self.retries = self.pushes = 0

    def pause(self) -> None:
        """Now and then, as a process that was descheduled: for a while, seldom for long."""
        if self._random.random() < self._share:
            time.sleep(3e-3 * self._random.random() ** 4 * (10 if self._random.random() < 0.2 else 1))

    def install(self) -> None:
        """Put it between hpcrl and its memory."""
        self._install_in_messages()
        self._install_in_rings()
        self._install_in_pushes()

    def _install_in_messages(self) -> None:
        original = weights_module.pack

        def pack(message: NDArray[np.uint8], control: Control, weights: NDArray[np.float32]) -> None:
            original(message, control, weights)
            self._last_word(message)[0] = _checksum(control, weights)

        def unpack(message: NDArray[np.uint8], weights: NDArray[np.float32]) -> Control:
            control = weights_module.control_of(message)
            self._sum_read = int(self._last_word(message)[0])
            self.pause()
            source, half = message[8 * self._WORDS :][: 4 * weights.size].view(np.float32), weights.size // 2
            weights[:half] = source[:half]
            self.pause()
            weights[half:] = source[half:]
            return control

        weights_module.pack, weights_module.unpack = pack, unpack

    def _install_in_rings(self) -> None:
        init, write, try_once = WeightsRing.__init__, WeightsRing.write, WeightsRing._try

        def init_with_pauses(self_: WeightsRing, memory: Any, num_weights: int, num_slots: int, fence: Any) -> None:
            def slow_fence() -> None:
                self.pause()
                fence()

            init(self_, memory, num_weights, num_slots, slow_fence)

        def write_in_parts(self_: WeightsRing, control: Control, fill: Callable[[NDArray[np.uint8]], None]) -> None:
            def fill_in_parts(message: NDArray[np.uint8]) -> None:
                whole = np.empty_like(message)
                fill(whole)
                edges = np.linspace(0, len(whole), 5).astype(int).tolist()
                for first, end in pairwise(edges):
                    message[first:end] = whole[first:end]
                    self.pause()

            write(self_, control, fill_in_parts)

        def try_and_check(self_: WeightsRing, slot: int, weights: NDArray[np.float32]) -> Control | None:
            if self._is_locked:
                control = try_once(self_, slot, weights)
            else:
                control = weights_module.unpack(self_._messages[slot], weights)
            if control is None:
                self.retries += 1
                return None
            self.reads += 1
            if _checksum(control, weights) != self._sum_read:
                raise RuntimeError(f"torn weights: the shard of publication {control.publication} is not whole")
            return control

        WeightsRing.__init__ = init_with_pauses  # type: ignore[method-assign]
        WeightsRing.write = write_in_parts  # type: ignore[method-assign]
        WeightsRing._try = try_and_check  # type: ignore[method-assign]

    def _install_in_pushes(self) -> None:
        send, poll = PushSender.send, PushReceiver.poll

        def send_with_a_sum(self_: PushSender, gradient: NDArray[np.float32], *rest: Any) -> None:
            slot = self_._outbox.slots[self_.sent % len(self_._outbox.slots)]
            self._last_word(slot)[0] = zlib.crc32(gradient)
            self.pause()
            send(self_, gradient, *rest)

        def poll_and_check(self_: PushReceiver) -> Push | None:
            push = poll(self_)
            if push is None:
                return None
            self.pause()
            self.pushes += 1
            slot = self_._inbox.slots[push.header.sequence % len(self_._inbox.slots)]
            if zlib.crc32(push.gradient) != int(self._last_word(slot)[0]):
                raise RuntimeError(f"torn gradient {push.header.sequence} of rank {self_.worker}")
            return push

        PushSender.send = send_with_a_sum  # type: ignore[method-assign]
        PushReceiver.poll = poll_and_check  # type: ignore[method-assign]

    def _last_word(self, message: NDArray[np.uint8]) -> NDArray[np.int64]:
        return message[8 * (self._WORDS - 1) : 8 * self._WORDS].view(np.int64)

    def describe(self) -> str:
        """One line for whoever counts."""
        return f"torn: rank {own_rank()} read {self.reads}, retried {self.retries}, received {self.pushes}"


def _checksum(control: Control, weights: NDArray[np.float32]) -> int:
    return zlib.crc32(np.ascontiguousarray(weights), zlib.crc32(np.array(control, np.int64)))


if __name__ == "__main__":
    name, _, share = sys.argv.pop(1).partition("@")
    torn = TornShards(float(share), is_locked=name == "checked")
    torn.install()
    status = main()
    print(torn.describe(), file=sys.stderr, flush=True)
    sys.exit(status)
