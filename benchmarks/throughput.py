"""How fast hpcrl is: environment steps per second of wall time in steady state, learning included.

    python -m benchmarks.throughput [--rounds 5] [--only NAME...] [--env-steps N] [--peers-python PYTHON...]

NAME is a table (cartpole, python-env, algorithms, workers, transport, straggler, central, limits, atari, robots,
recording) or a part of a workload's name. Every round runs all workloads one after the other, so that what else the
machine does meets all of them; ratios are taken within a round. Prints a JSON line for each run, and the tables at the
end. Peers take part where --peers-python names an interpreter that has them (stable-baselines3, pufferlib,
sample-factory, ray; several may be named).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time

from benchmarks import (
    algorithms,
    atari,
    cartpole,
    central,
    limits,
    python_env,
    recording,
    robots,
    straggler,
    transport,
    workers,
)
from benchmarks.children import CommandFailed
from benchmarks.settings import CORES, Settings
from benchmarks.tables import Measurement, Table, markdown

_TABLES = (cartpole, python_env, algorithms, workers, transport, straggler, central, limits, atari, robots, recording)


def main() -> int:
    """Run, print, and say by the status whether a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each workload")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="tables or parts of workloads' names")
    parser.add_argument("--env-steps", type=int, default=Settings.env_steps, help="of a run on Python environments")
    parser.add_argument("--seconds", type=float, default=Settings.seconds, help="of peers, and environments alone")
    parser.add_argument("--peers-python", nargs="+", default=(), metavar="PYTHON", help="interpreters with peers")
    parser.add_argument("--list", action="store_true", help="list the workloads")
    arguments = parser.parse_args()
    settings = Settings(arguments.env_steps, arguments.seconds, arguments.peers_python)
    chosen = [(table, _chosen(table, arguments.only)) for table in (module.table(settings) for module in _TABLES)]
    chosen = [(table, names) for table, names in chosen if names]
    if arguments.list:
        for table, names in chosen:
            print(*(f"{table.name}: {name}" for name in names), sep="\n")
        return 0
    results, failures = _rounds(chosen, arguments.rounds)
    print(f"\n{CORES} cores, {platform.machine()}, Python {platform.python_version()}; {arguments.rounds} rounds.")
    print("Medians; ratios are medians of those within a round (least-most).\n")
    for table, _ in chosen:
        print(markdown(table, results[table.name]) + "\n")
    return int(failures > 0)


def _chosen(table: Table, only: list[str] | None) -> list[str]:
    if not only or table.name in only:
        return list(table.workloads)
    return [name for name in table.workloads if any(part in name for part in only)]


def _rounds(
    chosen: list[tuple[Table, list[str]]], rounds: int
) -> tuple[dict[str, dict[str, dict[int, Measurement]]], int]:
    """Measurements by table, workload and round, and how many runs failed."""
    results: dict[str, dict[str, dict[int, Measurement]]] = {}
    failures = 0
    for number in range(rounds):
        for table, names in chosen:
            for name in names:
                start = time.monotonic()
                facts = {"table": table.name, "workload": name, "round": number, "load": os.getloadavg()[0]}
                try:
                    measured = table.workloads[name](number)
                except CommandFailed as failure:
                    failures += 1
                    print(f"{table.name}: {name}: {failure}", file=sys.stderr, flush=True)
                    continue
                results.setdefault(table.name, {}).setdefault(name, {})[number] = measured
                print(json.dumps(facts | measured | {"took_s": round(time.monotonic() - start, 1)}), flush=True)
    return {table.name: results.get(table.name, {}) for table, _ in chosen}, failures


if __name__ == "__main__":
    sys.exit(main())
