"""Ranks that measure, started here or on hosts that are network namespaces; their JSON lines, and tables of them."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import children
from hpcrl.cluster.launch import inside_mpi, launcher_command, rank_environment

if TYPE_CHECKING or inside_mpi(os.environ):
    # These start MPI, which the process that starts the ranks must not.
    from hpcrl.cluster.mpi import Comm, abort, library
    from hpcrl.provenance import cpu_model, git_commit, package_versions

Measurement = dict[str, Any]

_THREADS = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
_MOST_S = 590.0


def start(
    module: str, words: Sequence[object], ranks: int, hosts: Mapping[str, int] | None = None, timeout: float = _MOST_S
) -> list[Measurement]:
    """What `python -m benchmarks.MODULE WORDS` says on so many ranks.

    Args:
        hosts: ranks of every host; none for this machine itself.

    Raises:
        CommandFailed: the ranks failed, or were not over in time.
    """
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, words)]
    environment = rank_environment(os.environ) | _THREADS
    if hosts is None:
        return _parse(children.run(launcher_command(ranks, command), timeout, environment).output)
    from tests.hosts import run_on_hosts

    done = run_on_hosts(command, hosts, timeout, environment)
    if done.returncode:
        raise children.CommandFailed(f"status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return _parse(done.stdout)


def _parse(output: str) -> list[Measurement]:
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def measure_on_ranks(measure: Callable[[], None]) -> int:
    """Measure on every rank; an exception ends them all, as the others would wait for this one for ever."""
    try:
        measure()
    except Exception:
        traceback.print_exc()
        abort(1)
    return 0


def pin(comm: Comm) -> None:
    """Keep to one core, the ranks in turn: schedulers may leave two that never sleep on the same one. Local."""
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpus[comm.rank % len(cpus)]})


def facts(comm: Comm) -> Measurement:
    """What every line says of where it was measured. Collective over `comm`."""
    hosts = comm.allgather(os.uname().nodename)
    return {
        "machine": {"cpu": cpu_model(), "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]},
        "layout": {"ranks": comm.size, "nodes": len(set(hosts))},
        "versions": {"python": sys.version.split()[0], "mpi": library(), **package_versions()},
        "git_commit": git_commit(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def in_turn(
    ways: Mapping[str, Callable[[], float]], comm: Comm, rounds: int, before: Callable[[], object] = lambda: None
) -> dict[str, np.ndarray] | None:
    """Seconds of every way in every round on the rank that needs most, float64 [rounds]; on rank 0. Collective.

    Args:
        ways: what begins on all ranks at once, and returns seconds; one round ahead is not counted.
        before: done ahead of each, not counted.
    """
    own: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name in ways if number % 2 else reversed(list(ways)):
            before()
            comm.Barrier()
            own[name].append(ways[name]())
    all_ = comm.gather({name: seconds[1:] for name, seconds in own.items()})
    return None if all_ is None else {name: np.max([of_rank[name] for of_rank in all_], axis=0) for name in ways}


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """Seconds that `work` takes."""

    def measure() -> float:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    return measure


def summary(seconds: np.ndarray) -> Measurement:
    """Of the rounds of one way."""
    low, median, high = 1e6 * np.quantile(seconds, (0.1, 0.5, 0.9))
    return {"median_us": float(median), "low_us": float(low), "high_us": float(high), "rounds": len(seconds)}


def report(facts: Measurement, measured: Measurement) -> None:
    """Print a line."""
    print(json.dumps(facts | measured), flush=True)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown; the first row is the head, and the first column text."""
    ruled = [rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in ruled)


def heading(found: Sequence[Measurement]) -> str:
    """One line on where all of this was measured."""
    first = found[0]
    machine, versions = first["machine"], first["versions"]
    loads = statistics.median(line["machine"]["load"] for line in found)
    return (
        f"{machine['cpu']}, {machine['cores']} cores, load {loads:.1f}; {versions['mpi']}, torch {versions['torch']}, "
        f"mpi4py {versions['mpi4py']}; hpcrl {first['git_commit']}; {first['started']}"
    )


def size_name(nbytes: int) -> str:
    """A size for people."""
    for unit, name in ((1 << 20, "MB"), (1 << 10, "KB")):
        if nbytes >= unit:
            return f"{nbytes / unit:,.3g} {name}"
    return f"{nbytes} B"


def rows_of(found: Sequence[Measurement], **facts: object) -> list[Measurement]:
    """Those lines that say all of this."""
    return [line for line in found if facts.items() <= line.items()]
