"""What a check found: a level, a sentence with the figures, and what to type where something is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

from hpcrl.words import plural

_MOST_RANGES = 8
_MOST_NAMES = 4
_MOST_GROUPS = 3


class Level(StrEnum):
    """How bad it is; the value is the mark that a person sees."""

    OK = "ok"
    NOTE = "note"
    WRONG = "WRONG"

    @property
    def weight(self) -> int:
        """Larger is worse."""
        return list(Level).index(self)


class Finding(NamedTuple):
    """One line of the report, and a second one where there is something to do."""

    level: Level
    name: str
    says: str
    do: str = ""


class Verdict(NamedTuple):
    """What holds of some ranks: `says` is a sentence without its subject."""

    level: Level
    says: str
    do: str = ""


def worst(levels: Iterable[Level]) -> Level:
    """The worst of some levels; OK where there are none."""
    return max(levels, key=lambda level: level.weight, default=Level.OK)


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as ranges: 0-3, 7; of very many ranges the first ones."""
    pieces: list[list[int]] = []
    for number in sorted(set(numbers)):
        if pieces and pieces[-1][1] == number - 1:
            pieces[-1][1] = number
        else:
            pieces.append([number, number])
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in pieces[:_MOST_RANGES]]
    if len(pieces) > _MOST_RANGES:
        shown.append(f"and {sum(last - first + 1 for first, last in pieces[_MOST_RANGES:]):,} more")
    return ", ".join(shown)


def name_ranks(ranks: Iterable[int]) -> str:
    """`rank 3`, `ranks 0-63`."""
    ranks = set(ranks)
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {ranges(ranks)}"


def name_hosts(hosts: Iterable[str]) -> str:
    """The first few of some hosts, each once, and how many more there are."""
    names = list(dict.fromkeys(hosts))
    rest = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {rest:,} more" if rest > 0 else "")


def merge(name: str, verdicts: Sequence[tuple[Verdict, Sequence[int], str]], num_nodes: int) -> Finding:
    """One finding out of what holds of the ranks of each node; the worst first, equal sentences once.

    Args:
        name: of the finding.
        verdicts: with the ranks that each is about, and their host.
        num_nodes: in the world; hosts are named where there are several.
    """
    groups: dict[Verdict, tuple[list[int], list[str]]] = {}
    for verdict, ranks, host in verdicts:
        all_ranks, hosts = groups.setdefault(verdict, ([], []))
        all_ranks.extend(ranks)
        hosts.append(host)
    ordered = sorted(groups.items(), key=lambda group: -group[0].level.weight)
    sentences = []
    for verdict, (all_ranks, hosts) in ordered[:_MOST_GROUPS]:
        place = f" on {name_hosts(hosts)}" if num_nodes > 1 else ""
        sentences.append(f"{name_ranks(all_ranks)}{place}: {verdict.says}")
    if len(ordered) > _MOST_GROUPS:
        rest = {host for _, (_, hosts) in ordered[_MOST_GROUPS:] for host in hosts}
        sentences.append(f"{plural(len(rest), 'node')} more with other figures")
    level = worst(verdict.level for verdict in groups)
    advice = [verdict.do for verdict, _ in ordered if verdict.do and verdict.level == level]
    return Finding(level, name, "; ".join(sentences), " ".join(dict.fromkeys(advice[:_MOST_GROUPS])))
