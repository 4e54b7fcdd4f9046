"""hpcrl against other libraries on this machine: env steps per second, and the time until a problem is solved.

    python -m benchmarks.peers_table [--rounds 5] [--minutes M] [--peers-python PYTHON...]
        [--only NAME...] [--env-steps N] [--seconds S] [--time-limit S] [-o benchmarks/results/peers.md]

NAME is a table (cartpole, atari, robots) or a problem of `benchmarks.time_to_solve` (cartpole is both); by default the
tables, cartpole and cartpole-200. Of ours the best layouts take part, of the peers all that one of the interpreters
has; all take turns within a round. Every run becomes a line of peers.jsonl beside the table, with machine, versions and
commit. What that file has already is not run again, so that an interrupted comparison goes on where it was (--again:
what failed is run anew). With --minutes no run is started that is expected to end after that, and the table is made of
what there is.
Status: 0, 1 where a run failed, 2 for input that can't be run, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from benchmarks import atari, cartpole, robots, time_to_solve
from benchmarks.contestants import Layout, Peer, interpreters
from benchmarks.peer_results import DEFAULT_NAMES, Section, markdown
from benchmarks.settings import Settings
from benchmarks.turns import Line, Turn, missing, read, take
from hpcrl.errors import HpcrlError

_TABLES: dict[str, ModuleType] = {"cartpole": cartpole, "atari": atari, "robots": robots}
_OURS_S = 15.0
#: From the start of the process to the first env step, seconds, by the module of the peer.
_START_S = {"stable_baselines3": 10.0, "pufferlib": 10.0, "sample_factory": 25.0, "ray": 35.0}


def rates(name: str, settings: Settings) -> tuple[Section, list[Turn]]:
    """A table of throughput: the best of ours, and the peers that are installed."""
    module = _TABLES[name]
    table = module.table(settings)
    length = {"env_steps": settings.env_steps, "seconds": settings.seconds}
    turns = [
        Turn(name, workload, table.workloads[workload], length, {"layout": _layout(workload)}, _OURS_S)
        for workload in module.BEST
    ]
    here: dict[str, Peer] = {workload: peer for workload, peer in module.PEERS.items() if workload in table.workloads}
    for workload, peer in here.items():
        python = settings.python_with(peer.module)
        assert python is not None
        facts = {"layout": f"{peer.num_envs} envs", "peer": peer.versions(python), "settings": peer.settings}
        expected_s = settings.seconds + _START_S[peer.module]
        turns.append(Turn(name, workload, table.workloads[workload], length, facts, expected_s))
    absent = [workload for workload in module.PEERS if workload not in here]
    return Section(name, table.title, module.BEST, here, absent), turns


def main(words: Sequence[str] | None = None) -> int:
    """Measure, write and print; the exit status."""
    arguments = _parser().parse_args(words)
    # What is on its way is ended as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        settings = Settings(arguments.env_steps, arguments.seconds, interpreters(arguments.peers_python))
        comparisons = [rates(name, settings) for name in _TABLES if _is_meant(name, arguments.only)]
        comparisons += [
            time_to_solve.comparison(name, settings, arguments.time_limit)
            for name in time_to_solve.PROBLEMS
            if _is_meant(name, arguments.only)
        ]
        return compare(comparisons, arguments.rounds, arguments.out, arguments.minutes, arguments.again)
    except HpcrlError as error:
        print(f"benchmarks.peers_table: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("benchmarks.peers_table: stopped; the same command goes on", file=sys.stderr)
        return 128 + signal.SIGINT


def compare(
    comparisons: Sequence[tuple[Section, Sequence[Turn]]],
    rounds: int,
    out: Path,
    minutes: float | None = None,
    again: bool = False,
) -> int:
    """Run what the file beside `out` lacks, and write the table; the exit status.

    Args:
        minutes: no run is started that is expected to end later.
        again: whether what failed counts as lacking.
    """
    file = out.with_suffix(".jsonl")
    turns = [turn for _, more in comparisons for turn in more]
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = read(file, turns)
    kept = [line for line in lines if not (again and "failure" in line)]
    due = missing(turns, rounds, kept)
    expected_s = sum(turn.expected(kept) for _, turn in due)
    limit = "" if minutes is None else f", of which {minutes:g} min are given"
    print(
        f"{len(due)} of {rounds * len(turns)} runs to make in {file}, about {expected_s / 60:.0f} min{limit}",
        flush=True,
    )
    in_time = True
    try:
        in_time = take(due, lines, file, None if minutes is None else 60 * minutes)
    finally:
        text = markdown(_newest(lines), [section for section, _ in comparisons])
        out.write_text(text)
    print(f"\n{text}\nTable: {out}")
    if not in_time:
        print("The time is over; the same command goes on.", file=sys.stderr)
    return int(any("failure" in line for line in _newest(lines)))


def _newest(lines: Sequence[Line]) -> list[Line]:
    """The last of those of the same round and workload."""
    return list({(line["round"], line["table"], line["workload"]): line for line in lines}.values())


def _is_meant(name: str, only: Sequence[str] | None) -> bool:
    return name in (DEFAULT_NAMES if only is None else only)


def _layout(workload: str) -> str:
    """Which of the layouts a name of ours ends with, but for the precision."""
    known: list[Layout] = [cartpole.BOTH, cartpole.AHEAD, atari.TWO_AHEAD, atari.ALONE]
    return next(layout.name for layout in known if layout.name in workload)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.peers_table", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="runs of each workload")
    parser.add_argument("--minutes", type=float, help="what all of it may take")
    parser.add_argument(
        "--only", nargs="+", choices=[*dict.fromkeys([*_TABLES, *time_to_solve.PROBLEMS])], metavar="NAME"
    )
    parser.add_argument("--env-steps", type=int, default=Settings.env_steps, help="of a run on Python environments")
    parser.add_argument("--seconds", type=float, default=Settings.seconds, help="of a peer's run for its rate")
    parser.add_argument("--time-limit", type=float, help="seconds to solve a problem (default: the problem's)")
    parser.add_argument("--peers-python", nargs="+", default=(), metavar="PYTHON", help="interpreters with peers")
    parser.add_argument("--again", action="store_true", help="run anew what failed")
    parser.add_argument("-o", "--out", type=Path, default=Path("benchmarks/results/peers.md"), help="the table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
