"""What pushing gradients to an owner of the weights costs, by mechanism of MPI: shared, two-sided, one-sided, summed.

    python -m benchmarks.gradient_push [--rounds 5] [--seconds 0.35] [--workers 1 2 3] [--sizes 9000 1000000]
                                       [--only VARIANT...] [--hosts]

Workers push float32 vectors to rank 0, which takes an RMSProp step with each. The variants:

- shared: channels in shared memory, two slots a worker (one node only);
- two-sided: channels of messages, two receives a worker posted ahead, beside the two slots that it sends from;
- one-sided: Put into two slots a worker in the owner's window, Flush, and an atomic counter that announces it;
- accumulate: sums into one vector that the owner swaps out now and then. It is a bound, and no rival: the owner can
  neither tell gradients apart nor step with each.

Workers push as fast as they can, or compute for 2 ms of CPU time between two pushes. Last comes what a push costs
while the owner computes and makes no call of MPI. All variants run in one world, one after the other in every round
and in the opposite order in every other round; ratios are taken within a round. Every gradient carries its number at
both ends, which the owner checks. --hosts puts the owner and its workers on two hosts that are network namespaces of
this machine (tests/hosts.py), so that they talk TCP; it leaves out shared, and accumulate unless --only names it, as
that takes seconds for a vector of 4 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import signal
import statistics
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import children
from benchmarks.settings import CORES
from hpcrl.activity import Activity
from hpcrl.algorithms.optimizers import RMSProp
from hpcrl.cluster.launch import inside_mpi, launcher_command, rank_environment

if TYPE_CHECKING or inside_mpi(os.environ):
    # These start MPI, which the process that starts the ranks must not.
    from hpcrl.cluster.channels import (
        Inbox,
        MessageInbox,
        MessageOutbox,
        Outbox,
        SharedInbox,
        SharedOutbox,
        channel_nbytes,
    )
    from hpcrl.cluster.mpi import MPI, Comm, Request, abort, library
    from hpcrl.cluster.shared_memory import CACHE_LINE, SharedSegments
    from hpcrl.cluster.waiting import Waiter

Gradient = NDArray[np.float32]
Measurement = dict[str, Any]

_VARIANTS = ("shared", "two-sided", "one-sided", "accumulate")
_BASE = "two-sided"
#: Accumulating 4 MB over TCP takes seconds, so that one must ask for it.
_RIVALS_OVER_TCP = ("two-sided", "one-sided")
_COMPUTE_S = {"saturated": 0.0, "computing": 2e-3}
_OWNER, _TAG, _NUM_SLOTS = 0, 5, 2
_WARM_UP_S, _SWAP_EVERY_S = 0.05, 2e-3
_AWAY_S, _AWAY_BEFORE_S = 0.1, 0.02
#: Elements of a gradient: its number (the last element too), whether the worker stops after it, and a one.
_NUMBER, _IS_LAST, _ONE = 0, 1, 2


class Pusher(Protocol):
    """A worker's end."""

    @property
    def sent(self) -> int:
        """Gradients so far."""

    def is_free(self) -> bool:
        """Whether the next gradient may be sent. Local."""

    def send(self, gradient: Gradient) -> None:
        """Send it; the vector may change afterwards."""


class Service(Protocol):
    """The owner at work."""

    def run(self, ended: Request) -> int:
        """Step until all workers ended; how many gradients came."""


@dataclass
class Link:
    """The ends of one variant that this rank has.

    Attributes:
        close: collective.
        chores: what must go on while a worker computes.
    """

    close: Callable[[], object]
    pusher: Pusher | None = None
    service: Service | None = None
    chores: list[Callable[[], bool]] = field(default_factory=list)


