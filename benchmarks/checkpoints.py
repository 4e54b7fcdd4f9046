"""What a checkpoint costs: how long training stands still for it, how long it takes to write, and how large it is.

    python -m benchmarks.checkpoints [--rounds 5] [--before FOLDER] [--sizes 24 500] [--out FILE]

Trains networks of so many MB of weights in one process, with four checkpoints a run; --before names another checkout,
whose runs take turns with ours. Pauses are those of the checkpoints within the run; the end of a run waits for its last
one. Prints a JSON line for each run (into FILE too), and a table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

from benchmarks import training
from benchmarks.children import CommandFailed
from benchmarks.settings import CORES
from benchmarks.tables import Column, Measurement, Results, Table, markdown

_CHECKPOINTS = 4
_UPDATE_STEPS = 4 * 8
_OPTIONS = ("--vector", "native", "--num-envs", 4, "--unroll-length", 8, "--profile")
#: Megabytes of weights: widths of the hidden layers, of policy and value each, and updates between two checkpoints.
_SIZES = {24: (1700, 60), 500: (7900, 4)}


def main() -> int:
    """Run, print, and say by the status whether a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each workload")
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="another checkout to compare with")
    parser.add_argument("--sizes", type=int, nargs="+", choices=_SIZES, default=list(_SIZES), metavar="MB")
    parser.add_argument("--out", type=Path, metavar="FILE", help="gets the JSON lines too")
    arguments = parser.parse_args()
    table = _table(arguments.sizes, arguments.before)
    results: dict[str, dict[int, Measurement]] = {name: {} for name in table.workloads}
    failures = 0
    for number in range(arguments.rounds):
        for name in list(table.workloads)[:: -1 if number % 2 else 1]:
            try:
                results[name][number] = table.workloads[name](number)
            except CommandFailed as failure:
                failures += 1
                print(f"{name}: {failure}", file=sys.stderr, flush=True)
                continue
            facts = {"workload": name, "round": number, "load": os.getloadavg()[0]}
            line = json.dumps(facts | results[name][number])
            print(line, flush=True)
            if arguments.out is not None:
                with arguments.out.open("a") as file:
                    file.write(line + "\n")
    print("\n" + markdown(table, results))
    return int(failures > 0)


def _table(sizes: Sequence[int], before: Path | None) -> Table:
    checkouts = {"before": before, "now": None} if before is not None else {"now": None}
    workloads = {
        f"{size} MB, {name}": partial(_measure, size, checkout)
        for size in sizes
        for name, checkout in checkouts.items()
    }
    columns = [
        Column("pause_ms", "pause ms"),
        Column("pause_most_ms", "longest"),
        Column("write_s", "write s", ",.2f"),
        Column("file_mb", "file MB"),
    ]
    title = f"Checkpoints: a2c in one process on {CORES} cores, CartPole-v1 native, RMSProp"
    return Table("checkpoints", title, workloads, (), columns, _notes)


def _measure(size: int, checkout: Path | None, round_: int) -> Measurement:
    width, updates = _SIZES[size]
    every = updates * _UPDATE_STEPS
    options = (*_OPTIONS, "--hidden-sizes", width, width, "--checkpoint-every", every, "--seed", round_ + 1)
    start = (sys.executable, "-m", "hpcrl") if checkout is None else (sys.executable, "-c", _elsewhere(checkout))
    # The last iteration shows what the checkpoint before it took; the one at the end is no part of it.
    length = (_CHECKPOINTS + 1) * every
    run = training.train("a2c", options, length, 600, start, iterations=_CHECKPOINTS + 1)
    pauses = _pauses(run)[:_CHECKPOINTS]
    writes = [row["time/checkpoint_write_s"] for row in run.rows if row.get("time/checkpoint_write_s")]
    written = {"write_s": statistics.median(writes)} if writes else {}
    return {
        **run.measurement(),
        "pause_ms": 1e3 * statistics.median(pauses),
        "pause_most_ms": 1e3 * max(pauses),
        "file_mb": run.checkpoint_mb,
        **written,
    }


def _elsewhere(checkout: Path) -> str:
    """A program that is the command hpcrl of another checkout."""
    path = str(checkout.resolve())
    return f"import sys; sys.path.insert(0, {path!r}); from hpcrl.commands.main import main; sys.exit(main())"


def _pauses(run: training.Run) -> list[float]:
    """Seconds that rank 0 spent on each checkpoint, in order."""
    groups = groupby(run.spans, key=lambda span: span["name"] == "saving")
    return [sum(span["dur"] for span in spans) / 1e6 for saving, spans in groups if saving]


def _notes(results: Results) -> Iterable[str]:
    for name, rounds in results.items():
        before = results.get(name.replace("now", "before"), {})
        ratios = [run["pause_ms"] / before[number]["pause_ms"] for number, run in rounds.items() if number in before]
        if name.endswith("now") and ratios:
            spread = f"{min(ratios):.3f}-{max(ratios):.3f}"
            yield f"- {name}: a pause is {statistics.median(ratios):.3f} ({spread}) of one before"


if __name__ == "__main__":
    sys.exit(main())
