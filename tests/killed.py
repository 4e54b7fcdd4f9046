"""Runs that record, killed again and again; of one process by `python -m tests.killed RUN_DIR KILLS`.

Every start is a fork of that process, which has loaded what takes long, and has not started MPI.
"""

from __future__ import annotations

import csv
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium  # noqa: F401
import rich.progress  # noqa: F401
import torch  # noqa: F401
import tyro  # noqa: F401

from hpcrl.commands.main import main
from hpcrl.storage.checkpoints import CheckpointStore
from hpcrl.storage.shard_reader import Shard
from hpcrl.storage.stitching import WholeEpisodes
from hpcrl.storage.trajectories import open_shards, shard_files
from tests.commands import HPCRL, Running

SMALL = (
    "--num-envs",
    "8",
    "--unroll-length",
    "16",
    "--hidden-sizes",
    "16",
    "--no-tensorboard",
    "--record-trajectories",
)
EVERY = 1024
LENGTH = ("--total-env-steps", "1000000000", "--num-iterations", "1000000", "--checkpoint-every", str(EVERY))


def options(run_dir: Path) -> list[str]:
    """What stands behind `hpcrl train` for a small run that does not end by itself."""
    return ["a2c", "--run-dir", str(run_dir), "--resume", *LENGTH, *SMALL]


def newest_steps(run_dir: Path) -> int:
    """Environment steps of the newest checkpoint, which is loaded; 0 where there is none."""
    checkpoint = CheckpointStore(run_dir / "checkpoints").newest()
    return 0 if checkpoint is None else int(checkpoint.attributes["env_steps"])


def verify_shards(run_dir: Path, known: set[Path]) -> None:
    """Read all closed shards that are not known yet, which are then."""
    for path in shard_files(run_dir / "trajectories"):
        if path not in known:
            Shard(path).verify()
            known.add(path)


def verify_episodes(run_dir: Path) -> int:
    """Compare the shards of a run that left in order with its log of episodes; how many episodes these have.

    Everything that the log tells is in the shards, once, with the same seed, length and return.
    """
    shards = open_shards(run_dir / "trajectories")
    steps: dict[tuple[int, int], int] = {}
    for shard in shards:
        found = shard.episodes
        for key, first, end in zip(
            zip(found.env_index.tolist(), found.number.tolist(), strict=True),
            found.first_row,
            found.end_row,
            strict=True,
        ):
            steps[key] = steps.get(key, 0) + int(end - first)
    whole = {
        (each.env_index, each.number): (each.seed, each.length, each.episode_return) for each in WholeEpisodes(shards)
    }
    with (run_dir / "episodes.csv").open(newline="") as file:
        logged = {
            (int(row["env_index"]), int(row["episode"])): (int(row["seed"]), int(row["length"]), float(row["return"]))
            for row in csv.DictReader(file)
        }
    assert whole == logged, f"{len(whole)} episodes in shards, {len(logged)} in the log"
    assert {key: steps[key] for key in whole} == {key: length for key, (_, length, _) in whole.items()}
    return len(whole)


def new_checkpoint(run_dir: Path, seconds: float) -> Callable[[], bool]:
    """Tells when there is a newer checkpoint than now, and some time has passed since."""
    store = CheckpointStore(run_dir / "checkpoints")
    before = store.newest_file()
    moments: list[float] = []

    def is_time() -> bool:
        if not moments and store.newest_file() != before:
            moments.append(time.monotonic() + seconds)
        return bool(moments) and moments[0] < time.monotonic()

    return is_time


def kill_ranks(run_dir: Path, ranks: int, kills: int) -> None:
    """Kill one rank of a run or all, at random moments, and let it come to an end."""
    rng, known, reached = random.Random(0), set[Path](), 0
    for kill in range(kills + 1):
        running = Running([*HPCRL, "train", *options(run_dir), "--ranks", str(ranks)])
        running.until(new_checkpoint(run_dir, rng.random()))
        if kill == kills:
            running.process.send_signal(signal.SIGTERM)
            victims = []
        else:
            victims = running.ranks() if rng.random() < 0.5 else [rng.choice(running.ranks())]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        assert (running.wait(timeout=20).returncode == 0) == (kill == kills)
        before, reached = reached, newest_steps(run_dir)
        assert reached > before
        assert reached >= _trained_steps(run_dir) - 2 * EVERY
        verify_shards(run_dir, known)
        print(f"kill {kill + 1}/{kills}: {len(victims)} ranks, newest checkpoint at {reached:,} env steps", flush=True)
    verify_episodes(run_dir)


def _trained_steps(run_dir: Path) -> int:
    """Environment steps of the last row of metrics."""
    lines = (run_dir / "metrics.csv").read_text().splitlines()
    return int(lines[-1].split(",")[1]) if len(lines) > 1 else 0


def train_until(run_dir: Path, condition: Callable[[], object], number: int) -> int:
    """Fork a run and send it a signal once a condition holds; its status."""
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os._exit(main(["train", *options(run_dir)]))
    deadline = time.monotonic() + 60
    while not condition():
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the run ended by itself"
        assert time.monotonic() < deadline, "the run makes no checkpoint"
        time.sleep(0.005)
    os.kill(child, number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_and_resume(run_dir: Path, kills: int) -> None:
    """Kill a run at random moments, and let it come to an end."""
    rng, known, reached = random.Random(0), set[Path](), 0
    for kill in range(kills + 1):
        is_last = kill == kills
        status = train_until(
            run_dir, new_checkpoint(run_dir, 0.3 * rng.random()), signal.SIGTERM if is_last else signal.SIGKILL
        )
        assert status == (0 if is_last else -signal.SIGKILL), status
        before, reached = reached, newest_steps(run_dir)
        assert reached > before
        verify_shards(run_dir, known)
    discarded = len(list((run_dir / "trajectories").glob("*.discarded")))
    episodes = verify_episodes(run_dir)
    print(f"{kills} kills: {reached:,} env steps, {episodes} episodes, {len(known)} shards, {discarded} put aside")


if __name__ == "__main__":
    kill_and_resume(Path(sys.argv[1]), int(sys.argv[2]))
