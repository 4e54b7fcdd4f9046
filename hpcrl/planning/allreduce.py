"""What a sum over the learners takes: alpha + beta models of the two algorithms that MPI libraries choose from."""

from __future__ import annotations

import math

from hpcrl.planning.costs import Link


def ring(ranks: int, nbytes: float, link: Link) -> float:
    """2 (n-1) (alpha + bytes / (n bandwidth)) seconds.

    Reduce-scatter and allgather around a ring (Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms").
    """
    return 2 * (ranks - 1) * link(nbytes / ranks)


def recursive_doubling(ranks: int, nbytes: float, link: Link) -> float:
    """ceil(log2 n) (alpha + bytes / bandwidth) seconds.

    All of the vector with a partner, at twice the distance each time (Thakur, Rabenseifner and Gropp 2005,
    "Optimization of collective communication operations in MPICH").
    """
    return math.ceil(math.log2(ranks)) * link(nbytes)


def flat(ranks: int, nbytes: float, link: Link) -> float:
    """The faster of the two; 0 for one rank."""
    if ranks == 1:
        return 0.0
    return min(ring(ranks, nbytes, link), recursive_doubling(ranks, nbytes, link))


def hierarchical(nodes: int, ranks_per_node: int, nbytes: float, node: Link, net: Link) -> float:
    """A sum within each node and one between the nodes, in seconds."""
    return flat(ranks_per_node, nbytes, node) + flat(nodes, nbytes, net)
