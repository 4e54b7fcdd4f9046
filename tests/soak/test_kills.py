"""Many kills at random moments: the newest checkpoint always loads, and what is lost is at most an interval."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

from hpcrl.storage.checkpoints import CheckpointStore, load_checkpoint
from tests.commands import HPCRL, Running

_KILLS = int(os.environ.get("HPCRL_SOAK_KILLS", "100"))
_EVERY = 1024
_LENGTH = ("--total-env-steps", "1000000000", "--num-iterations", "100000", "--checkpoint-every", str(_EVERY))
_SMALL = ("--num-envs", "8", "--unroll-length", "16", "--hidden-sizes", "16", "--no-tensorboard", "--no-episode-log")


def test_a_hundred_kills_of_a_rank_or_of_all(tmp_path: Path) -> None:
    generator = random.Random(0)
    run_dir = tmp_path / "run"
    reached = 0
    for kill in range(_KILLS):
        command = [*HPCRL, "train", "a2c", "--run-dir", str(run_dir), "--resume", "--ranks", "2", *_LENGTH, *_SMALL]
        running = Running(command)
        running.until(lambda before=reached: _newest_steps(run_dir) > before)
        time.sleep(generator.random())
        victims = running.ranks() if generator.random() < 0.5 else [generator.choice(running.ranks())]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        assert running.wait(timeout=20).returncode != 0
        for path in (run_dir / "checkpoints").glob("*.h5"):
            load_checkpoint(path)
        newest = _newest_steps(run_dir)
        assert newest > reached
        assert newest - _trained_steps(run_dir) >= -2 * _EVERY
        reached = newest
        print(f"kill {kill + 1}/{_KILLS}: {len(victims)} ranks, newest checkpoint at {newest:,} env steps", flush=True)


def _newest_steps(run_dir: Path) -> int:
    if not (run_dir / "checkpoints/manifest.json").exists():
        return 0
    checkpoint = CheckpointStore(run_dir / "checkpoints").newest()
    return 0 if checkpoint is None else int(checkpoint.attributes["env_steps"])


def _trained_steps(run_dir: Path) -> int:
    """Environment steps of the last row of metrics."""
    lines = (run_dir / "metrics.csv").read_text().splitlines()
    return int(lines[-1].split(",")[1]) if len(lines) > 1 else 0
