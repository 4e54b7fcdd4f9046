"""One run of hpcrl, and its numbers in steady state."""

from __future__ import annotations

import json
import math
import re
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import children
from benchmarks.tables import RATE, Measurement
from hpcrl.benching.rows import read_rows

_OPTIONS = ("--no-tensorboard", "--checkpoint-every", "0")
_SOLVED = 475


@dataclass(frozen=True)
class Run:
    """What a run left behind.

    Attributes:
        rows: of metrics.csv, numbers that exist.
        episodes: of episodes.csv; none without --episode-log.
        spans: of rank 0, as in trace.json; none without --profile.
        checkpoint_mb: size of the largest checkpoint.
        unrolls: acted, learned from, dropped, under way; none where the run doesn't say.
        cores, peak_mb, cpu_s: see `children.Finished`.
        recorded_mb: size of all trajectories.
    """

    rows: list[dict[str, float]]
    episodes: list[dict[str, float]]
    spans: list[dict[str, Any]]
    checkpoint_mb: float
    unrolls: tuple[int, ...]
    cores: float
    peak_mb: float
    cpu_s: float = math.nan
    recorded_mb: float = 0.0

    @property
    def steady(self) -> list[dict[str, float]]:
        """The iterations after the first."""
        return self.rows[1:]

    def total(self, column: str) -> float:
        """Sum over the iterations after the first."""
        return sum(row.get(column, 0.0) for row in self.steady)

    @property
    def steady_steps(self) -> float:
        """Env steps learned from in the iterations after the first."""
        return self.rows[-1]["env_steps"] - self.rows[0]["env_steps"]

    def measurement(self) -> Measurement:
        """Rate, cores and memory."""
        rate = statistics.median(row["time/env_steps_per_s"] for row in self.steady)
        return {RATE: rate, "cores": self.cores, "peak_mb": self.peak_mb}

    def solved(self) -> Measurement:
        """Seconds and env steps to the end of the first iteration whose last 100 episodes reach 475."""
        for row in self.rows:
            if row.get("rollout/return_last_100", -math.inf) >= _SOLVED:
                return {"solved_s": row["time/elapsed_s"], "solved_env_steps": row["env_steps"]}
        return {}


def train(
    algorithm: str,
    options: Sequence[object],
    env_steps: int,
    timeout: float = 300,
    start: Sequence[str] = (sys.executable, "-m", "hpcrl"),
    environment: dict[str, str] | None = None,
    iterations: int = 8,
) -> Run:
    """Train; CommandFailed where that fails.

    Args:
        algorithm, options: of `hpcrl train`.
        start: what stands for the command hpcrl.
    """
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        length = ["--total-env-steps", env_steps, "--num-iterations", iterations]
        words = [*start, "train", algorithm, "--run-dir", run_dir, *_OPTIONS, *length, *options]
        done = children.run(list(map(str, words)), timeout, environment)
        return Run(
            read_rows(run_dir / "metrics.csv"),
            read_rows(run_dir / "episodes.csv"),
            _spans(run_dir / "trace.json"),
            max((path.stat().st_size for path in run_dir.glob("checkpoints/*.h5")), default=0) / 1e6,
            _unrolls(done.output),
            done.cores,
            done.peak_mb,
            done.cpu_s,
            sum(path.stat().st_size for path in run_dir.glob("trajectories/*.h5")) / 1e6,
        )


def _spans(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    events = json.loads(path.read_text())["traceEvents"]
    return sorted(
        (event for event in events if event["ph"] == "X" and event["pid"] == 0), key=lambda event: event["ts"]
    )


def _unrolls(output: str) -> tuple[int, ...]:
    line = next((line for line in output.splitlines() if line.startswith("unrolls: ")), "")
    return tuple(int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", line))
