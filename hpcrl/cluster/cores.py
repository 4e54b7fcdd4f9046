"""Which CPUs each rank of a node gets: a pure function of what the ranks may use and need, and of the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")

_SYSTEM = Path("/sys/devices/system/cpu")


class Core(NamedTuple):
    """A physical core.

    Attributes:
        near: numbers of what it lies on, from the widest: socket, NUMA node, last-level cache.
        cpus: its hardware threads, by the system's numbers.
    """

    near: tuple[int, ...]
    cpus: frozenset[int]


class Need(NamedTuple):
    """One rank of a node.

    Attributes:
        allowed: CPUs that it may use now.
        cores: how many it computes on.
        cell: what it shares with those that should be its neighbours: their learner.
    """

    allowed: frozenset[int]
    cores: int
    cell: int


def plan_cores(needs: Sequence[Need], cores: Sequence[Core]) -> list[frozenset[int]] | str:
    """CPUs for every rank of a node, no CPU for two; or why there are none, as what follows "where".

    A rank gets physical cores with all their hardware threads, or single hardware threads where there are too few
    cores. The ranks of a cell lie together, and so do the cores of a rank, if possible on one socket.

    Args:
        needs: of the node's ranks.
        cores: every allowed CPU is in one of them.
    """
    allowed = needs[0].allowed
    if any(need.allowed != allowed for need in needs):
        return "the launcher has bound the ranks already"
    if (wanted := sum(need.cores for need in needs)) > len(allowed):
        return f"the ranks need {wanted} cores and may use {len(allowed)} CPUs"
    free = [core._replace(cpus=core.cpus & allowed) for core in cores if core.cpus & allowed]
    free.sort(key=lambda core: (core.near, min(core.cpus)))
    if wanted > len(free):
        free = _hardware_threads(free, wanted)
    cells: dict[int, list[int]] = {}
    for place, need in enumerate(needs):
        cells.setdefault(need.cell, []).append(place)
    given: dict[int, frozenset[int]] = {}
    # The largest first: what is left of a socket then holds a small one.
    for places in _largest_first(cells.values(), lambda places: sum(needs[place].cores for place in places)):
        of_cell = _take(free, sum(needs[place].cores for place in places))
        for place in _largest_first(places, lambda place: needs[place].cores):
            taken = _take(of_cell, needs[place].cores)
            given[place] = frozenset().union(*(core.cpus for core in taken))
    return [given[place] for place in range(len(needs))]


def _hardware_threads(cores: Sequence[Core], wanted: int) -> list[Core]:
    """So many hardware threads as if they were cores, a first one of every core before a second of any."""
    threads = sorted(
        (place, number, cpu) for number, core in enumerate(cores) for place, cpu in enumerate(sorted(core.cpus))
    )
    chosen = sorted((number, cpu) for _, number, cpu in threads[:wanted])
    return [Core(cores[number].near, frozenset({cpu})) for number, cpu in chosen]


def _largest_first(items: Iterable[T], size: Callable[[T], int]) -> list[T]:
    return sorted(items, key=size, reverse=True)


def _take(free: list[Core], count: int) -> list[Core]:
    """Remove the first neighbours that lie on as few sockets, then NUMA nodes, then caches as can be."""

    def parts(start: int) -> list[int]:
        return [len(set(numbers)) for numbers in zip(*(core.near for core in free[start : start + count]), strict=True)]

    start = min(range(len(free) - count + 1), key=parts)
    taken = free[start : start + count]
    del free[start : start + count]
    return taken


def read_cores(cpus: Iterable[int], system: Path = _SYSTEM) -> list[Core]:
    """The physical cores of these CPUs, as Linux describes them; where it doesn't, every CPU is a core. Local."""
    cores: list[Core] = []
    known: set[int] = set()
    for cpu in sorted(cpus):
        if cpu in known:
            continue
        folder = system / f"cpu{cpu}"
        threads = frozenset(_read_numbers(folder / "topology/thread_siblings_list")) | {cpu}
        socket = min(_read_numbers(folder / "topology/physical_package_id"), default=0)
        node = min((int(path.name[4:]) for path in folder.glob("node[0-9]*")), default=0)
        cache = min(_read_numbers(folder / "cache/index3/shared_cpu_list"), default=0)
        cores.append(Core((socket, node, cache), threads - known))
        known |= threads
    return cores


def _read_numbers(path: Path) -> list[int]:
    """A list of the kernel's, such as 0-3,8; empty where there is none."""
    try:
        pieces = path.read_text().strip().split(",")
        bounds = [[int(number) for number in piece.split("-")] for piece in pieces]
    except (OSError, ValueError):
        return []
    return [number for bound in bounds for number in range(bound[0], bound[-1] + 1)]


def describe_cores(cpus_of: Mapping[int, frozenset[int]]) -> str:
    """Who has which CPUs, in as few words as possible.

    Args:
        cpus_of: by rank.
    """
    by_number: dict[int, list[int]] = {}
    for rank, cpus in cpus_of.items():
        by_number.setdefault(len(cpus), []).append(rank)
    parts = []
    for number, ranks in by_number.items():
        all_cpus = ranges(frozenset().union(*(cpus_of[rank] for rank in ranks)))
        one = f"rank {ranks[0]} has {'CPU' if number == 1 else 'CPUs'} {all_cpus}"
        parts.append(one if len(ranks) == 1 else f"ranks {ranges(ranks)} have {number} each of CPUs {all_cpus}")
    return "; ".join(parts)


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as taskset writes them: 0-3,8 or, with a stride, 0-6:2."""
    rest = sorted(numbers)
    pieces = []
    while rest:
        stride = rest[1] - rest[0] if len(rest) > 1 else 1
        length = next((place for place in range(1, len(rest)) if rest[place] - rest[place - 1] != stride), len(rest))
        if stride > 1 and length < 3:
            length = 1
        first, last = rest[0], rest[length - 1]
        pieces.append(f"{first}" if length == 1 else f"{first}-{last}" + (f":{stride}" if stride > 1 else ""))
        rest = rest[length:]
    return ",".join(pieces)
