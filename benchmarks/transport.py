"""What sending, receiving, publishing and fetching cost on one node, with unrolls of about 1 MB."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial

from benchmarks import training
from benchmarks.settings import Settings
from benchmarks.tables import Column, Measurement, Results, Table

_PARTS = ("actor_transport", "learner_transport", "learner_publishing")
# One learner and one actor: each is alone on its core, if there are two.
_OPTIONS = ("--ranks", 2, "--no-episode-log")
_VECTORS: dict[str, Sequence[object]] = {
    "native, 512 envs, T 32": (
        *("--vector", "native", "--num-envs", 512, "--batch-envs", 512, "--unroll-length", 32),
        "--shared-encoder",
    ),
    "sync, 128 envs, T 128": ("--vector", "sync", "--num-envs", 128, "--batch-envs", 128, "--unroll-length", 128),
}


def table(settings: Settings) -> Table:
    """Environments in numpy and in Python."""
    workloads = {name: partial(_measure, options, settings) for name, options in _VECTORS.items()}
    columns = [
        Column("unroll_mb", "MB an unroll", ".2f"),
        *(Column(f"{part}_pct", f"{part.replace('_', ' ')} %", ".2f") for part in _PARTS),
        Column("of_cpu_pct", "together, % of CPU s", ".2f"),
        Column("of_wall_pct", "% of rank s", ".2f"),
    ]
    title = "Transport on one node: impala, 1 learner + 1 actor"
    return Table("transport", title, workloads, columns=columns, notes=_notes)


def _measure(options: Sequence[object], settings: Settings, round_: int) -> Measurement:
    env_steps = settings.native_env_steps if "native" in options else settings.env_steps
    run = training.train("impala", (*_OPTIONS, *options, "--seed", round_ + 1), env_steps)
    # One actor and one learner, so that the mean of each role is the sum.
    seconds = {part: run.total(f"time/{part}_s") for part in _PARTS}
    wall = run.rows[-1]["time/elapsed_s"] - run.rows[0]["time/elapsed_s"]
    cpu = run.cores * wall
    num_envs, length = (options[options.index(name) + 1] for name in ("--num-envs", "--unroll-length"))
    unrolls = run.steady_steps / (num_envs * length)  # type: ignore[operator]
    transport = math.fsum(seconds.values())
    return {
        **run.measurement(),
        "unroll_mb": run.total("comm/unroll_bytes") / unrolls / 1e6,
        **{f"{part}_pct": 100 * spent / cpu for part, spent in seconds.items()},
        "of_cpu_pct": 100 * transport / cpu,
        "of_wall_pct": 100 * transport / (2 * wall),
    }


def _notes(results: Results) -> Iterable[str]:
    yield "Seconds of the phases are wall time, which is CPU time where each rank has a core to itself; elsewhere they"
    yield "are too high. CPU seconds are those of both ranks and the launcher. A learner's transport includes the copy"
    yield "of columns into its batch."
