"""Tables of what was measured against other libraries: rates, times to a goal, and the ratios within each round."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from benchmarks.contestants import Peer
from benchmarks.efficiency import count
from benchmarks.tables import RATE
from benchmarks.turns import Line
from benchmarks.worlds import table

_NEVER = "not reached"
#: Of ours, whose sum is all of the ranks' time.
_PHASES = ("acting_us", "inference_us", "learning_us", "transport_us", "waiting_us")
_ONE_CORE, _ALL_CORES = (0.85, 1.15), 0.9
_LONGEST = 160
#: Options of the command, by the length of a run that they set.
_LENGTHS = {"--seconds": "seconds", "--env-steps": "env_steps", "--time-limit": "limit_s"}
#: What is compared by default, see `benchmarks.peers_table`.
DEFAULT_NAMES = {"cartpole", "atari", "robots", "cartpole-200"}
#: Behind the name of a problem: its table.
SOLVED = " solved"

Rounds = Mapping[int, Line]


class Section(NamedTuple):
    """A comparison: ours and the peers that take part, by name; and those that no interpreter has.

    Attributes:
        goal: mean return that is to be reached; None where rates are compared.
    """

    name: str
    title: str
    ours: Sequence[str]
    peers: Mapping[str, Peer]
    absent: Sequence[str]
    goal: float | None = None


def markdown(lines: Sequence[Line], sections: Iterable[Section]) -> str:
    """All sections that have lines, where and when they were measured, and the peers' settings."""
    parts = ["# hpcrl against other libraries", "", *_heading(lines)]
    for section in sections:
        rounds = {name: _rounds(lines, section.name, name) for name in (*section.ours, *section.peers)}
        if not any(rounds.values()):
            continue
        parts += ["", f"## {section.title}", "", *(_rates(rounds) if section.goal is None else _times(rounds)), ""]
        for title, ratio in _RATES if section.goal is None else _TIMES:
            parts += _ratios(section, rounds, title, ratio)
        parts += _settings(section, rounds)
        if section.absent:
            parts.append(f"- Not installed here: {', '.join(section.absent)}.")
    return "\n".join(parts) + "\n"


def _heading(lines: Sequence[Line]) -> list[str]:
    if not lines:
        return ["Nothing was measured."]
    machines = sorted({f"{line['machine']['cpu']}, {line['machine']['cores']} cores" for line in lines})
    commits = sorted({str(line["git_commit"]) for line in lines})
    load = statistics.median(line["machine"]["load"] for line in lines)
    rounds = count(len({line["round"] for line in lines}), "round")
    versions = lines[-1]["versions"]
    started = sorted(line["started"] for line in lines)
    return [
        f"    {_command(lines)}",
        "",
        "Round r is seed r + 1, and all take turns within a round. Medians (least - most); ratios are medians of those",
        "within a round. Cores and MB are of all processes of a run. What binds ours is the ranks' longest phase.",
        "",
        f"{'; '.join(machines)}, load {load:.1f}; hpcrl {', '.join(commits)}; Python {versions['python']}, torch "
        f"{versions['torch']}; {rounds}, {started[0]} to {started[-1]}.",
    ]


def _command(lines: Sequence[Line]) -> str:
    """What made the lines, with the lengths of runs that all tables have in common."""
    words = ["python -m benchmarks.peers_table"]
    names = dict.fromkeys(line["table"].removesuffix(SOLVED) for line in lines)
    if set(names) != DEFAULT_NAMES:
        words.append(f"--only {' '.join(names)}")
    words.append(f"--rounds {len({line['round'] for line in lines})}")
    for option, key in _LENGTHS.items():
        values = {line["length"][key] for line in lines if key in line["length"]}
        words += [f"{option} {value:.12g}" for value in values if len(values) == 1]
    return " ".join([*words, "--peers-python PYTHON..."])


def _rounds(lines: Iterable[Line], section: str, workload: str) -> Rounds:
    return {line["round"]: line for line in lines if (line["table"], line["workload"]) == (section, workload)}


def _rates(rounds: Mapping[str, Rounds]) -> list[str]:
    rows = [["", "env steps/s", "cores", "MB", "bound by", "rounds"]]
    for name, runs in rounds.items():
        good = _good(runs)
        if runs and not good:
            rows.append([name, _why(runs), "", "", "", f"0 of {len(runs)}"])
        elif good:
            rates = _spread([run[RATE] for run in good], ",.0f")
            rows.append([name, rates, *_machine(good), _bound(good), f"{len(good)} of {len(runs)}"])
    return [table(rows)]


