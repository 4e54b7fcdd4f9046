"""Which rank learns on which GPU: pure functions of what the ranks see, the same on all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from hpcrl.cluster.cores import ranges
from hpcrl.devices.gpus import Gpu
from hpcrl.errors import ConfigError


@dataclass(frozen=True)
class Device:
    """The GPU of a learner.

    Attributes:
        index: its number, as CUDA counts the GPUs that this rank sees.
        uuid: tells it from all others of the node.
        name: for people.
    """

    index: int
    uuid: str
    name: str


class _Key(NamedTuple):
    """A GPU of the world."""

    node: int
    uuid: str


class _Assignment:
    """Ranks on GPUs that they see, the loads of which are as even as can be after every rank.

    A rank may make others move: it gets the least loaded GPU that can be reached by exchanges (ASM1 of Harvey,
    Ladner, Lovász and Tamir 2006, "Semi-matchings for bipartite graphs and load balancing"). Of GPUs that are
    equally good it gets the one with the fewest exchanges, then the first in its own order.

    Args:
        nodes: node number of every rank.
        gpus: those that every rank sees, in its order.

    Attributes:
        gpu_of: of every rank that has been placed.
        ranks_on: the ranks on every GPU that has been given.
    """

    def __init__(self, nodes: Sequence[int], gpus: Sequence[Sequence[Gpu]]) -> None:
        self._seen = [[_Key(node, gpu.uuid) for gpu in seen] for node, seen in zip(nodes, gpus, strict=True)]
        self.gpu_of: dict[int, _Key] = {}
        self.ranks_on: dict[_Key, list[int]] = {}

    def place(self, rank: int, share: bool) -> bool:
        """Give a rank a GPU that is free, or if need be, under `share`, the least loaded; whether it got one."""
        movers = self._within_reach(rank)
        gpu = min(movers, key=self._load, default=None)
        if gpu is None or (self._load(gpu) and not share):
            return False
        while True:
            mover = movers[gpu]
            former = self.gpu_of.get(mover)
            self.gpu_of[mover] = gpu
            self.ranks_on.setdefault(gpu, []).append(mover)
            if former is None:
                return True
            self.ranks_on[former].remove(mover)
            gpu = former

    def crowd(self) -> tuple[list[int], int] | None:
        """Ranks that see fewer GPUs than they are, and how many GPUs; None where no two are on one."""
        crowded = next((ranks for ranks in self.ranks_on.values() if len(ranks) > 1), None)
        if crowded is None:
            return None
        between_them = self._within_reach(crowded[0])
        return sorted(rank for gpu in between_them for rank in self.ranks_on[gpu]), len(between_them)

    def _load(self, gpu: _Key) -> int:
        return len(self.ranks_on.get(gpu, ()))

    def _within_reach(self, rank: int) -> dict[_Key, int]:
        """GPUs that could become those of `rank`, fewest exchanges first, and who would move to each."""
        movers: dict[_Key, int] = {}
        waiting = deque([rank])
        while waiting:
            mover = waiting.popleft()
            for gpu in self._seen[mover]:
                if gpu not in movers:
                    movers[gpu] = mover
                    waiting.extend(self.ranks_on.get(gpu, ()))
        return movers


def auto_learners(nodes: Sequence[int], gpus: Sequence[Sequence[Gpu]]) -> tuple[int, ...]:
    """As many ranks as can have a GPU of their own, the lowest that can, ascending; none without GPUs.

    Args:
        nodes: node number of every rank.
        gpus: those that every rank sees, in the order of CUDA's numbers.
    """
    assignment = _Assignment(nodes, gpus)
    return tuple(rank for rank in range(len(nodes)) if assignment.place(rank, share=False))


def plan_devices(
    nodes: Sequence[int],
    gpus: Sequence[Sequence[Gpu]],
    learners: Sequence[int],
    device: Literal["auto", "cpu", "cuda"],
    share: bool,
    hosts: Sequence[str] | None = None,
) -> dict[int, Device | None]:
    """Where every learner computes: on a GPU that it sees and has alone, or on the CPU (None).

    Where all learners of a node see all its GPUs, the first of them gets the first, and so on.

    Args:
        nodes: node number of every rank.
        gpus: those that every rank sees, in the order of CUDA's numbers.
        learners: ranks that learn.
        device: "auto" is the CPU where no learner sees a GPU, else as "cuda".
        share: learners may have a GPU together where there are too few; the loads are as even as can be.
        hosts: name of every rank's node, for messages.

    Returns:
        By learner, ascending.

    Raises:
        ConfigError: a learner sees no GPU though it should, or, without `share`, some have too few between them.
    """
    learners = sorted(set(learners))
    blind = [rank for rank in learners if not gpus[rank]]
    if device == "cpu" or (device == "auto" and len(blind) == len(learners)):
        return dict.fromkeys(learners)
    where = [f"on node {node}" for node in nodes] if hosts is None else [f"on {host}" for host in hosts]
    if blind:
        beside = [rank for rank in blind if nodes[rank] == nodes[blind[0]]]
        sees = "it sees" if len(beside) == 1 else "they see"
        raise ConfigError(
            f"{_name(beside)} {where[blind[0]]} can't learn on a GPU, as {sees} none "
            f"({len(learners) - len(blind)} of {len(learners)} learners do); type {_advice(nodes, gpus, learners)}"
        )
    assignment = _Assignment(nodes, gpus)
    for rank in learners:
        assignment.place(rank, share=True)
    if not share and (crowd := assignment.crowd()):
        ranks, number = crowd
        raise ConfigError(
            f"{_name(ranks)} {where[ranks[0]]} can't learn on a GPU each, as they see {number} between them; "
            f"type {_advice(nodes, gpus, learners, may_share=True)}"
        )
    return {rank: _device(gpus[rank], assignment.gpu_of[rank].uuid) for rank in learners}


def _device(seen: Sequence[Gpu], uuid: str) -> Device:
    return next(Device(index, uuid, gpu.name) for index, gpu in enumerate(seen) if gpu.uuid == uuid)


def _name(ranks: Sequence[int]) -> str:
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {ranges(ranks)}"


def _advice(
    nodes: Sequence[int], gpus: Sequence[Sequence[Gpu]], learners: Sequence[int], may_share: bool = False
) -> str:
    """What to type instead of what was refused."""
    ways = ["--share-gpus", "--device cpu"] if may_share else ["--device cpu"]
    number = len(auto_learners(nodes, gpus))
    # Rank 0 learns in any case: fewer learners do not help where it sees no GPU.
    if gpus[0] and number < len(learners):
        ways.insert(0, f"--learners {number}")
    return " or ".join([", ".join(ways[:-1]), ways[-1]] if len(ways) > 1 else ways)
