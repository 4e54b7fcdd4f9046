"""Who does what: a pure function from the ranks' nodes to learners, actors and their environments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from hpcrl.envs.tasks import divide
from hpcrl.errors import ConfigError
from hpcrl.words import plural


@dataclass(frozen=True)
class Layout:
    """The roles of a world. Ranks are world ranks.

    Attributes:
        node_of: node number of each rank; nodes are numbered in the order of their first rank.
        learners: learner ranks, ascending; rank 0 is always one.
        actors: ranks that act, ascending; under "colocated" and in a world of one, the learners themselves.
        learner_of: the learner that each actor feeds.
        env_blocks: global indices of each actor's environments, contiguous, dealt in rank order.
        is_asynchronous: learners own shards of the weights, and every actor is a worker that talks to all of them.
    """

    node_of: tuple[int, ...]
    learners: tuple[int, ...]
    actors: tuple[int, ...]
    learner_of: dict[int, int]
    env_blocks: dict[int, range]
    is_asynchronous: bool = False

    @property
    def is_colocated(self) -> bool:
        """Every rank acts and learns."""
        return not self.is_asynchronous and self.learners == self.actors

    def actors_of(self, learner: int) -> tuple[int, ...]:
        """The actors that feed `learner`, in rank order."""
        return tuple(actor for actor in self.actors if self.learner_of[actor] == learner)

    def learner_for(self, rank: int) -> int:
        """The learner of the group that `rank` belongs to: itself where it learns."""
        return rank if rank in self.learners else self.learner_of[rank]

    def describe(self) -> str:
        """One line for people."""
        nodes = len(set(self.node_of))
        where = f"on {nodes} nodes" if nodes > 1 else "on one node"
        roles = f"{plural(len(self.learners), 'learner')} and {plural(len(self.actors), 'actor')}"
        if self.is_colocated:
            roles = f"{plural(len(self.actors), 'rank')}, acting and learning,"
        if self.is_asynchronous:
            roles = f"{plural(len(self.actors), 'worker')} and {plural(len(self.learners), 'parameter owner')}"
            roles += " among them" if set(self.learners) <= set(self.actors) else ""
        who = "a worker" if self.is_asynchronous else "an actor"
        sizes = sorted({len(block) for block in self.env_blocks.values()})
        return f"{roles} {where}, {' or '.join(map(str, sizes))} environments {who}"


def plan_layout(
    nodes: Sequence[object],
    learners: int | Literal["auto"],
    placement: Literal["split", "colocated"],
    num_envs: int,
    learner_ranks: Literal["spread", "first"] = "spread",
    num_tasks: int = 1,
    with_gpus: Sequence[int] = (),
) -> Layout:
    """Deal out roles and environments.

    Args:
        nodes: what tells each rank's node, in rank order (a host name).
        learners: how many; "auto" is `with_gpus`, or one on every node that has ranks left to act, at least one.
        placement: see `hpcrl.config.TrainConfig`.
        num_envs: environments in total.
        learner_ranks: learners are spread over the nodes, or the lowest ranks.
        num_tasks: tasks of the run; where that divides the number of actors, each actor has environments of one.
        with_gpus: ranks that can have a GPU each.

    Raises:
        ConfigError: a split without an actor for every learner, more learners than ranks, or a rank 0 without a GPU
            where others have one.
    """
    node_of = _number(nodes)
    size = len(node_of)
    if placement == "colocated" or size == 1:
        if learners not in ("auto", size):
            raise ConfigError(
                f"--learners {learners} must be {size} where every one of {size} ranks acts and learns (or auto)"
            )
        everyone = tuple(range(size))
        blocks = _deal(everyone, num_envs, num_tasks)
        return Layout(node_of, everyone, everyone, {rank: rank for rank in everyone}, blocks)
    if learners == "auto" and with_gpus:
        return _plan_for_gpus(node_of, tuple(sorted(with_gpus)), num_envs, num_tasks)
    wanted = _auto_learners(node_of) if learners == "auto" else learners
    if 2 * wanted > size:
        raise ConfigError(
            f"--learners {wanted} needs an actor for each, so at least {2 * wanted} ranks, got {size} "
            "(or --placement colocated)"
        )
    return _split(node_of, _choose(node_of, wanted, learner_ranks), num_envs, num_tasks)


def plan_workers(
    nodes: Sequence[object],
    owners: int | Literal["auto"],
    placement: Literal["split", "colocated"],
    num_envs: int,
    learner_ranks: Literal["spread", "first"] = "spread",
    num_tasks: int = 1,
) -> Layout:
    """Deal out the roles of an asynchronous run: owners of shards of the weights, and workers.

    Args:
        nodes: what tells each rank's node, in rank order.
        owners: how many; "auto" is one.
        placement: split: owners do nothing else; colocated, and in a world of one: every rank is a worker, some own
            a shard beside it.
        num_envs: environments in total.
        learner_ranks: see `plan_layout`; of the owners.
        num_tasks: see `plan_layout`.

    Raises:
        ConfigError: no rank is left to be a worker, or more owners than ranks.
    """
    node_of = _number(nodes)
    size, wanted = len(node_of), 1 if owners == "auto" else owners
    colocated = placement == "colocated" or size == 1
    if wanted + (not colocated) > size:
        needed = f"{wanted + 1} ranks (or --placement colocated)" if not colocated else f"{wanted} ranks"
        raise ConfigError(f"--learners {wanted}, owners of the weights, needs at least {needed}, got {size}")
    chosen = _choose(node_of, wanted, learner_ranks)
    workers = tuple(rank for rank in range(size) if colocated or rank not in chosen)
    learner_of = dict.fromkeys(workers, 0)
    return Layout(node_of, chosen, workers, learner_of, _deal(workers, num_envs, num_tasks), is_asynchronous=True)


def _plan_for_gpus(node_of: tuple[int, ...], learners: tuple[int, ...], num_envs: int, num_tasks: int) -> Layout:
    """Learners and actors where each of `learners` has a GPU."""
    if learners[0] != 0:
        raise ConfigError(
            f"rank 0, which always learns, sees no GPU, but rank {learners[0]} does; start the ranks with GPUs first, "
            "or type --device cpu"
        )
    if 2 * len(learners) > len(node_of):
        raise ConfigError(
            f"{len(learners)} of {len(node_of)} ranks can have a GPU each, and a learner needs an actor; start at "
            f"least {2 * len(learners)} ranks, or type --learners {len(node_of) // 2} or --placement colocated"
        )
    return _split(node_of, learners, num_envs, num_tasks)


def _split(node_of: tuple[int, ...], learners: tuple[int, ...], num_envs: int, num_tasks: int) -> Layout:
    """All ranks that do not learn act."""
    actors = tuple(rank for rank in range(len(node_of)) if rank not in learners)
    return Layout(node_of, learners, actors, _assign(node_of, learners, actors), _deal(actors, num_envs, num_tasks))


def _number(nodes: Sequence[object]) -> tuple[int, ...]:
    """The node number of each rank, in the order of the nodes' first ranks."""
    numbers: dict[object, int] = {}
    return tuple(numbers.setdefault(node, len(numbers)) for node in nodes)


