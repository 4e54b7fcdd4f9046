"""Central inference: the learner answers for its actors, against a network on every actor."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from functools import partial

from benchmarks import training
from benchmarks.settings import CORES, Settings
from benchmarks.tables import Column, Measurement, Results, Table, paired_ratios

_NUM_ENVS = (64, 256, 1024)
_ACTORS = (1, 2)


def table(settings: Settings) -> Table:
    """Both kinds of inference, for each number of environments and actors."""
    workloads: dict[str, Callable[[int], Measurement]] = {}
    for actors in _ACTORS:
        for num_envs in _NUM_ENVS:
            for inference in ("actor", "learner"):
                workloads[_name(actors, num_envs, inference)] = partial(_measure, actors, num_envs, inference, settings)
    columns = [
        Column("actor_waiting_pct", "actors waiting %"),
        Column("learner_inference_pct", "learner answering %"),
        Column("learner_waiting_pct", "learner waiting %"),
    ]
    title = f"Central inference: impala, CartPole-v1 native, T 16, {CORES} cores"
    return Table("central", title, workloads, columns=columns, notes=_notes)


def _name(actors: int, num_envs: int, inference: str) -> str:
    return f"1 learner + {actors} actor{'s' * (actors > 1)}, {num_envs} envs, --inference {inference}"


def _measure(actors: int, num_envs: int, inference: str, settings: Settings, round_: int) -> Measurement:
    options = (
        *("--vector", "native", "--num-envs", num_envs, "--batch-envs", min(256, num_envs), "--unroll-length", 16),
        *("--ranks", 1 + actors, "--inference", inference, "--shared-encoder", "--no-episode-log"),
        *("--seed", round_ + 1),
    )
    # Few environments are stepped at a lower rate.
    env_steps = settings.native_env_steps * num_envs // (4 * max(_NUM_ENVS)) + settings.native_env_steps // 8
    run = training.train("impala", options, env_steps)
    wall = run.rows[-1]["time/elapsed_s"] - run.rows[0]["time/elapsed_s"]
    shares = {
        f"{name}_pct": 100 * run.total(f"time/{name}_s") / wall
        for name in ("actor_waiting", "learner_inference", "learner_waiting")
    }
    return run.measurement() | shares


def _notes(results: Results) -> Iterable[str]:
    for actors in _ACTORS:
        for num_envs in _NUM_ENVS:
            ours, theirs = (results.get(_name(actors, num_envs, kind), {}) for kind in ("learner", "actor"))
            if ratios := paired_ratios(ours, theirs):
                ratio = statistics.median(ratios)
                verdict = "pays" if ratio > 1.05 else "costs" if ratio < 0.95 else "is even"
                spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
                yield f"- 1 + {actors}, {num_envs} envs: learner / actor {ratio:.2f} ({spread}): it {verdict}"