def _times(rounds: Mapping[str, Rounds]) -> list[str]:
    rows = [["", "reached", "s from the start", "s from the first step", "env steps", "cores", "MB"]]
    for name, runs in rounds.items():
        good = _good(runs)
        if runs and not good:
            rows.append([name, f"0 of {len(runs)}", _why(runs), "", "", "", ""])
        elif good:
            reached = f"{sum(bool(run['reached']) for run in good)} of {len(runs)}"
            spreads = [_spread([_time(run, "from_start_s") for run in good], ",.1f")]
            spreads.append(_spread([_time(run, "solved_s") for run in good], ",.1f"))
            spreads.append(_spread([_time(run, "env_steps") for run in good], ",.0f"))
            rows.append([name, reached, *spreads, *_machine(good)])
    return [table(rows)]


def _good(runs: Rounds) -> list[Line]:
    return [run for run in runs.values() if "failure" not in run]


def _why(runs: Rounds) -> str:
    """How the newest failure ended, and the last line of what it said, of an exception where there is one."""
    head, *others = [text.strip() for text in runs[max(runs)]["failure"].splitlines() if text.strip()] or [""]
    said = [text for text in others if "Error" in text] or others
    words = ": ".join([head.rpartition(": ")[2], *said[-1:]])
    return "failed: " + words.replace("|", "/")[:_LONGEST]


def _time(run: Line, key: str) -> float:
    return run[key] if run["reached"] else math.inf


def _machine(runs: Sequence[Line]) -> list[str]:
    cores = [run["cores"] for run in runs if not math.isnan(run["cores"])]
    return [f"{statistics.median(cores):.1f}" if cores else "", f"{statistics.median(r['peak_mb'] for r in runs):,.0f}"]


def _bound(runs: Sequence[Line]) -> str:
    """Of ours the longest phase; of a peer how much of the cores it uses, where that says something."""
    if all(phase in runs[-1] for phase in _PHASES):
        medians = {phase: statistics.median(run[phase] for run in runs) for phase in _PHASES}
        longest = max(_PHASES, key=lambda phase: medians[phase])
        return f"{longest.removesuffix('_us')} ({100 * medians[longest] / sum(medians.values()):.0f} %)"
    used = statistics.median(run["cores"] for run in runs)
    if _ONE_CORE[0] <= used <= _ONE_CORE[1]:
        return "one core"
    return "all cores" if used >= _ALL_CORES * runs[-1]["machine"]["cores"] else ""


def _faster(ours: Line, theirs: Line) -> float:
    return ours[RATE] / theirs[RATE]


def _sooner(key: str) -> Callable[[Line, Line], float]:
    """Their time to ours; NaN where neither is there in time."""

    def ratio(ours: Line, theirs: Line) -> float:
        mine, other = _time(ours, key), _time(theirs, key)
        return math.nan if math.isinf(mine) and math.isinf(other) else other / mine

    return ratio


#: Titles of the tables of ratios, and what they make of two runs of a round.
_RATES: Sequence[tuple[str, Callable[[Line, Line], float]]] = [("env steps/s, ours to theirs", _faster)]
_TIMES: Sequence[tuple[str, Callable[[Line, Line], float]]] = [
    ("s from the start, theirs to ours", _sooner("from_start_s")),
    ("s from the first step, theirs to ours", _sooner("solved_s")),
]


def _ratios(
    section: Section, rounds: Mapping[str, Rounds], title: str, ratio: Callable[[Line, Line], float]
) -> list[str]:
    ours = [name for name in section.ours if _good(rounds[name])]
    peers = [name for name in section.peers if _good(rounds[name])]
    if not ours or not peers:
        return []
    rows = [[title, *ours]]
    for peer in peers:
        rows.append([peer, *(_spread(_paired(rounds[name], rounds[peer], ratio), ".2f") for name in ours)])
    return [table(rows), ""]


def _paired(ours: Rounds, theirs: Rounds, ratio: Callable[[Line, Line], float]) -> list[float]:
    both = sorted(ours.keys() & theirs.keys())
    pairs = [(ours[number], theirs[number]) for number in both]
    found = [ratio(mine, other) for mine, other in pairs if "failure" not in mine and "failure" not in other]
    return [value for value in found if not math.isnan(value)]


def _spread(values: Sequence[float], form: str) -> str:
    if not values:
        return ""
    numbers = (statistics.median(values), min(values), max(values))
    median, least, most = (_NEVER if math.isinf(number) else format(number, form) for number in numbers)
    return median if least == most else f"{median} ({least} - {most})"


def _settings(section: Section, rounds: Mapping[str, Rounds]) -> list[str]:
    found = []
    for name, peer in section.peers.items():
        if rounds[name]:
            newest = rounds[name][max(rounds[name])].get("peer", {})
            versions = ", ".join(f"{what} {version}" for what, version in newest.items())
            found.append(f"- {name} ({versions}): {peer.settings}.")
    return found