def _auto_learners(node_of: Sequence[int]) -> int:
    return max(1, sum(node_of.count(node) > 1 for node in set(node_of)))


def _choose(node_of: Sequence[int], wanted: int, learner_ranks: Literal["spread", "first"]) -> tuple[int, ...]:
    return tuple(range(wanted)) if learner_ranks == "first" else _spread(node_of, wanted)


def _spread(node_of: Sequence[int], wanted: int) -> tuple[int, ...]:
    """The first rank of every node with company, then its second, ...: rank 0 comes first."""
    place = [node_of[:rank].count(node) for rank, node in enumerate(node_of)]
    alone = [node_of.count(node) == 1 for node in node_of]
    order = sorted(range(len(node_of)), key=lambda rank: (rank != 0, alone[rank], place[rank], node_of[rank]))
    return tuple(sorted(order[:wanted]))


def _assign(node_of: Sequence[int], learners: Sequence[int], actors: Sequence[int]) -> dict[int, int]:
    """A learner of the actor's own node where there is one, else the least loaded; no learner goes without."""
    load = dict.fromkeys(learners, 0)
    learner_of: dict[int, int] = {}
    for actor in actors:
        at_home = [learner for learner in learners if node_of[learner] == node_of[actor]]
        chosen = min(at_home or learners, key=lambda learner: (load[learner], learner))
        learner_of[actor] = chosen
        load[chosen] += 1
    for learner in (learner for learner in learners if not load[learner]):
        donor = max(load, key=lambda other: (load[other], -other))
        moved = max(actor for actor, fed in learner_of.items() if fed == donor)
        learner_of[moved] = learner
        load[donor], load[learner] = load[donor] - 1, 1
    return learner_of


def _deal(actors: Sequence[int], num_envs: int, num_tasks: int) -> dict[int, range]:
    """Contiguous blocks whose sizes differ by at most one, the larger ones first in every task, or else in all."""
    if len(actors) % num_tasks:
        num_tasks = 1
    shares = [divide(task, len(actors) // num_tasks) for task in divide(range(num_envs), num_tasks)]
    return dict(zip(actors, chain.from_iterable(shares), strict=True))
