"""Whether numerical libraries would start more threads than a rank has cores, or pin them all to one."""

from __future__ import annotations

from collections.abc import Sequence

from hpcrl.doctor.cores import cores_each
from hpcrl.doctor.facts import PIN_VARIABLES, THREAD_VARIABLES, RankFacts, by_node
from hpcrl.doctor.finding import Finding, Level, Verdict, merge
from hpcrl.words import plural

_NAME = "threads"


def judge_threads(facts: Sequence[RankFacts]) -> Finding:
    """Thread variables and torch's own number against the cores of each rank."""
    nodes = by_node(facts)
    verdicts = []
    for node in nodes:
        groups: dict[Verdict, list[int]] = {}
        for rank, cores in zip(node, cores_each(node), strict=True):
            groups.setdefault(_judge_rank(rank, cores, len(node)), []).append(rank.rank)
        verdicts += [(verdict, ranks, node[0].host) for verdict, ranks in groups.items()]
    return merge(_NAME, verdicts, len(nodes))


def _judge_rank(rank: RankFacts, cores: int, neighbours: int) -> Verdict:
    strange = {name: value for name, value in _thread_variables(rank).items() if _threads(value) is None}
    if strange:
        return Verdict(Level.WRONG, f"{_settings(strange)} is no number of threads", f"Type unset {' '.join(strange)}.")
    forced = {name: value for name, value in _thread_variables(rank).items() if (_threads(value) or 0) > cores}
    if forced:
        says = f"{_settings(forced)}, but each has {plural(cores, 'core')}"
        return Verdict(Level.WRONG, says, _fewer_threads(forced))
    if rank.torch is None or rank.torch.trouble:
        return Verdict(Level.OK, f"no variable asks for more threads than the {plural(cores, 'core')} of each")
    if 0 < len(rank.torch.cores) < len(rank.cores):
        pins = {name: rank.variables[name] for name in PIN_VARIABLES if name in rank.variables}
        says = (
            f"loading torch pins each to {plural(len(rank.torch.cores), 'core')} of {len(rank.cores)}, the same for "
            f"all that may use the same ({_settings(pins) or 'no variable of OpenMP says so'})"
        )
        return Verdict(Level.WRONG, says, f"Type unset {' '.join(pins or PIN_VARIABLES)}.")
    return _judge_torch(rank.torch.threads, len(rank.cores), cores, neighbours)


def _judge_torch(threads: int, allowed: int, cores: int, neighbours: int) -> Verdict:
    if threads > allowed:
        says = f"torch starts {plural(threads, 'thread')} though each may use {plural(allowed, 'core')}"
        return Verdict(Level.WRONG, says, _fewer_threads(()))
    if threads > cores:
        says = (
            f"torch would start {plural(threads, 'thread')} in each of {plural(neighbours, 'rank')} that have "
            f"{plural(cores, 'core')} each; hpcrl limits its own (1 an actor, --learner-cores a learner)"
        )
        return Verdict(Level.NOTE, says)
    return Verdict(Level.OK, f"torch starts {plural(threads, 'thread')} where each has {plural(cores, 'core')}")


def _thread_variables(rank: RankFacts) -> dict[str, str]:
    return {name: rank.variables[name] for name in THREAD_VARIABLES if rank.variables.get(name, "").strip()}


def _threads(value: str) -> int | None:
    """The threads of a setting (of nested ones the first); None where it is no positive number."""
    first = value.split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None


def _settings(variables: dict[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in variables.items())


def _fewer_threads(names: Sequence[str] | dict[str, str]) -> str:
    return f"Type unset {' '.join(names)}, or export OMP_NUM_THREADS=1." if names else "Type export OMP_NUM_THREADS=1."
