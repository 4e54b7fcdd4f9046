"""Splits the world by a layout into the communicators that the roles use."""

from __future__ import annotations

from typing import cast

from hpcrl.cluster.layout import Layout
from hpcrl.cluster.mpi import MPI, Comm


class Ranks:
    """Communicators of one rank, made once, in one order, by all ranks. Collective over `world` to make.

    Attributes:
        world: a duplicate, so that nobody else's messages mix with ours.
        rank, size: in the world.
        layout: who does what.
        node: the ranks that share memory with this one.
        learners: all learners, in rank order; None on other ranks.
        cell: the ranks of one group (a learner and its actors) on one node.
    """

    def __init__(self, world: Comm, layout: Layout, node: Comm) -> None:
        self.world = world.Dup()
        self.rank, self.size = world.rank, world.size
        self.layout = layout
        self.node = node
        learners = _split(world, 0 if self.is_learner else MPI.UNDEFINED, world.rank)
        self.learners: Comm | None = learners if self.is_learner else None
        self.cell = _split(node, layout.learner_for(self.rank), world.rank)
        self.cell_ranks: tuple[int, ...] = tuple(self.cell.allgather(self.rank))

    @property
    def is_learner(self) -> bool:
        """This rank learns."""
        return self.rank in self.layout.learners

    @property
    def is_actor(self) -> bool:
        """This rank acts (a learner too, where the placement is colocated)."""
        return self.rank in self.layout.actors

    @property
    def learner(self) -> int:
        """World rank of this rank's learner."""
        return self.layout.learner_for(self.rank)

    @property
    def learner_is_near(self) -> bool:
        """The learner shares memory with this rank."""
        return self.learner in self.cell_ranks

    def far_cells(self) -> list[int]:
        """World ranks that receive weights for the cells of this learner's group on other nodes: their first ranks."""
        node_of = self.layout.node_of
        firsts: dict[int, int] = {}
        for actor in self.layout.actors_of(self.rank):
            if node_of[actor] != node_of[self.rank]:
                firsts.setdefault(node_of[actor], actor)
        return list(firsts.values())


def split_nodes(world: Comm) -> tuple[Comm, list[int]]:
    """The ranks that share memory with this one, and the node of every rank (its lowest rank). Collective."""
    node = cast(Comm, world.Split_type(MPI.COMM_TYPE_SHARED, world.rank))
    first = node.bcast(world.rank)
    return node, world.allgather(first)


def _split(comm: Comm, color: int, key: int) -> Comm:
    return cast(Comm, comm.Split(color, key))
