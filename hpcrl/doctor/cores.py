"""Which cores the ranks of each node may use, and whether there is one for each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from hpcrl.doctor.facts import RankFacts, by_node
from hpcrl.doctor.finding import Finding, Level, Verdict, merge, name_ranks, ranges
from hpcrl.doctor.launchers import unbinding
from hpcrl.words import plural

_NAME = "cores"
_FEWER = "start fewer ranks on the node"


def judge_cores(facts: Sequence[RankFacts], library: str, environment: Mapping[str, str]) -> Finding:
    """Binding and oversubscription, node by node."""
    nodes = by_node(facts)
    advice = unbinding(environment, library)
    verdicts = [(_judge_node(node, advice), [rank.rank for rank in node], node[0].host) for node in nodes]
    return merge(_NAME, verdicts, len(nodes))


def usable_cores(node: Sequence[RankFacts]) -> int:
    """Cores that the ranks of a node may use together, and have time for."""
    together = len(_union(node))
    quotas = [rank.quota for rank in node if rank.quota is not None]
    return max(1, min(together, *(math.ceil(quota) for quota in quotas))) if quotas else together


def cores_each(node: Sequence[RankFacts]) -> list[int]:
    """Cores that each rank of a node has for itself, at least 1."""
    fair = max(1, usable_cores(node) // len(node))
    masks = Counter(frozenset(rank.cores) for rank in node)
    if len(masks) == 1:
        return [fair] * len(node)
    own = {mask: _ranks_within(mask, masks) for mask in masks}
    return [max(1, min(len(rank.cores) // own[frozenset(rank.cores)], usable_cores(node))) for rank in node]


def _judge_node(node: Sequence[RankFacts], unbind: str) -> Verdict:
    crowd = _crowded(node)
    if crowd is not None:
        return _judge_crowd(node, *crowd, unbind)
    usable, ranks = usable_cores(node), len(node)
    if ranks > usable:
        says = f"a container's limit of {usable} cores' worth of time for {plural(ranks, 'rank')}"
        return Verdict(Level.WRONG, says, f"Give the container more CPUs, or {_FEWER}.")
    slurm = _number(node[0], "SLURM_CPUS_ON_NODE")
    if slurm is not None and ranks > slurm:
        says = f"Slurm gives this node's job {plural(slurm, 'core')} for {plural(ranks, 'rank')}"
        return Verdict(Level.WRONG, says, f"Ask for --cpus-per-task=1 without --overcommit, or {_FEWER}.")
    says = _describe_binding(node)
    if usable < len(_union(node)):
        says += f", with the time of {usable} of them"
    wanted = max(_number(rank, "SLURM_CPUS_PER_TASK") or 1 for rank in node)
    if wanted > min(len(rank.cores) for rank in node):
        do = f"srun does not take it over from sbatch since 22.05: type srun --cpus-per-task={wanted}."
        return Verdict(Level.NOTE, f"{says}, though SLURM_CPUS_PER_TASK is {wanted}", do)
    if slurm is not None and slurm != len(_union(node)):
        return Verdict(Level.NOTE, f"{says}, though SLURM_CPUS_ON_NODE is {slurm}")
    return Verdict(Level.OK, says)


def _judge_crowd(node: Sequence[RankFacts], mask: frozenset[int], ranks: Sequence[int], unbind: str) -> Verdict:
    usable_by_job = _number(node[0], "SLURM_CPUS_ON_NODE") or node[0].machine_cores
    who = f"all {len(ranks)} on the node" if len(ranks) == len(node) else name_ranks(ranks)
    if len(mask) < min(usable_by_job, node[0].machine_cores):
        only = f"{'core' if len(mask) == 1 else 'cores'} {ranges(mask)}"
        says = f"{who} may use nothing but {only}, of {plural(node[0].machine_cores, 'core')} in the machine"
        return Verdict(Level.WRONG, says, f"{unbind[0].upper()}{unbind[1:]}, or {_FEWER}.")
    says = f"{plural(len(ranks), 'rank')} share {plural(len(mask), 'core')}"
    return Verdict(Level.WRONG, says, f"{_FEWER[0].upper()}{_FEWER[1:]}, or ask for more cores (--cpus-per-task=1).")


def _crowded(node: Sequence[RankFacts]) -> tuple[frozenset[int], list[int]] | None:
    """The smallest set of cores that more ranks are confined to than it has cores, and these ranks."""
    masks = Counter(frozenset(rank.cores) for rank in node)
    for mask in sorted({*masks, _union(node)}, key=len):
        if _ranks_within(mask, masks) > len(mask):
            return mask, [rank.rank for rank in node if mask.issuperset(rank.cores)]
    return None


def _ranks_within(mask: frozenset[int], masks: Mapping[frozenset[int], int]) -> int:
    return sum(count for other, count in masks.items() if other <= mask)


def _describe_binding(node: Sequence[RankFacts]) -> str:
    sizes = {len(rank.cores) for rank in node}
    each = plural(min(sizes), "core") if len(sizes) == 1 else f"{min(sizes)} to {max(sizes)} cores"
    together = len(_union(node))
    if len(node) == 1:
        return f"it may use {each}"
    if len({rank.cores for rank in node}) == 1:
        return f"{plural(len(node), 'rank')} a node, not bound: all may use the same {each}"
    if sum(len(rank.cores) for rank in node) == together:
        return f"{plural(len(node), 'rank')} a node, each bound to {each} of its own"
    return f"{plural(len(node), 'rank')} a node, with {each} each that overlap, {together} together"


def _union(node: Sequence[RankFacts]) -> frozenset[int]:
    return frozenset().union(*(rank.cores for rank in node))


def _number(rank: RankFacts, name: str) -> int | None:
    """A variable that holds a number; None without it."""
    value = rank.variables.get(name, "")
    return int(value) if value.isdigit() else None
