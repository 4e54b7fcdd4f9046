"""What binds a layout, told from where the time of its ranks goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

#: What ranks do, in words.
_NAMES = {
    "acting": "environments",
    "inference": "the policy of actors",
    "learning": "learning",
    "reducing": "sums over the learners",
    "publishing": "publishing weights",
    "transport": "moving unrolls and weights",
    "waiting": "waiting for each other",
}
_LEAST_SHARE = 0.005
#: Cores in use, of those that ranks say to work on, below which something else has them.
_UNDISTURBED = 0.8

#: Share of time by phase, of ranks that have a clock each.
Clocks = dict[str, dict[str, float]]


class Bound(NamedTuple):
    """What takes most of the time of those who wait least.

    Attributes:
        what: a phase.
        share: of their time.
        sentence: for people.
    """

    what: str
    share: float
    sentence: str


def clocks_of(time_split: Mapping[str, float], does_both: bool) -> Clocks:
    """Shares by role and phase ("actor_acting"), by those whose time they are.

    Args:
        does_both: every rank acts and learns, and has one clock: what both roles name is the same time.
    """
    clocks: Clocks = {"ranks": {}} if does_both else {"actors": {}, "learners": {}}
    for name, share in time_split.items():
        role, _, phase = name.partition("_")
        clock = clocks["ranks" if does_both else role + "s"]
        clock[phase] = max(share, clock.get(phase, 0.0))
    return clocks


def describe(clock: Mapping[str, float]) -> str:
    """The phases of a clock, the longest first."""
    shown = sorted(((share, phase) for phase, share in clock.items() if share >= _LEAST_SHARE), reverse=True)
    return ", ".join(f"{phase} {percent(share)}" for share, phase in shown)


def bound_by(clocks: Clocks) -> Bound:
    """The longest phase of those who wait least, or that they wait even so: then they take turns."""
    busiest = min(clocks, key=lambda name: clocks[name].get("waiting", 0.0))
    clock = clocks[busiest]
    what = max(clock, key=lambda phase: clock[phase])
    sentence = f"{_NAMES[what]} ({what} takes {percent(clock[what])} of the time of {busiest}"
    for other in clocks.keys() - {busiest}:
        sentence += f", {other} wait for {percent(clocks[other].get('waiting', 0.0))} of theirs"
    return Bound(what, clock[what], sentence + ")")


def is_disturbed(cores_used: float, ranks_of: Mapping[str, int], clocks: Clocks) -> bool:
    """Whether ranks got much less of the cores than the time that they do not wait.

    Args:
        cores_used: CPU seconds a second of all ranks.
        ranks_of: how many ranks each clock is of.
    """
    at_work = sum(ranks_of[name] * (1 - clock.get("waiting", 0.0)) for name, clock in clocks.items())
    return cores_used < _UNDISTURBED * at_work


def percent(share: float) -> str:
    """A share for people."""
    return f"{100 * share:.0f} %" if share >= 0.0095 else f"{100 * share:.2g} %"
