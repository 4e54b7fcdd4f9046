"""Half an hour at full speed: memory stays flat, and what became of every unroll is known."""

from __future__ import annotations

import csv
import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.commands import HPCRL, Running

_MINUTES = float(os.environ.get("HPCRL_SOAK_MINUTES", "30"))
_ENDLESS = ("--total-env-steps", "1000000000000", "--num-iterations", "1000000", "--checkpoint-every", "50000000")
_FAST = ("--env", "CartPole-v1", "--vector", "native", "--num-envs", "1024", "--batch-envs", "256", "--shared-encoder")
_ALLOWED_GROWTH_MB = 8.0


@pytest.mark.parametrize("on_stale", ["drop", "wait"])
def test_half_an_hour_at_full_speed(tmp_path: Path, on_stale: str) -> None:
    """A learner and two actors with little slack, so that there are drops or waits to account for."""
    run_dir = tmp_path / "run"
    layout = ("--ranks", "3", "--max-lag", "4", "--on-stale", on_stale, "--hang-timeout", "60")
    running = Running([*HPCRL, "train", "impala", "--run-dir", str(run_dir), *_ENDLESS, *_FAST, *layout])
    running.until(lambda: len(running.ranks()) == 3, timeout=60)
    ranks = running.ranks()
    end = time.monotonic() + 60 * _MINUTES / 2
    samples: list[list[float]] = []
    while time.monotonic() < end:
        assert running.process.poll() is None, running.wait(timeout=5)
        samples.append([_resident_mb(pid) for pid in ranks])
        time.sleep(min(5.0, 60 * _MINUTES / 50))
    os.kill(running.process.pid, signal.SIGINT)
    done = running.wait(timeout=60)
    assert done.returncode == 0, done.stderr

    settled, last = samples[len(samples) // 3], samples[-1]
    print(f"\n{on_stale}: {_rows(run_dir)[-1]['env_steps']} steps; resident MB {settled} at a third, {last} at the end")
    assert all(now < before + _ALLOWED_GROWTH_MB for before, now in zip(settled, last, strict=True))
    _check_account(done.stdout, _rows(run_dir), on_stale)


def _check_account(output: str, rows: list[dict[str, str]], on_stale: str) -> None:
    """Receivers check every sequence number; here the sums must agree."""
    line = next(line for line in output.splitlines() if line.startswith("unrolls: "))
    print(line)
    acted, learned, dropped, under_way = (int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", line))
    assert acted == learned + dropped + under_way and 0 <= under_way <= 2 * 3
    reported = sum(int(row["lag/dropped_unrolls"]) for row in rows)
    # What came after the last report is in the account alone.
    assert reported <= dropped <= reported + 100
    assert max(float(row["lag/max"]) for row in rows if row["lag/max"]) <= 4
    if on_stale == "wait":
        assert dropped == 0


def _rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)
