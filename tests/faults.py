"""hpcrl with a planted fault: `python -m tests.faults ROLE:FAULT@ROUND train ...`.

ROLE is `actor` (the first rank that only acts), `learner`, `worker` or `owner` (the lowest of each under a3c), or a
rank number; FAULT is raise, exit, kill, stop, sleep. A round of an owner is one in which it found gradients.
`RANK:slow@FACTOR` makes every unroll of an actor take FACTOR times as long, by sleeping.
`torn:checked@SHARE` puts a sleep behind that share of the steps in which a3c's weights are written and read, and
checks a sum over all that is read; `torn:unlocked@SHARE` also takes away what keeps readers from torn weights.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import zlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

import hpcrl.cluster.weights as weights_module
from hpcrl.cluster.layout import Layout
from hpcrl.cluster.pushes import Push, PushReceiver, PushSender
from hpcrl.cluster.ranks import Ranks
from hpcrl.cluster.weights import Control, WeightsRing
from hpcrl.commands.main import main


def _raise() -> None:
    raise RuntimeError("a planted fault")


FAULTS: dict[str, Callable[[], Any]] = {
    "raise": _raise,
    "exit": lambda: os._exit(3),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "sleep": lambda: time.sleep(10_000),
}


def _rank() -> str:
    return os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("PMI_RANK") or "0"


def plant(cls: type, fault: Callable[[], Any], at_round: int, is_chosen: Callable[[], bool]) -> None:
    """Make `cls.advance` commit the fault at a round, on the ranks that are chosen then."""
    original = cls.advance  # type: ignore[attr-defined]
    rounds = 0

    def advance(self: Any) -> Any:
        nonlocal rounds
        rounds += 1
        if rounds == at_round and is_chosen():
            fault()
        return original(self)

    cls.advance = advance  # type: ignore[attr-defined]


def plant_in_owner(fault: Callable[[], Any], at_round: int, is_chosen: Callable[[], bool]) -> None:
    """Make an owner of weights commit the fault once it has served so often that something had arrived."""
    from hpcrl.roles.parameter_owner import ParameterOwner

    original = ParameterOwner.serve
    rounds = 0

    def serve(self: ParameterOwner) -> bool:
        nonlocal rounds
        found = original(self)
        rounds += found
        if found and rounds == at_round and is_chosen():
            fault()
        return found

    ParameterOwner.serve = serve  # type: ignore[method-assign]


def _is_lowest_worker() -> Callable[[], bool]:
    """Whether this rank is the first of those that act, once the layout is known."""
    original = Ranks.__init__
    layouts: list[Layout] = []

    def init(self: Ranks, world: Any, layout: Layout, node: Any) -> None:
        layouts.append(layout)
        original(self, world, layout, node)

    Ranks.__init__ = init  # type: ignore[method-assign]
    return lambda: _rank() == str(layouts[-1].actors[0])


def plant_by_role(role: str, fault: Callable[[], Any], at_round: int) -> None:
    """Plant a fault in what the word or the number on the command line means."""
    # Imported late: `TornShards` does without torch.
    from hpcrl.roles.actor import ActorRank
    from hpcrl.roles.async_worker import AsyncWorker
    from hpcrl.roles.learner import Learner

    if role == "owner":
        plant_in_owner(fault, at_round, lambda: _rank() == "0")
    elif role == "worker":
        plant(AsyncWorker, fault, at_round, _is_lowest_worker())
    elif role in ("actor", "learner"):
        cls, rank = {"actor": (ActorRank, "1"), "learner": (Learner, "0")}[role]
        plant(cls, fault, at_round, lambda: _rank() == rank)
    else:
        for cls in (ActorRank, Learner, AsyncWorker):
            plant(cls, fault, at_round, lambda: _rank() == role)
        plant_in_owner(fault, at_round, lambda: _rank() == role)


def slow_down(factor: float, rank: str) -> None:
    """Make every unroll of a rank take `factor` times as long."""
    if _rank() != rank:
        return
    from hpcrl.roles.actor import Actor

    original = Actor.fill

    def fill(self: Any, *arguments: Any) -> None:
        start = time.monotonic()
        original(self, *arguments)
        time.sleep((factor - 1) * (time.monotonic() - start))

    Actor.fill = fill  # type: ignore[method-assign]


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
        self._random = random.Random(int(_rank()))
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
        return f"torn: rank {_rank()} read {self.reads}, retried {self.retries}, received {self.pushes}"


def _checksum(control: Control, weights: NDArray[np.float32]) -> int:
    return zlib.crc32(np.ascontiguousarray(weights), zlib.crc32(np.array(control, np.int64)))


if __name__ == "__main__":
    role, _, rest = sys.argv[1].partition(":")
    name, _, number = rest.partition("@")
    if role == "torn":
        torn = TornShards(float(number), is_locked=name == "checked")
        torn.install()
        status = main(sys.argv[2:])
        print(torn.describe(), file=sys.stderr, flush=True)
        sys.exit(status)
    if name == "slow":
        slow_down(float(number), role)
    else:
        plant_by_role(role, FAULTS[name], int(number))
    sys.exit(main(sys.argv[2:]))
