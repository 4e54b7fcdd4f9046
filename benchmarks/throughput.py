"""Environment steps per second of a2c, learning included, by layout; rounds alternate between layouts.

    python -m benchmarks.throughput [--rounds 3] [--env-steps 200000]

Prints a table of medians and ranges, and one JSON line for each run.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

#: Name and options of each workload.
WORKLOADS: dict[str, list[str]] = {
    "16 envs, 1 process": ["--num-envs", "16"],
    "16 envs, 1 learner + 1 actor": ["--num-envs", "16", "--ranks", "2"],
    "16 envs, 1 learner + 2 actors": ["--num-envs", "16", "--ranks", "3"],
    "16 envs, 2 ranks that do both": ["--num-envs", "16", "--ranks", "2", "--placement", "colocated"],
    "64 envs, 1 process": ["--num-envs", "64"],
    "64 envs, 2 ranks that do both": ["--num-envs", "64", "--ranks", "2", "--placement", "colocated"],
    "1024 native envs, 1 process": ["--num-envs", "1024", "--vector", "native", "--unroll-length", "16"],
    "1024 native envs, 2 ranks that do both": [
        *("--num-envs", "1024", "--vector", "native", "--unroll-length", "16"),
        *("--ranks", "2", "--placement", "colocated"),
    ],
}


def steps_per_second(options: list[str], env_steps: int, folder: Path) -> float:
    """Median over the iterations after the first of one run."""
    command = [sys.executable, "-m", "hpcrl", "train", "a2c", "--run-dir", str(folder), *options]
    length = ["--total-env-steps", str(env_steps), "--num-iterations", "8", "--checkpoint-every", "0"]
    subprocess.run([*command, *length, "--no-tensorboard", "--no-episode-log"], check=True, capture_output=True)
    with (folder / "metrics.csv").open(newline="") as file:
        rates = [float(row["time/env_steps_per_s"]) for row in csv.DictReader(file)]
    return statistics.median(rates[1:])


def main() -> None:
    """Run all workloads, round by round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each workload")
    parser.add_argument("--env-steps", type=int, default=200_000, help="environment steps of a run")
    arguments = parser.parse_args()
    machine = {
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    rates: dict[str, list[float]] = {name: [] for name in WORKLOADS}
    for round_ in range(arguments.rounds):
        for name, options in WORKLOADS.items():
            # Fast workloads need longer runs for the same time.
            env_steps = arguments.env_steps * (10 if "native" in name else 1)
            with tempfile.TemporaryDirectory() as folder:
                rates[name].append(steps_per_second(options, env_steps, Path(folder) / "run"))
            print(
                json.dumps({"workload": name, "round": round_, "env_steps_per_s": rates[name][-1], **machine}),
                flush=True,
            )
    print(f"\n{'CartPole-v1, 2 x 64 tanh, a2c':42} {'median':>10} {'range':>20}  env steps/s, {arguments.rounds} runs")
    for name, values in rates.items():
        spread = f"{min(values):,.0f}-{max(values):,.0f}"
        print(f"{name:42} {statistics.median(values):10,.0f} {spread:>20}")


if __name__ == "__main__":
    main()
