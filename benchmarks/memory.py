"""Resident memory of every rank over a long run: it must be flat after warm-up.

    python -m benchmarks.memory [--env-steps 10000000] [--ranks 2] [-- more options of hpcrl train]

Samples the ranks once a second, prints a curve, and fails where the last fifth lies more than 2 % above the second.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_ALLOWED_GROWTH = 1.02


def resident_mb(pid: int) -> float:
    """Resident memory of a process in MB; 0 once it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def rank_pids(run_dir: str) -> list[int]:
    """Processes whose command line names the run and which are ranks of it."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if run_dir.encode() in words and b"COMM_WORLD_RANK=" in environment and b"python" in words[0]:
            found.append(int(entry.name))
    return sorted(found)


def main() -> int:
    """Train and sample; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-steps", type=int, default=10_000_000)
    parser.add_argument("--ranks", type=int, default=2)
    arguments, options = parser.parse_known_args()
    samples: list[tuple[float, list[float]]] = []
    with tempfile.TemporaryDirectory() as folder:
        run_dir = f"{folder}/run"
        command = [sys.executable, "-m", "hpcrl", "train", "a2c", "--run-dir", run_dir, "--ranks", str(arguments.ranks)]
        length = ["--total-env-steps", str(arguments.env_steps)]
        start = time.monotonic()
        with subprocess.Popen([*command, *length, *options], stdout=subprocess.DEVNULL) as training:
            while training.poll() is None:
                time.sleep(1)
                sizes = [resident_mb(pid) for pid in rank_pids(run_dir)]
                if len(sizes) == arguments.ranks and all(sizes):
                    samples.append((time.monotonic() - start, sizes))
        status = training.returncode
    return status or judge(samples)


def judge(samples: list[tuple[float, list[float]]]) -> int:
    """Print twenty points of the curve, and compare its last fifth with its second."""
    for seconds, sizes in samples[:: max(1, len(samples) // 20)]:
        print(f"{seconds:7.0f} s  " + "  ".join(f"rank {rank}: {size:7.1f} MB" for rank, size in enumerate(sizes)))
    fifth = max(1, len(samples) // 5)
    grown = False
    for rank in range(len(samples[0][1])):
        early = max(sizes[rank] for _, sizes in samples[fifth : 2 * fifth] or samples)
        late = max(sizes[rank] for _, sizes in samples[-fifth:])
        grown |= late > early * _ALLOWED_GROWTH
        print(f"rank {rank}: second fifth {early:.1f} MB, last fifth {late:.1f} MB ({late / early - 1:+.2%})")
    return int(grown)


if __name__ == "__main__":
    sys.exit(main())
