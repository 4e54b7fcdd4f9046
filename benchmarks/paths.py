"""What it takes to bring an unroll to a learner, and weights to an actor: latency and bandwidth of both paths.

    python -m benchmarks.paths [--rounds 100] [--sizes BYTES...] [--hosts] [--json FILE]

Two ranks; each keeps to one core. By both paths messages go through the ends that training uses, and both ranks wait
as ranks do in training (`cluster.waiting.Waiter`):

- unroll: the sender copies the message into the next free slot and sends it, until the receiver has polled it
  (`cluster.channels`: slots in shared memory on a node, messages between nodes);
- weights: `WeightsPublisher.publish`, until the subscriber has copied them out (`cluster.weights`: a ring in shared
  memory; between nodes a message to the rank that fills the ring of its own).

Beside them:

- MPI: Isend, and Irecv posted ahead, both tested without a pause: what MPI alone does with the message;
- memcpy: one copy by one rank.

Latency is from the start at the sender to the end at the receiver, by the clock that all processes of a machine share.
Bandwidth is that of messages without a pause between them (memcpy: of one after the other). --hosts puts the two ranks
on two hosts that are network namespaces of this machine (tests/hosts.py), so that they talk TCP.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.children import CommandFailed
from benchmarks.worlds import (
    Measurement,
    facts,
    heading,
    measure_on_ranks,
    pin,
    report,
    rows_of,
    size_name,
    start,
    summary,
    table,
)
from hpcrl.activity import Activity
from hpcrl.cluster.launch import inside_mpi

if TYPE_CHECKING or inside_mpi(os.environ):
    from hpcrl.cluster.channels import (
        MessageInbox,
        MessageOutbox,
        SharedInbox,
        SharedOutbox,
        channel_nbytes,
    )
    from hpcrl.cluster.mpi import MPI, Comm, Request
    from hpcrl.cluster.shared_memory import OwnSegment, SharedSegments
    from hpcrl.cluster.waiting import Waiter
    from hpcrl.cluster.weights import Control, WeightsPublisher, WeightsRelay, WeightsRing, WeightsSubscriber

_SIZES = (4 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20)
_NUM_SLOTS = 3
_TAG = 21
#: Bytes that all messages of one measurement may add up to, which makes fewer of large ones.
_MOST_BYTES = 1 << 30
_FEWEST = 20
_WARM_UP = 3
_HOSTS = {"left": 1, "right": 1}


class Way(Protocol):
    """Both ends of one way: rank 0 sends, rank 1 receives."""

    def make_ready(self, number: int) -> None:
        """Wait until there is room for message `number`."""

    def send(self, number: int) -> None:
        """Message `number`, for which there is room."""

    def receive(self, number: int) -> None:
        """Wait for message `number`, and make room for the next."""

    def close(self) -> None:
        """Collective."""


class UnrollPath:
    """A channel from rank 0 to rank 1."""

    def __init__(self, comm: Comm, waiter: Waiter, nbytes: int, one_node: bool) -> None:
        self._waiter, self._message = waiter, np.ones(nbytes, np.uint8)
        self._segments = None
        self._outbox: SharedOutbox | MessageOutbox | None = None
        self._inbox: SharedInbox | MessageInbox | None = None
        if one_node:
            room = channel_nbytes(nbytes, _NUM_SLOTS) if comm.rank == 0 else 0
            self._segments = SharedSegments(comm, room)
            ends = (nbytes, self._segments.segment(0), _NUM_SLOTS, self._segments.fence)
            if comm.rank == 0:
                self._outbox = SharedOutbox(*ends)
            else:
                self._inbox = SharedInbox(*ends)
        elif comm.rank == 0:
            self._outbox = MessageOutbox(nbytes, comm, 1, _TAG)
            waiter.chores.append(self._outbox.progress)
        else:
            self._inbox = MessageInbox(nbytes, comm, 0, _TAG, _NUM_SLOTS)

    def make_ready(self, number: int) -> None:
        assert self._outbox is not None
        self._waiter.until(self._outbox.is_free)

    def send(self, number: int) -> None:
        outbox = self._outbox
        assert outbox is not None
        slot = outbox.slots[outbox.sent % len(outbox.slots)]
        np.copyto(slot, self._message)
        _put(slot, number)
        outbox.send()

    def receive(self, number: int) -> None:
        inbox = self._inbox
        assert inbox is not None
        found: list[int] = []
        self._waiter.until(lambda: (slot := inbox.poll()) is not None and not found.append(slot))  # type: ignore[func-returns-value]
        _check(inbox.slots[found[0]], number)
        inbox.release()

    def close(self) -> None:
        if isinstance(self._outbox, MessageOutbox):
            self._waiter.until(self._outbox.is_drained)
            self._waiter.chores.clear()
        if isinstance(self._inbox, MessageInbox):
            self._inbox.cancel()
        if self._segments is not None:
            self._segments.free()


class WeightsPath:
    """Weights from rank 0 to rank 1, each publication in turn."""

    def __init__(self, comm: Comm, waiter: Waiter, nbytes: int, one_node: bool) -> None:
        self._waiter, self._weights = waiter, np.ones(nbytes // 4, np.float32)
        size = len(self._weights)
        room = WeightsRing.nbytes_for(size, _NUM_SLOTS)
        self._segments = SharedSegments(comm, room if comm.rank == 0 else 0) if one_node else OwnSegment(room)
        ring = WeightsRing(self._segments.segment(0), size, _NUM_SLOTS, self._segments.fence)
        self._relay: WeightsRelay | None = None
        if comm.rank == 0:
            # Every publication must arrive, as in lockstep.
            self._publisher = WeightsPublisher(ring if one_node else None, comm, [] if one_node else [1], size, True)
            waiter.chores.append(self._publisher.progress)
        else:
            self._relay = None if one_node else WeightsRelay(ring, comm, 0, size)
            self._subscriber = WeightsSubscriber(ring, self._relay)
        self._comm, self._fetched = comm, np.zeros(1, np.int64)
        self._answer: Request | None = None

    def make_ready(self, number: int) -> None:
        # The ring holds so many; in training the schedule says who may be how far ahead.
        if number >= _NUM_SLOTS - 1:
            self._waiter.request(self._comm.Irecv(self._fetched, 1, _TAG))

    def send(self, number: int) -> None:
        self._weights[:8].view(np.int64)[0] = number
        control = Control(number, number, 0, 0, 0)
        self._publisher.publish(control, self._weights, self._waiter)

    def receive(self, number: int) -> None:
        self._waiter.until(lambda: self._subscriber.has(number))
        self._subscriber.fetch(number, self._weights)
        _check(self._weights.view(np.uint8), number)
        if self._answer is not None:
            self._waiter.request(self._answer)
        self._answer = self._comm.Isend(self._fetched, 0, _TAG)

    def close(self) -> None:
        if self._comm.rank == 0:
            self._publisher.drain(self._waiter)
            for _ in range(_NUM_SLOTS - 1):
                self._waiter.request(self._comm.Irecv(self._fetched, 1, _TAG))
            self._waiter.chores.clear()
        else:
            if self._answer is not None:
                self._waiter.request(self._answer)
            if self._relay is not None:
                self._relay.cancel()
        self._segments.free()


class MessagePath:
    """Isend and Irecv, without a pause."""

    def __init__(self, comm: Comm, _: Waiter, nbytes: int, __: bool) -> None:
        self._comm = comm
        self._slots = [np.ones(nbytes, np.uint8) for _ in range(_NUM_SLOTS)]
        self._under_way: list[Request | None] = [None] * _NUM_SLOTS
        if comm.rank == 1:
            self._under_way = [self._post(slot) for slot in self._slots]

    def _post(self, slot: NDArray[np.uint8]) -> Request:
        return self._comm.Irecv([slot, MPI.BYTE], 0, _TAG)

    def make_ready(self, number: int) -> None:
        _spin(self._under_way[number % _NUM_SLOTS])

    def send(self, number: int) -> None:
        place = number % _NUM_SLOTS
        _put(self._slots[place], number)
        self._under_way[place] = self._comm.Isend([self._slots[place], MPI.BYTE], 1, _TAG)
        # MPI moves a large message on only while its sender looks.
        for request in self._under_way:
            if request is not None:
                request.Test()

    def flush(self) -> None:
        """Return once all is sent."""
        for request in self._under_way:
            _spin(request)

    def receive(self, number: int) -> None:
        place = number % _NUM_SLOTS
        _spin(self._under_way[place])
        _check(self._slots[place], number)
        self._under_way[place] = self._post(self._slots[place])

    def close(self) -> None:
        if self._comm.rank == 0:
            self.flush()
            return
        for request in self._under_way:
            if request is not None:
                request.Cancel()
                request.Wait()


def _spin(request: Request | None) -> None:
    while request is not None and not request.Test():
        pass


def _put(message: NDArray[np.uint8], number: int) -> None:
    message[:8].view(np.int64)[0] = number


def _check(message: NDArray[np.uint8], number: int) -> None:
    if message[:8].view(np.int64)[0] != number:
        raise RuntimeError(f"message {number} holds {message[:8].view(np.int64)[0]}")


_WAYS: dict[str, Callable[[Comm, Waiter, int, bool], Way]] = {}
if TYPE_CHECKING or inside_mpi(os.environ):
    _WAYS |= {"unroll": UnrollPath, "weights": WeightsPath, "MPI": MessagePath}


def _measure(arguments: argparse.Namespace) -> None:
    """On both ranks; rank 1 measures, the first prints. Collective over the world."""
    comm = MPI.COMM_WORLD
    if comm.size != 2:
        raise RuntimeError(f"this benchmark is for 2 ranks, got {comm.size}")
    here = facts(comm)
    pin(comm)
    one_node = here["layout"]["nodes"] == 1
    for nbytes in arguments.sizes:
        count = max(min(arguments.rounds, _MOST_BYTES // nbytes), min(arguments.rounds, _FEWEST))
        for name, make in _WAYS.items():
            waiter = Waiter(Activity())
            path = make(comm, waiter, nbytes, one_node)
            latencies = _latencies(comm, path, count, waiter)
            seconds = _stream(comm, path, count, waiter, count + _WARM_UP)
            path.close()
            if comm.rank == 0:
                line = {"way": name, "bytes": nbytes, **summary(latencies), "gb_per_s": count * nbytes / seconds / 1e9}
                report(here, line)
        if comm.rank == 0:
            seconds_of_copies = _copies(nbytes, count)
            rate = nbytes / float(np.median(seconds_of_copies)) / 1e9
            report(here, {"way": "memcpy", "bytes": nbytes, **summary(seconds_of_copies), "gb_per_s": rate})
        waiter.request(comm.Ibarrier())


def _latencies(comm: Comm, path: Way, count: int, waiter: Waiter) -> NDArray[np.float64]:
    """Seconds of each message from the sender's start to the receiver's end, on both. Collective."""
    moments = np.zeros(count + _WARM_UP)
    for number in range(count + _WARM_UP):
        if comm.rank == 0:
            path.make_ready(number)
        # The receiver waits already, as a learner does that is the faster one.
        comm.Barrier()
        if comm.rank == 0:
            time.sleep(5e-5)
            moments[number] = time.perf_counter()
            path.send(number)
            if isinstance(path, MessagePath):
                path.flush()
            waiter.tick()
        else:
            path.receive(number)
            moments[number] = time.perf_counter()
        # Messages between nodes move on only while somebody looks.
        waiter.request(comm.Ibarrier())
    both = comm.allgather(moments)
    return (both[1] - both[0])[_WARM_UP:]


def _stream(comm: Comm, path: Way, count: int, waiter: Waiter, first: int) -> float:
    """Seconds of so many messages without a pause, on both. Collective."""
    comm.Barrier()
    begin = time.perf_counter()
    for number in range(first, first + count):
        if comm.rank == 0:
            path.make_ready(number)
            path.send(number)
        else:
            path.receive(number)
    if isinstance(path, MessagePath) and comm.rank == 0:
        path.flush()
    waiter.request(comm.Ibarrier())
    return max(comm.allgather(time.perf_counter() - begin))


def _copies(nbytes: int, count: int) -> NDArray[np.float64]:
    source, target = np.ones((2, nbytes), np.uint8)
    seconds = []
    for _ in range(count + _WARM_UP):
        begin = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - begin)
    return np.array(seconds[_WARM_UP:])


def markdown(found: Sequence[Measurement]) -> str:
    """A table for one node and one for two, of those that there are."""
    parts = [heading(found), ""]
    for nodes, title in ((1, "One node, shared memory"), (2, "Two nodes, TCP between network namespaces")):
        lines = [line for line in found if line["layout"]["nodes"] == nodes]
        if lines:
            parts += [f"### {title}", "", _table(lines), ""]
    return "\n".join(parts)


def _table(lines: Sequence[Measurement]) -> str:
    names = list(dict.fromkeys(line["way"] for line in lines))
    rows = [["message", *(f"{name}, us" for name in names), *(f"{name}, GB/s" for name in names), "messages"]]
    for nbytes in sorted({line["bytes"] for line in lines}):
        of = {name: rows_of(lines, way=name, bytes=nbytes)[0] for name in names}
        row = [size_name(nbytes), *(f"{of[name]['median_us']:,.0f}" for name in names)]
        rows.append([*row, *(f"{of[name]['gb_per_s']:.2f}" for name in names), str(of[names[0]]["rounds"])])
    return table(rows)


def main(words: Sequence[str] | None = None) -> int:
    """Run, print, and say by the status whether the world failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="messages of every way; fewer of large ones")
    parser.add_argument("--sizes", type=int, nargs="+", default=_SIZES, metavar="BYTES", help="of a message")
    parser.add_argument("--hosts", action="store_true", help="the two ranks on two hosts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement there as a line")
    arguments = parser.parse_args(words)
    if inside_mpi(os.environ):
        return measure_on_ranks(lambda: _measure(arguments))
    # Leaving by an exception ends the ranks too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    options = ["--rounds", arguments.rounds, "--sizes", *arguments.sizes]
    try:
        found = start("paths", options, 2, _HOSTS if arguments.hosts else None)
    except CommandFailed as failure:
        print(failure, file=sys.stderr, flush=True)
        return 1
    if arguments.json is not None:
        arguments.json.write_text("".join(json.dumps(line) + "\n" for line in found))
    print(markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
