"""A slow actor among two learners with an actor each: what the others still do."""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from benchmarks import training
from benchmarks.settings import CORES, Settings
from benchmarks.tables import Column, Measurement, Results, Table
from hpcrl.cluster.launch import launcher_command, rank_environment

_LEARNER = ("learning", "reducing", "publishing", "inference", "transport", "waiting")
_RANKS, _SLOW_RANK = 4, 3
_NUM_ENVS = 16
#: Name: how many times as long the slow actor's unrolls take, what becomes of old ones, and the part of the steps.
_CASES: Mapping[str, tuple[float, str, float]] = {
    "without it (1000 times slower)": (1000, "drop", 1.0),
    "20 times slower, drop": (20, "drop", 1.0),
    "20 times slower, wait": (20, "wait", 0.2),
    "none slow": (1, "drop", 1.0),
}
_WITHOUT = next(iter(_CASES))


def table(settings: Settings) -> Table:
    """A fast world, one with a slow actor, and one in which it hardly comes."""
    workloads = {
        name: partial(_measure, factor, on_stale, part, settings) for name, (factor, on_stale, part) in _CASES.items()
    }
    columns = [
        Column("others_per_s", "the others, env steps/s", ",.0f"),
        Column("slow_pct", "slow one's share %", ".2f"),
        Column("acted", "unrolls", ",.0f"),
        Column("dropped", "dropped", ",.0f"),
        Column("lag_max", "max lag", ".0f"),
    ]
    title = f"A straggler: 2 learners x 2 actors on {CORES} cores, CartPole-v1 sync, --max-lag 6"
    return Table("straggler", title, workloads, (_WITHOUT,), columns, _notes)


def _measure(factor: float, on_stale: str, part: float, settings: Settings, round_: int) -> Measurement:
    options: Sequence[object] = (
        *("--learners", 2, "--num-envs", _NUM_ENVS, "--batch-envs", _NUM_ENVS, "--unroll-length", 16),
        *("--max-lag", 6, "--on-stale", on_stale, "--episode-log", "--seed", round_ + 1),
    )
    start = launcher_command(_RANKS, [sys.executable, "-m", "tests.faults", f"{_SLOW_RANK}:slow@{factor:g}"])
    environment = rank_environment(os.environ)
    env_steps = int(settings.env_steps * part / 2)
    run = training.train("impala", options, env_steps, 600, start, environment, iterations=3)
    acted, _, dropped, _ = run.unrolls
    share = _slow_share(run)
    # At a report all ranks meet, and the others wait until the slow one's unroll is full: that is no part of a run.
    seconds = sum(run.total(f"time/learner_{name}_s") for name in _LEARNER)
    return {
        **run.measurement(),
        "env_steps_per_s": run.steady_steps / seconds,
        "others_per_s": run.steady_steps * (1 - share) / seconds,
        "slow_pct": 100 * share,
        "acted": acted,
        "dropped": dropped,
        "lag_max": max(row.get("lag/max", 0.0) for row in run.rows),
    }


def _slow_share(run: training.Run) -> float:
    """The slow actor's part of the steps of finished episodes: it has the second half of the environments."""
    lengths = [(episode["env_index"] >= _NUM_ENVS / 2, episode["length"]) for episode in run.episodes]
    return sum(length for slow, length in lengths if slow) / sum(length for _, length in lengths)


def _notes(results: Results) -> Iterable[str]:
    yield "Rates are over the learners' time between reports. The slow one's share is that of the steps in finished"
    yield "episodes, dropped unrolls included."
    yield ""
    for name, rounds in results.items():
        ratios = [
            run["others_per_s"] / results[_WITHOUT][number]["others_per_s"]
            for number, run in rounds.items()
            if name != _WITHOUT and number in results.get(_WITHOUT, {})
        ]
        if ratios:
            share = 100 * statistics.median(ratios)
            yield f"- {name}: the others reach {share:.1f} % of what they do without it"
