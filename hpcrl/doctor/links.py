"""How fast the ranks' messages are: sums over all, and a ball between two of a node and between two nodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpcrl.cluster.collectives import broadcast, gather
from hpcrl.cluster.mpi import Comm, Request, self_test
from hpcrl.cluster.waiting import Waiter
from hpcrl.doctor.finding import Finding, Level, name_ranks
from hpcrl.errors import RankError
from hpcrl.words import plural

_TAG = 15
_SMALL_BYTES = 4
_LARGE_BYTES = 4 << 20
_SPIN_S = 1e-3
_BUDGET_S = 0.4
_MOST_ROUNDS = 200
_FEWEST_ROUNDS = 1


class Link(NamedTuple):
    """Median seconds that a small and a large message take on one kind of link, one way."""

    name: str
    between: str
    small_s: float
    large_s: float


def measure_links(comm: Comm, node_of: Sequence[int], hosts: Sequence[str], waiter: Waiter) -> list[Link]:
    """One `Link` for each kind that there is, on rank 0; elsewhere []. Collective over `comm`.

    Args:
        node_of, hosts: of every rank.
    """
    if comm.size == 1:
        return []
    sums = _measure_both(comm, lambda size: _sum(comm, size), waiter)
    links = [Link("allreduce", f"over {plural(comm.size, 'rank')}", *sums)]
    for name, pair in _pairs(node_of).items():
        one_way = _measure_both(comm, lambda size, pair=pair: _ball(comm, pair, size), waiter)  # type: ignore[misc]
        where = dict.fromkeys(hosts[rank] for rank in pair)
        links.append(Link(name, f"{name_ranks(pair)} ({' - '.join(where)})", *(took / 2 for took in one_way)))
    return links if comm.rank == 0 else []


def judge_links(links: Sequence[Link]) -> list[Finding]:
    """A line for each kind of link; nothing is too slow here."""
    if not links:
        return [Finding(Level.OK, "links", "one rank has nobody to talk to")]
    return [
        Finding(
            Level.OK,
            link.name,
            f"{link.between}: {_SMALL_BYTES} B in {link.small_s * 1e6:,.1f} us, "
            f"{_LARGE_BYTES >> 20} MB in {link.large_s * 1e3:,.2f} ms ({_LARGE_BYTES / link.large_s / 1e6:,.0f} MB/s)",
        )
        for link in links
    ]


def check_sums(comm: Comm, waiter: Waiter) -> Finding:
    """Whether float32 is summed rightly on every rank; the finding is that of rank 0. Collective over `comm`."""
    try:
        self_test(comm)
        complaint = ""
    except RankError as error:
        complaint = str(error)
    return judge_sums(gather(comm, complaint, waiter))


def judge_sums(complaints: Sequence[str]) -> Finding:
    """What the ranks say of the self-test; empty texts where it was right."""
    wrong = [rank for rank, complaint in enumerate(complaints) if complaint]
    if not wrong:
        return Finding(Level.OK, "sums", "float32 is summed rightly on every rank")
    says = f"{name_ranks(wrong)}: {complaints[wrong[0]]}"
    return Finding(Level.WRONG, "sums", says, "Use another version of the MPI library.")


def _pairs(node_of: Sequence[int]) -> dict[str, tuple[int, int]]:
    """Two ranks for each kind of link: of the first node that has two, and the first ones of two nodes."""
    pairs = {}
    for node in dict.fromkeys(node_of):
        here = [rank for rank, other in enumerate(node_of) if other == node]
        if len(here) > 1:
            pairs["node link"] = (here[0], here[1])
            break
    firsts = sorted(set(node_of))
    if len(firsts) > 1:
        pairs["net link"] = (firsts[0], firsts[1])
    return pairs


def _measure_both(comm: Comm, make: Callable[[int], Callable[[], None]], waiter: Waiter) -> tuple[float, float]:
    small, large = (_median(comm, make(size), waiter) for size in (_SMALL_BYTES, _LARGE_BYTES))
    return small, large


def _median(comm: Comm, once: Callable[[], None], waiter: Waiter) -> float:
    """Median seconds of `once` on the rank that needs most, on rank 0; elsewhere 0. Collective over `comm`."""
    for _ in range(2):  # the second of them is warm
        begin = time.perf_counter()
        once()
        took = time.perf_counter() - begin
    # All must go through as many rounds as the slowest can.
    slowest = max(gather(comm, took, waiter), default=0.0)
    rounds = broadcast(comm, min(_MOST_ROUNDS, max(_FEWEST_ROUNDS, int(_BUDGET_S / max(slowest, 1e-9)))), waiter)
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        once()
        times.append(time.perf_counter() - begin)
    medians = gather(comm, float(np.median(times)), waiter)
    return max(medians, default=0.0)


def _sum(comm: Comm, size: int) -> Callable[[], None]:
    mine, total = np.zeros((2, size // 4), np.float32)
    return lambda: _finish(comm.Iallreduce(mine, total))


def _ball(comm: Comm, pair: Sequence[int], size: int) -> Callable[[], None]:
    """There and back between the two ranks of a pair; the others do nothing."""
    ball = np.zeros(size, np.uint8)
    if comm.rank not in pair:
        return lambda: None
    other = pair[1] if comm.rank == pair[0] else pair[0]
    return lambda: _play(comm, ball, other, comm.rank == pair[0])


def _play(comm: Comm, ball: NDArray[np.uint8], other: int, serves: bool) -> None:
    if serves:
        _finish(comm.Isend(ball, other, _TAG))
    _finish(comm.Irecv(ball, other, _TAG))
    if not serves:
        _finish(comm.Isend(ball, other, _TAG))


def _finish(request: Request) -> None:
    """Spins for a moment, for the figures' sake, then politely: the other may need this core."""
    end = time.perf_counter() + _SPIN_S
    delay = 20e-6
    while not request.Test():
        if time.perf_counter() > end:
            time.sleep(delay)
            delay = min(delay * 1.5, 5e-4)
