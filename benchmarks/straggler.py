"""A slow actor among two learners with an actor each: what the others still do."""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from benchmarks import training
from benchmarks.settings import CORES, Settings
from benchmarks.tables import RATE, Column, Measurement, Results, Table
from hpcrl.cluster.launch import launcher_command, rank_environment

_RANKS, _SLOW_RANK = 4, 3
_NUM_ENVS, _UNROLL_LENGTH = 16, 16
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
        *("--learners", 2, "--num-envs", _NUM_ENVS, "--batch-envs", _NUM_ENVS, "--unroll-length", _UNROLL_LENGTH),
        *("--max-lag", 6, "--on-stale", on_stale, "--episode-log", "--profile", "--seed", round_ + 1),
    )
    start = launcher_command(_RANKS, [sys.executable, "-m", "tests.faults", f"{_SLOW_RANK}:slow@{factor:g}"])
    environment = rank_environment(os.environ)
    env_steps = int(settings.env_steps * part / 2)
    run = training.train("impala", options, env_steps, 600, start, environment, iterations=2)
    acted, _, dropped, _ = run.unrolls
    share = _slow_share(run)
    rate = _rate_between_meetings(run)
    return {
        **run.measurement(),
        "with_pauses_per_s": run.measurement()[RATE],
        "env_steps_per_s": rate,
        "others_per_s": rate * (1 - share),
        "slow_pct": 100 * share,
        "acted": acted,
        "dropped": dropped,
        "lag_max": max(row.get("lag/max", 0.0) for row in run.rows),
    }


def _rate_between_meetings(run: training.Run) -> float:
    """Env steps per second from batch to batch, without the pauses in which all ranks meet for a report.

    There the others wait until the slow one's unroll is full, which is a matter of how often one asks for reports. The
    first fifth is the start.
    """
    batches, last, seconds, met = 0, None, 0.0, False
    for span in run.spans[len(run.spans) // 5 :]:
        met |= span["name"] in ("reporting", "saving", "evaluating")
        if span["name"] == "publishing":
            if last is not None and not met:
                batches, seconds = batches + 1, seconds + (span["ts"] - last) / 1e6
            last, met = span["ts"], False
    return batches * _NUM_ENVS * _UNROLL_LENGTH / seconds


def _slow_share(run: training.Run) -> float:
    """The slow actor's part of the steps of finished episodes: it has the second half of the environments."""
    lengths = [(episode["env_index"] >= _NUM_ENVS / 2, episode["length"]) for episode in run.episodes]
    return sum(length for slow, length in lengths if slow) / sum(length for _, length in lengths)


def _notes(results: Results) -> Iterable[str]:
    yield "Rates are those of rank 0 from batch to batch, without the pauses for reports. The slow one's share is that"
    yield "of the steps in finished episodes, dropped unrolls included. Cores and MB are those of the whole run."
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