class _OutboxPusher:
    """Copies gradients into the slots of an outbox."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._slots = [slot.view(np.float32) for slot in outbox.slots]
        self.is_free = outbox.is_free

    @property
    def sent(self) -> int:
        return self._outbox.sent

    def send(self, gradient: Gradient) -> None:
        self._slots[self._outbox.sent % len(self._slots)][:] = gradient
        self._outbox.send()


def _bytes_of(win: MPI.Win) -> NDArray[np.uint8]:
    memory: Any = win.tomemory()
    return np.frombuffer(memory, np.uint8)


class _Window:
    """The owner's window: for each worker the counters of gradients announced and released, and its slots."""

    def __init__(self, comm: Comm, size: int) -> None:
        self.size = size
        self._slot_nbytes = -(-4 * size // CACHE_LINE) * CACHE_LINE
        self._worker_nbytes = 2 * CACHE_LINE + _NUM_SLOTS * self._slot_nbytes
        nbytes = (comm.size - 1) * self._worker_nbytes if comm.rank == _OWNER else 0
        self.win = MPI.Win.Allocate(nbytes, 1, comm=comm)
        self.win.Lock_all()
        self.memory = _bytes_of(self.win)
        self.memory[:] = 0
        self.win.Sync()
        comm.Barrier()

    def announced_at(self, worker: int) -> int:
        return (worker - 1) * self._worker_nbytes

    def released_at(self, worker: int) -> int:
        return self.announced_at(worker) + CACHE_LINE

    def slot_at(self, worker: int, number: int) -> int:
        return self.released_at(worker) + CACHE_LINE + number % _NUM_SLOTS * self._slot_nbytes

    def counter(self, start: int) -> NDArray[np.int64]:
        return self.memory[start:][:8].view(np.int64)

    def close(self) -> None:
        self.win.Unlock_all()
        self.win.Free()


class _WindowPusher:
    """Puts gradients into the owner's window. Only the wait for a slot can be polite: MPI has no Flush to test."""

    def __init__(self, window: _Window, worker: int) -> None:
        self._window, self._worker = window, worker
        self._released, self._announced, self._before = (np.zeros(1, np.int64) for _ in range(3))
        self._question: Request | None = None
        self.sent = 0

    def is_free(self) -> bool:
        if self._question is None:
            if self.sent - self._released[0] < _NUM_SLOTS:
                return True
            target = (self._window.released_at(self._worker), 1, MPI.INT64_T)
            self._question = self._window.win.Rget([self._released, MPI.INT64_T], _OWNER, target)
        if not self._question.Test():
            return False
        self._question = None
        return bool(self.sent - self._released[0] < _NUM_SLOTS)

    def send(self, gradient: Gradient) -> None:
        win, worker = self._window.win, self._worker
        target = (self._window.slot_at(worker, self.sent), self._window.size, MPI.FLOAT)
        win.Put([gradient, MPI.FLOAT], _OWNER, target)
        win.Flush(_OWNER)
        self.sent += 1
        self._announced[0] = self.sent
        win.Fetch_and_op(self._announced, self._before, _OWNER, self._window.announced_at(worker), MPI.REPLACE)
        win.Flush(_OWNER)


class _WindowInbox:
    """Looks for gradients in the memory of the owner's window."""

    def __init__(self, window: _Window, worker: int) -> None:
        self._sync = window.win.Sync
        self._announced = window.counter(window.announced_at(worker))
        self._released = window.counter(window.released_at(worker))
        starts = [window.slot_at(worker, slot) for slot in range(_NUM_SLOTS)]
        self.slots = [window.memory[start:][: 4 * window.size] for start in starts]
        self.received = self.released = 0

    def poll(self) -> int | None:
        self._sync()
        if self._announced[0] == self.received:
            return None
        self.received += 1
        return (self.received - 1) % _NUM_SLOTS

    def release(self) -> None:
        self.released += 1
        self._sync()
        self._released[0] = self.released
        self._sync()


class _Optimizer:
    """The work with a gradient."""

    def __init__(self, size: int) -> None:
        self._weights = torch.zeros(size)
        self._rmsprop = RMSProp(self._weights, 1e-4, 0.99, 0.1, True, 1.0)

    def step(self, gradient: Gradient) -> None:
        self._weights.grad = torch.from_numpy(gradient)
        self._rmsprop.step()


class _InboxService:
    """Takes gradients in turn from the workers and steps with each."""

    def __init__(self, inboxes: Sequence[Inbox], size: int, waiter: Waiter) -> None:
        self.inboxes = deque(inboxes)
        self._optimizer, self._waiter = _Optimizer(size), waiter
        self._slot = 0

    def run(self, ended: Request) -> int:
        taken, working = 0, len(self.inboxes)
        while working:
            working -= self.take()
            taken += 1
        self._waiter.request(ended)
        return taken

    def take(self) -> bool:
        """Wait for a gradient and step with it; whether it was its worker's last."""
        self._waiter.until(self._find)
        inbox = self.inboxes[-1]
        gradient = inbox.slots[self._slot].view(np.float32)
        if not gradient[_NUMBER] == gradient[-1] == inbox.received:
            raise RuntimeError(f"gradient {inbox.received} holds {gradient[_NUMBER]} and {gradient[-1]}")
        self._optimizer.step(gradient)
        is_last = bool(gradient[_IS_LAST])
        inbox.release()
        return is_last

    def _find(self) -> bool:
        for _ in range(len(self.inboxes)):
            self.inboxes.rotate(-1)
            slot = self.inboxes[-1].poll()
            if slot is not None:
                self._slot = slot
                return True
        return False


class _SumPusher:
    """Adds gradients to the owner's vector."""

    def __init__(self, win: MPI.Win) -> None:
        self._win = win
        self.sent = 0

    def is_free(self) -> bool:
        return True

    def send(self, gradient: Gradient) -> None:
        self._win.Accumulate([gradient, MPI.FLOAT], _OWNER, op=MPI.SUM)
        self._win.Flush(_OWNER)
        self.sent += 1


class _SumService:
    """Swaps the sum for zeros now and then, and steps with it."""

    def __init__(self, win: MPI.Win, size: int) -> None:
        self._win, self._optimizer = win, _Optimizer(size)
        self._zeros, self._sum = np.zeros(size, np.float32), np.zeros(size, np.float32)

    def run(self, ended: Request) -> int:
        taken, is_last = 0, False
        while not is_last:
            time.sleep(_SWAP_EVERY_S)
            is_last = bool(ended.Test())
            self._win.Get_accumulate(self._zeros, self._sum, _OWNER, op=MPI.REPLACE)
            self._win.Flush(_OWNER)
            if self._sum[_ONE]:
                self._optimizer.step(self._sum)
                taken += round(float(self._sum[_ONE]))
        return taken


def _shared(comm: Comm, size: int, waiter: Waiter) -> Link:
    nbytes = channel_nbytes(4 * size, _NUM_SLOTS)
    segments = SharedSegments(comm, 0 if comm.rank == _OWNER else nbytes)
    ends = (_NUM_SLOTS, segments.fence)
    if comm.rank != _OWNER:
        return Link(segments.free, _OutboxPusher(SharedOutbox(4 * size, segments.segment(comm.rank), *ends)))
    inboxes = [SharedInbox(4 * size, segments.segment(worker), *ends) for worker in range(1, comm.size)]
    return Link(segments.free, service=_InboxService(inboxes, size, waiter))


def _two_sided(comm: Comm, size: int, waiter: Waiter) -> Link:
    if comm.rank != _OWNER:
        outbox = MessageOutbox(4 * size, comm, _OWNER, _TAG)
        return Link(lambda: waiter.until(outbox.is_drained), _OutboxPusher(outbox), chores=[outbox.progress])
    inboxes = [MessageInbox(4 * size, comm, worker, _TAG, _NUM_SLOTS) for worker in range(1, comm.size)]

    def close() -> None:
        for inbox in inboxes:
            inbox.cancel()

    return Link(close, service=_InboxService(inboxes, size, waiter))


def _one_sided(comm: Comm, size: int, waiter: Waiter) -> Link:
    window = _Window(comm, size)
    if comm.rank != _OWNER:
        return Link(window.close, _WindowPusher(window, comm.rank))
    inboxes = [_WindowInbox(window, worker) for worker in range(1, comm.size)]
    return Link(window.close, service=_InboxService(inboxes, size, waiter))


def _accumulate(comm: Comm, size: int, _: Waiter) -> Link:
    win = MPI.Win.Allocate(4 * size if comm.rank == _OWNER else 0, 4, comm=comm)
    win.Lock_all()
    _bytes_of(win)[:] = 0
    win.Sync()
    comm.Barrier()

    def close() -> None:
        win.Unlock_all()
        win.Free()

    if comm.rank != _OWNER:
        return Link(close, _SumPusher(win))
    return Link(close, service=_SumService(win, size))


_MAKERS: dict[str, Callable[[Comm, int, Waiter], Link]] = dict(
    zip(_VARIANTS, (_shared, _two_sided, _one_sided, _accumulate), strict=True)
)


class _Rank:
    """A rank that measures."""

    def __init__(self, comm: Comm, waiter: Waiter, size: int) -> None:
        self._comm, self._waiter = comm, waiter
        self._square = np.full((64, 64), 1 / 64, np.float32)
        self._gradient = np.random.default_rng(comm.rank).standard_normal(size, np.float32)
        self._gradient[_ONE] = 1

    def measure(self, link: Link, compute_s: float, seconds: float) -> Measurement | None:
        """Rate, CPU time and times of pushes over some seconds; on the owner. Collective."""
        self._waiter.chores[:] = link.chores
        self._waiter.request(self._comm.Ibarrier())
        cpu_s, start = _cpu_s(), time.perf_counter()
        taken, computed_s = 0, 0.0
        pushes: list[float] = []
        if link.service is not None:
            taken = link.service.run(self._comm.Ibarrier())
        elif link.pusher is not None:
            computed_s, pushes = self._push_for(link.pusher, compute_s, seconds)
            self._waiter.request(self._comm.Ibarrier())
        took_s = time.perf_counter() - start
        found = self._comm.gather((taken, _cpu_s() - cpu_s - computed_s, pushes), _OWNER)
        return None if found is None else _summary(found, took_s)

    def _push_for(self, pusher: Pusher, compute_s: float, seconds: float) -> tuple[float, list[float]]:
        """CPU seconds of computing, and the wall seconds of every push."""
        computed_s, pushes, is_last = 0.0, [], False
        end = time.perf_counter() + seconds
        while not is_last:
            if compute_s:
                computed_s += self._compute(compute_s)
            start = time.perf_counter()
            is_last = start > end
            self._push(pusher, is_last)
            pushes.append(time.perf_counter() - start)
        return computed_s, pushes

    def _push(self, pusher: Pusher, is_last: bool) -> None:
        self._gradient[_NUMBER] = self._gradient[-1] = pusher.sent + 1
        self._gradient[_IS_LAST] = is_last
        self._waiter.until(pusher.is_free)
        pusher.send(self._gradient)

    def _compute(self, seconds: float) -> float:
        """Compute for some CPU time, with the chores that a worker has; the CPU time of computing alone."""
        computed_s = 0.0
        while computed_s < seconds:
            start = time.thread_time()
            for _ in range(8):
                np.matmul(self._square, self._square)
            computed_s += time.thread_time() - start
            self._waiter.tick()
        return computed_s

    def measure_away(self, link: Link) -> Measurement | None:
        """What one push of rank 1 costs while the owner computes without MPI; on the owner. Collective."""
        self._waiter.chores[:] = link.chores
        self._waiter.request(self._comm.Ibarrier())
        push_s = cpu_s = 0.0
        landed = False
        if isinstance(link.service, _InboxService):
            landed = self._be_away(link.service)
        elif link.pusher is not None and self._comm.rank == 1:
            time.sleep(_AWAY_BEFORE_S)
            start, cpu_start = time.perf_counter(), _cpu_s()
            self._push(link.pusher, True)
            push_s, cpu_s = time.perf_counter() - start, _cpu_s() - cpu_start
        self._waiter.request(self._comm.Ibarrier())
        found = self._comm.gather((push_s, cpu_s), _OWNER)
        if found is None:
            return None
        return {"away_push_ms": 1e3 * found[1][0], "away_cpu_ms": 1e3 * found[1][1], "landed": landed}

    def _be_away(self, service: _InboxService) -> bool:
        """Compute, then take what came; whether it lay there before any call of MPI."""
        end = time.perf_counter() + _AWAY_S
        while time.perf_counter() < end:
            np.matmul(self._square, self._square)
        landed = any(_next_lies_there(inbox) for inbox in service.inboxes)
        service.take()
        return landed


def _next_lies_there(inbox: Inbox) -> bool:
    slot = inbox.slots[inbox.received % len(inbox.slots)].view(np.float32)
    return bool(slot[_NUMBER] == slot[-1] == inbox.received + 1)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _summary(found: Sequence[tuple[int, float, list[float]]], took_s: float) -> Measurement:
    taken, owner_s, _ = found[_OWNER]
    sent = sum(len(pushes) for _, _, pushes in found)
    if taken != sent:
        raise RuntimeError(f"{sent} gradients were sent and {taken} came")
    median, late = np.percentile(np.concatenate([pushes for _, _, pushes in found]), (50, 95))
    workers_s = sum(cpu_s for _, cpu_s, _ in found[1:])
    return {
        "gradients_per_s": taken / took_s,
        "owner_cpu_us": 1e6 * owner_s / taken,
        "worker_cpu_us": 1e6 * workers_s / taken,
        "cpu_us": 1e6 * (owner_s + workers_s) / taken,
        "push_median_us": 1e6 * float(median),
        "push_95_us": 1e6 * float(late),
    }


def _measure_on_ranks(arguments: argparse.Namespace) -> None:
    """Measure in this world; the owner prints a JSON line for each measurement. Collective."""
    comm, waiter = MPI.COMM_WORLD, Waiter(Activity())
    torch.set_num_threads(1)
    if comm.rank == _OWNER:
        print(json.dumps({"library": library()}), flush=True)
    for size in arguments.sizes:
        rank = _Rank(comm, waiter, size)
        links = {name: _MAKERS[name](comm, size, waiter) for name in arguments.only}
        for link in links.values():
            rank.measure(link, 0.0, _WARM_UP_S)
        for number in range(arguments.rounds):
            for name in arguments.only if number % 2 == 0 else arguments.only[::-1]:
                facts = {"size": size, "variant": name, "round": number, "workers": comm.size - 1}
                for mode, compute_s in _COMPUTE_S.items():
                    _report(facts | {"mode": mode}, rank.measure(links[name], compute_s, arguments.seconds))
                if name != "accumulate":
                    _report(facts | {"mode": "away"}, rank.measure_away(links[name]))
        for link in links.values():
            link.close()


def _report(facts: Measurement, measured: Measurement | None) -> None:
    if measured is not None:
        print(json.dumps(facts | measured), flush=True)


def _start_ranks(arguments: argparse.Namespace, workers: int) -> str:
    """What a world with that many workers prints; CommandFailed if it fails."""
    command = [sys.executable, "-m", "benchmarks.gradient_push", "--rounds", str(arguments.rounds)]
    command += ["--seconds", str(arguments.seconds), "--only", *arguments.only]
    command += ["--sizes", *(str(size) for size in arguments.sizes)]
    environment = rank_environment(os.environ) | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    measurements = len(arguments.sizes) * len(arguments.only) * arguments.rounds
    timeout = 60 + measurements * 2 * (len(_COMPUTE_S) * arguments.seconds + 1)
    if not arguments.hosts:
        return children.run(launcher_command(1 + workers, command), timeout, environment).output
    from tests.hosts import run_on_hosts

    done = run_on_hosts(command, {"owner": 1, "workers": workers}, timeout, environment)
    if done.returncode:
        raise children.CommandFailed(f"status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def _parse(output: str) -> list[Measurement]:
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def _table(found: Sequence[Measurement], names: Sequence[str]) -> str:
    """Variants of one mode, size and number of workers."""
    rows = [["variant", "gradients/s", "owner CPU us", "worker CPU us", "push us, median", "push us, 95 %"]]
    rows[0] += [f"rate / {_BASE}", f"CPU / {_BASE}"] * (_BASE in names)
    for name in names:
        runs = {run["round"]: run for run in found if run["variant"] == name}
        base = {run["round"]: run for run in found if run["variant"] == _BASE}
        keys = ("gradients_per_s", "owner_cpu_us", "worker_cpu_us", "push_median_us", "push_95_us")
        row = [name, *(_median_and_range([run[key] for run in runs.values()], ",.0f") for key in keys)]
        for key in ("gradients_per_s", "cpu_us") if base else ():
            row.append(_median_and_range([run[key] / base[number][key] for number, run in runs.items()], ".2f"))
        rows.append(row)
    return _lines(rows)


def _away_table(found: Sequence[Measurement], names: Sequence[str]) -> str:
    rows = [["workers", "size", "variant", "push ms", "its CPU ms", "lay there before the owner called MPI"]]
    for workers, size in sorted({(run["workers"], run["size"]) for run in found}):
        for name in names:
            facts = {"workers": workers, "size": size, "variant": name}
            if runs := [run for run in found if facts.items() <= run.items()]:
                times = [
                    _median_and_range([run[key] for run in runs], ".2f") for key in ("away_push_ms", "away_cpu_ms")
                ]
                landed = f"{sum(run['landed'] for run in runs)} of {len(runs)}"
                rows.append([str(workers), f"{size:,}", name, *times, landed])
    return _lines(rows)


def _median_and_range(values: Sequence[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def _lines(rows: Sequence[Sequence[str]]) -> str:
    ruled = [rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in ruled)


def _print_tables(found: Sequence[Measurement], names: Sequence[str]) -> None:
    runs = [run for run in found if run.get("mode") in _COMPUTE_S]
    shapes = sorted({(run["size"], run["workers"]) for run in runs})
    for size, workers, mode in [(*shape, mode) for shape in shapes for mode in _COMPUTE_S]:
        title = f"{size:,} numbers, {workers} worker{'s' * (workers > 1)} + 1 owner, {mode}"
        facts = {"size": size, "mode": mode, "workers": workers}
        print(f"### {title}\n\n{_table([run for run in runs if facts.items() <= run.items()], names)}\n")
    print(f"### The owner computes for {1e3 * _AWAY_S:.0f} ms; {1e3 * _AWAY_BEFORE_S:.0f} ms into it one push\n")
    print(_away_table([run for run in found if run.get("mode") == "away"], names) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each variant")
    parser.add_argument("--seconds", type=float, default=0.35, help="of a run")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3], help="a world for each")
    parser.add_argument("--sizes", type=int, nargs="+", default=[9_000, 1_000_000], help="numbers in a gradient")
    parser.add_argument("--only", nargs="+", choices=_VARIANTS, metavar="VARIANT", help="default: see above")
    parser.add_argument("--hosts", action="store_true", help="the owner on one host, its workers on another")
    parser.add_argument("--json", action="store_true", help="print every measurement as a JSON line first")
    arguments = parser.parse_args()
    if arguments.only is None:
        arguments.only = list(_RIVALS_OVER_TCP if arguments.hosts else _VARIANTS)
    if arguments.hosts and "shared" in arguments.only:
        parser.error("two hosts share no memory: --hosts needs an --only without shared")
    return arguments


def main() -> int:
    """Run, print, and say by the status whether a world failed."""
    arguments = _arguments()
    if inside_mpi(os.environ):
        try:
            _measure_on_ranks(arguments)
        except Exception:
            # The other ranks would wait for this one for ever.
            traceback.print_exc()
            abort(1)
        return 0
    # Leaving by an exception ends the ranks too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    found, failures = [], 0
    for workers in arguments.workers:
        try:
            found += _parse(_start_ranks(arguments, workers))
        except children.CommandFailed as failure:
            failures += 1
            print(failure, file=sys.stderr, flush=True)
    if arguments.json:
        print(*map(json.dumps, found), sep="\n")
    where = "two hosts (TCP)" if arguments.hosts else "one node"
    libraries = ", ".join(sorted({run["library"] for run in found if "library" in run}))
    print(f"{CORES} cores, {platform.machine()}, {where}, {libraries}; ", end="")
    print(f"{arguments.rounds} rounds of {arguments.seconds} s.")
    print("Medians (least-most), of ratios within a round; CPU us a gradient, a worker's without its computing.\n")
    _print_tables(found, arguments.only)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
