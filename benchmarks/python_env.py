"""A Python environment of about 10 us a step: training against what the same cores step without any learning."""

from __future__ import annotations

import itertools
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from benchmarks import children, training
from benchmarks.settings import CORES, Settings
from benchmarks.tables import RATE, Column, Measurement, Results, Table, median_of, paired_ratios

_LAYOUTS: Mapping[str, Sequence[object]] = {
    "1 learner + 2 actors": ("--ranks", 3),
    "2 ranks that do both": ("--ranks", 2, "--placement", "colocated"),
}
_STEPPERS = {"hpcrl": "SequentialEnvs", "gymnasium": "SyncVectorEnv"}
_NUM_ENVS = (128, 512)
# Nothing is learned at this rate, so that episodes stay as short as those of random actions: resets cost the same.
_STANDSTILL = ("--learning-rate", 1e-12)
_ACTOR = ("acting", "inference", "transport", "waiting")
_LEARNER = ("learning", "reducing", "publishing", "inference", "transport", "waiting")


def table(settings: Settings) -> Table:
    """Our layouts and both kinds of stepping, for every number of environments."""
    workloads: dict[str, Callable[[int], Measurement]] = {}
    for num_envs in _NUM_ENVS:
        for kind, name in _STEPPERS.items():
            workloads[_alone(name, num_envs)] = partial(_step, kind, num_envs, settings)
        for name, layout in _LAYOUTS.items():
            workloads[_trained(name, num_envs)] = partial(_train, num_envs, layout, settings)
    title = f"A Python environment: CartPole-v1, --vector sync, {CORES} cores; actions stay random"
    return Table("python-env", title, workloads, columns=_columns(), notes=_notes)


def _alone(stepper: str, num_envs: int) -> str:
    return f"{stepper}, {num_envs} envs, random actions"


def _trained(layout: str, num_envs: int) -> str:
    return f"impala, {num_envs} envs, {layout}"


def _columns() -> list[Column]:
    names = [("actor", name) for name in _ACTOR] + [("learner", name) for name in _LEARNER]
    return [Column(f"{role}_{name}_us", f"{role} {name} us", ".2f") for role, name in names]


def _step(kind: str, num_envs: int, settings: Settings, _: int) -> Measurement:
    per_process = num_envs // CORES
    words = ["-m", "benchmarks.stepping", kind, per_process, settings.seconds, CORES]
    done = children.run([sys.executable, *map(str, words)], 60 + 2 * settings.seconds)
    return {**json.loads(done.output.splitlines()[-1]), "cores": done.cores, "peak_mb": done.peak_mb}


def _train(num_envs: int, layout: Sequence[object], settings: Settings, round_: int) -> Measurement:
    options = (
        "--num-envs",
        num_envs,
        "--batch-envs",
        num_envs,
        "--seed",
        round_ + 1,
        "--no-episode-log",
        "--shared-encoder",
    )
    run = training.train("impala", (*options, *_STANDSTILL, *layout), settings.env_steps)
    split = "--placement" not in layout
    actors, learners = (CORES, 1) if split else (CORES, CORES)
    times = {f"actor_{name}_us": _us(run, f"time/actor_{name}_s", actors) for name in _ACTOR}
    times |= {f"learner_{name}_us": _us(run, f"time/learner_{name}_s", learners) for name in _LEARNER}
    if not split:
        # A rank that does both has one clock: what both roles name is the same time.
        for name in ("inference", "transport", "waiting"):
            del times[f"learner_{name}_us"]
    return {**run.measurement(), **times, "accounted_us": sum(times.values()), "ranks": learners + actors * split}


def _us(run: training.Run, column: str, ranks: int) -> float:
    """Microseconds of all ranks together for an env step."""
    return run.total(column) * ranks / run.steady_steps * 1e6


def _notes(results: Results) -> Iterable[str]:
    yield "Microseconds are those of all ranks of the role together for one env step, wall time in the phase."
    yield ""
    for num_envs, layout in itertools.product(_NUM_ENVS, _LAYOUTS):
        name = _trained(layout, num_envs)
        rate, ranks, accounted = (median_of(results, name, key) for key in (RATE, "ranks", "accounted_us"))
        if not (rate and ranks and accounted):
            continue
        shares = [
            f"{100 * statistics.median(ratios):.0f} % ({100 * min(ratios):.0f}-{100 * max(ratios):.0f}) of {stepper}"
            for stepper in _STEPPERS.values()
            if (ratios := paired_ratios(results[name], results.get(_alone(stepper, num_envs), {})))
        ]
        times = f"{accounted:.2f} us accounted for of {ranks * 1e6 / rate:.2f} us ({ranks:.0f} ranks)"
        yield f"- {name}: " + "; ".join([*shares, times])
