"""Who does what on which node, in a few lines however many ranks there are."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from hpcrl.words import plural

if TYPE_CHECKING:
    from hpcrl.roles.computing import Plan

_MOST_LINES = 8
#: Runs of ranks, or names of nodes, that are written out.
_MOST_WRITTEN = 4


class _Share(NamedTuple):
    """Ranks of a node with one role: how many, on what, and the sizes of their blocks of environments."""

    size: int
    role: str
    device: str
    num_envs: tuple[int, ...]


def layout_lines(plan: Plan, learner_cores: int) -> list[str]:
    """The layout in one line, and one for each kind of node below it where there is more than one rank.

    Args:
        plan: of the run.
        learner_cores: threads of a rank that learns; all others compute on one.
    """
    ranks_of: dict[int, list[int]] = {}
    for rank, node in enumerate(plan.layout.node_of):
        ranks_of.setdefault(node, []).append(rank)
    first = plan.layout.describe()
    if len(plan.layout.node_of) == 1:
        return [f"{first}, on {_device(plan, 0)} with {plural(learner_cores, 'core')}"]
    alike: dict[Hashable, list[int]] = {}
    for node, ranks in ranks_of.items():
        alike.setdefault(_shares(plan, ranks), []).append(node)
    lines = []
    for shares, nodes in alike.items():
        assert isinstance(shares, tuple)
        names = [plan.hosts[ranks_of[node][0]] if plan.hosts else f"node {node}" for node in nodes]
        ranks = [rank for node in nodes for rank in ranks_of[node]]
        who = "; ".join(_describe(share, learner_cores) for share in shares)
        lines.append(f"  {_names(names, nodes)}, {_ranks(ranks)}: {'on each, ' if len(nodes) > 1 else ''}{who}")
    if len(lines) > _MOST_LINES:
        rest = sum(map(len, list(alike.values())[_MOST_LINES - 1 :]))
        lines = [*lines[: _MOST_LINES - 1], f"  and {rest} nodes of {len(lines) - _MOST_LINES + 1} other kinds"]
    return [first, *lines]


def _shares(plan: Plan, ranks: Sequence[int]) -> tuple[_Share, ...]:
    """What the ranks of one node do, those that do the same together."""
    layout = plan.layout
    kinds: dict[tuple[str, str], list[int]] = {}
    for rank in ranks:
        learns, acts = rank in layout.learners, rank in layout.env_blocks
        words = ("owns weights", "works") if layout.is_asynchronous else ("learns", "acts")
        role = " and ".join(word for word, does in zip(words, (learns, acts), strict=True) if does)
        kinds.setdefault((role, _device(plan, rank) if learns else ""), []).append(rank)
    return tuple(
        _Share(len(members), role, device, _sizes(len(layout.env_blocks.get(rank, ())) for rank in members))
        for (role, device), members in kinds.items()
    )


def _device(plan: Plan, rank: int) -> str:
    device = plan.devices.get(rank)
    return "cpu" if device is None else device.name


def _sizes(numbers: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(set(numbers)))


def _describe(share: _Share, learner_cores: int) -> str:
    role = share.role if share.size == 1 else " and ".join(_PLURAL[word] for word in share.role.split(" and "))
    words = [f"{share.size} {role}"]
    if share.device:
        words[0] += f" on {share.device}"
    if share.num_envs != (0,):
        sizes = " or ".join(map(str, share.num_envs))
        words.append(f"{sizes} environment{'' if sizes == '1' else 's'}{' each' if share.size > 1 else ''}")
    if share.device and learner_cores > 1:
        words.append(f"{learner_cores} cores{' each' if share.size > 1 else ''}")
    return ", ".join(words)


_PLURAL = {"learns": "learn", "acts": "act", "owns weights": "own weights", "works": "work"}


def _names(names: Sequence[str], nodes: Sequence[int]) -> str:
    """Nodes by name; many that follow each other by the first and the last."""
    if len(names) <= 2:
        return " and ".join(names)
    if all(after == before + 1 for before, after in pairwise(nodes)):
        return f"{names[0]} to {names[-1]} ({len(names)} nodes)"
    written = ", ".join(names[:_MOST_WRITTEN]) + (", ..." if len(names) > _MOST_WRITTEN else "")
    return f"{written} ({len(names)} nodes)"


def _ranks(ranks: Sequence[int]) -> str:
    """Ranks, ascending or not, as runs: "rank 0", "ranks 0-3, 8-11"; only their number where there are many runs."""
    ordered = sorted(ranks)
    starts = [rank for place, rank in enumerate(ordered) if not place or ordered[place - 1] != rank - 1]
    if len(starts) > _MOST_WRITTEN:
        return plural(len(ordered), "rank")
    ends = [ordered[ordered.index(start) - 1] for start in starts[1:]] + [ordered[-1]]
    runs = [f"{start}" if start == end else f"{start}-{end}" for start, end in zip(starts, ends, strict=True)]
    return f"rank{'' if len(ordered) == 1 else 's'} {', '.join(runs)}"
