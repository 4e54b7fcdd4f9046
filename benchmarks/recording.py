"""What recording trajectories costs: the same runs with and without it, taking turns within a round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from benchmarks import training
from benchmarks.settings import CORES, Settings
from benchmarks.tables import Column, Measurement, Results, Table, paired_ratios

_BOTH = ("--ranks", 2, "--placement", "colocated")
_PONG = ("--preset", "pong", "--model", "nature", "--precision", "bfloat16")
#: Name: algorithm, options, and env steps in proportion to those of CartPole in Python.
_RUNS: Mapping[str, tuple[str, Sequence[object], float]] = {
    "CartPole-v1 in Python, a2c, 2 ranks that do both": ("a2c", ("--num-envs", 32, *_BOTH), 2.0),
    "CartPole-v1 in Python, impala, 1 learner + 2 actors": ("impala", ("--ranks", 3), 2.0),
    "1024 CartPoles in numpy, impala, 2 ranks that do both": (
        "impala",
        ("--preset", "cartpole-throughput", *_BOTH),
        20.0,
    ),
    "ALE/Pong-v5, impala, 1 learner + 1 actor": ("impala", (*_PONG, "--ranks", 2), 0.1),
}
_KINDS: Mapping[str, Sequence[object]] = {
    "plain": (),
    "gzip": ("--record-trajectories",),
    "zstd": ("--record-trajectories", "--record-compression", "zstd"),
}
_STARTED = "started and ended"
#: Env steps that have an iteration after the first.
_SHORTEST = 2000


def table(settings: Settings) -> Table:
    """Every run in every kind, and one that is over at once."""
    workloads: dict[str, Callable[[int], Measurement]] = {}
    for name, (algorithm, options, share) in _RUNS.items():
        env_steps = round(share * settings.env_steps)
        for kind, more in {_STARTED: (), **_KINDS}.items():
            steps = max(env_steps // 50, _SHORTEST) if kind == _STARTED else env_steps
            workloads[f"{name}, {kind}"] = partial(_train, algorithm, (*options, *more), steps)
    columns = [Column("cpu_us", "CPU us", ",.2f"), Column("bytes_per_step", "bytes", ",.1f")]
    title = f"Recording trajectories, {CORES} cores: every environment, all fields"
    return Table("recording", title, workloads, columns=columns, notes=_notes)


def _train(algorithm: str, options: Sequence[object], env_steps: int, round_: int) -> Measurement:
    run = training.train(algorithm, (*options, "--seed", round_ + 1), env_steps)
    steps = run.rows[-1]["env_steps"]
    return {
        **run.measurement(),
        "cpu_s": run.cpu_s,
        "env_steps": steps,
        "cpu_us": run.cpu_s / steps * 1e6,
        "bytes_per_step": run.recorded_mb * 1e6 / steps,
    }


def _notes(results: Results) -> Iterable[str]:
    yield "CPU seconds are those of all processes. What a run takes that is over at once is left out of the ratios."
    yield ""
    for name in _RUNS:
        plain, started = (results.get(f"{name}, {kind}", {}) for kind in ("plain", _STARTED))
        for kind in list(_KINDS)[1:]:
            recorded = results.get(f"{name}, {kind}", {})
            more = [100 * (ratio - 1) for ratio in _cpu_ratios(recorded, plain, started)]
            rates = paired_ratios(recorded, plain)
            if more and rates:
                yield (
                    f"- {name}, {kind}: CPU time {statistics.median(more):+.1f} % ({min(more):+.1f} to "
                    f"{max(more):+.1f}), env steps/s x {statistics.median(rates):.3f} "
                    f"({min(rates):.3f}-{max(rates):.3f}), {len(more)} rounds"
                )


def _cpu_ratios(
    recorded: Mapping[int, Measurement], plain: Mapping[int, Measurement], started: Mapping[int, Measurement]
) -> list[float]:
    """CPU seconds for an env step, recorded to plain, within each round that has all three."""
    return [
        _marginal(recorded[number], started[number]) / _marginal(plain[number], started[number])
        for number in sorted(recorded.keys() & plain.keys() & started.keys())
    ]


def _marginal(run: Measurement, started: Measurement) -> float:
    return (run["cpu_s"] - started["cpu_s"]) / (run["env_steps"] - started["env_steps"])
