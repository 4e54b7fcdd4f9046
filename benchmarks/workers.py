"""a3c by its workers and the owners of its weights: gradients a second, lag, and how busy owners are."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from benchmarks import training
from benchmarks.settings import CORES, Settings
from benchmarks.tables import Column, Measurement, Results, Table, median_of

_WORKERS = (1, 2, 3, 4, 8)
_OWNERS = (1, 2)


def table(settings: Settings) -> Table:
    """Each number of workers and owners."""
    workloads = {
        _name(workers, owners): partial(_measure_workers, workers, owners, settings)
        for owners in _OWNERS
        for workers in _WORKERS
    }
    columns = [
        Column("gradients_per_s", "gradients/s", ",.0f"),
        Column("lag_mean", "mean lag", ".2f"),
        Column("lag_max", "max lag", ".0f"),
        Column("spread_max", "max spread", ".0f"),
        Column("owner_busy_pct", "owners busy %"),
    ]
    title = f"a3c by workers: CartPole-v1 in Python, 8 environments a worker, T 32, {CORES} cores"
    return Table("workers", title, workloads, columns=columns, notes=_notes)


def _name(workers: int, owners: int) -> str:
    return f"{workers} worker{'s' * (workers > 1)}, {owners} owner{'s' * (owners > 1)}"


def _measure_workers(workers: int, owners: int, settings: Settings, round_: int) -> Measurement:
    layout = ("--ranks", workers + owners, "--learners", owners, "--num-envs", 8 * workers)
    options = (*layout, "--seed", round_ + 1, "--no-episode-log")
    run = training.train("a3c", options, settings.env_steps // 2, iterations=4)
    wall = run.rows[-1]["time/elapsed_s"] - run.rows[0]["time/elapsed_s"]
    updates = run.rows[-1]["learner_updates"] - run.rows[0]["learner_updates"]
    busy = sum(run.total(f"time/learner_{phase}_s") for phase in ("learning", "publishing"))
    return run.measurement() | {
        "gradients_per_s": updates / wall,
        "lag_mean": run.rows[-1]["lag/mean"],
        "lag_max": max(row["lag/max"] for row in run.rows),
        "spread_max": max(row["lag/shard_spread_max"] for row in run.rows),
        "owner_busy_pct": 100 * busy / wall,
    }


def _notes(results: Results) -> Iterable[str]:
    for owners in _OWNERS:
        one = median_of(results, _name(1, owners), "gradients_per_s")
        if one is None:
            continue
        for workers in _WORKERS[1:]:
            many = median_of(results, _name(workers, owners), "gradients_per_s")
            if many is not None:
                yield f"- {_name(workers, owners)}: {many / one:.2f} x the gradients/s of one worker"
