"""The algorithms beside each other, with the same environments and network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from benchmarks import training
from benchmarks.settings import CORES, Settings
from benchmarks.tables import Column, Measurement, Table

_LAYOUTS: Mapping[str, Sequence[object]] = {
    "one process": ("--ranks", 1),
    f"{CORES} ranks that do both": ("--ranks", CORES, "--placement", "colocated"),
    f"1 + {CORES} ranks": ("--ranks", 1 + CORES),
}
_NATIVE = ("--vector", "native", "--num-envs", 1024, "--shared-encoder")
#: Name: algorithm, layout, options; the same number of steps to an update wherever an algorithm lets choose it.
_SYNC_CASES: Mapping[str, tuple[str, str, Sequence[object]]] = {
    f"{algorithm}, {layout}": (algorithm, layout, ("--num-envs", 32))
    for layout in _LAYOUTS
    for algorithm in ("a2c", "a3c", "impala", "appo")
}
_NATIVE_CASES: Mapping[str, tuple[str, str, Sequence[object]]] = {
    f"1024 envs in numpy: {algorithm}, {layout}": (algorithm, layout, (*_NATIVE, *batch))
    for layout in list(_LAYOUTS)[1:]
    for algorithm, batch in (("a2c", ()), ("a3c", ()), ("impala", ("--batch-envs", 512)))
}


def table(settings: Settings) -> Table:
    """Each algorithm on each layout."""
    workloads = {}
    for cases, env_steps in ((_SYNC_CASES, settings.env_steps), (_NATIVE_CASES, settings.native_env_steps)):
        for name, (algorithm, layout, options) in cases.items():
            workloads[name] = partial(_measure, algorithm, (*_LAYOUTS[layout], *options), env_steps)
    columns = [
        Column("solved_env_steps", "env steps to 475", ",.0f"),
        Column("solved_s", "s to 475"),
        Column("lag_mean", "mean lag", ".2f"),
    ]
    against = [name for name in workloads if "a3c" in name]
    title = f"Algorithms: CartPole-v1, 2 x 64 tanh, T 32, 32 environments in Python, {CORES} cores"
    return Table("algorithms", title, workloads, against, columns)


def _measure(algorithm: str, options: Sequence[object], env_steps: int, round_: int) -> Measurement:
    run = training.train(algorithm, (*options, "--seed", round_ + 1, "--no-episode-log"), env_steps, iterations=40)
    return run.measurement() | run.solved() | {"lag_mean": run.rows[-1].get("lag/mean", 0.0)}
