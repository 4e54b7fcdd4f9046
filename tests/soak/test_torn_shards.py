"""A minute of a3c with sleeps between the steps of writing and reading: no shard of the weights is ever torn."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np

from hpcrl.cluster.launch import launcher_command, rank_environment
from tests.commands import Running, weights

_MINUTES = float(os.environ.get("HPCRL_SOAK_MINUTES", "1"))
_RANKS = 6
_ENDLESS = ("--total-env-steps", "1000000000000", "--num-iterations", "1000000", "--checkpoint-every", "0")
#: Many small unrolls, so that as many publications are written and read as two cores can.
_FAST = ("--env", "CartPole-v1", "--vector", "native", "--num-envs", "16", "--unroll-length", "4", "--no-tensorboard")


def _start(run_dir: Path, fault: str) -> Running:
    command = [
        sys.executable,
        "-m",
        "tests.torn",
        fault,
        "train",
        "a3c",
        "--run-dir",
        str(run_dir),
        "--learners",
        "2",
    ]
    return Running(launcher_command(_RANKS, [*command, *_ENDLESS, *_FAST]), environment=rank_environment(os.environ))


def test_readers_and_owners_see_whole_shards_only(tmp_path: Path) -> None:
    """Every shard that was accepted, and every gradient that arrived, had the sum that it was sent with."""
    running = _start(tmp_path / "run", "checked@0.02")
    running.until(lambda: len(running.ranks()) == _RANKS, timeout=60)
    running.until(lambda: (tmp_path / "run/metrics.csv").exists(), timeout=60)
    end = time.monotonic() + 60 * _MINUTES
    while time.monotonic() < end:
        assert running.process.poll() is None, running.wait(timeout=5)
        time.sleep(0.1)
    os.kill(running.ranks()[0], signal.SIGINT)
    done = running.wait(timeout=60)
    assert done.returncode == 0, done.stderr

    pattern = r" rank (\d+) read (\d+), retried (\d+), received (\d+)"
    counts = {int(rank): tuple(map(int, rest)) for rank, *rest in re.findall(pattern, done.stderr)}
    assert sorted(counts) == list(range(_RANKS)), done.stderr
    reads, retries, pushes = (sum(column) for column in zip(*counts.values(), strict=True))
    account = next(line for line in done.stdout.splitlines() if line.startswith("gradients: "))
    print(f"\n{reads} reads verified, {retries} tries in vain, {pushes} gradients verified; {account}")
    pushed, applied = (int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", account)[:2])
    assert pushed == applied and "(on each of 2 shards), 0 dropped" in account
    assert all(received == pushed for _, _, received in (counts[0], counts[1]))
    assert reads > pushed and retries > 0
    assert pushed > 1000 * _MINUTES
    assert np.isfinite(weights(tmp_path / "run")).all()


def test_without_the_sequence_lock_torn_shards_are_found(tmp_path: Path) -> None:
    """The check above is worth something: it fails where readers take whatever they find."""
    done = _start(tmp_path / "run", "unlocked@0.02").wait(timeout=120)
    assert done.returncode == 1
    assert re.search(r"RuntimeError: torn weights: the shard of publication \d+ is not whole", done.stderr)
