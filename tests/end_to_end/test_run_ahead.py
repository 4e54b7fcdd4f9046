"""impala and appo from the command line: replayable where they promise it, bounded, and complete whatever is slow."""

from __future__ import annotations

import csv
import os
import re
import sys
from pathlib import Path

import pytest

from hpcrl.cluster.launch import launcher_command, rank_environment
from tests.commands import hpcrl, relative_difference, run, weights
from tests.hosts import run_on_hosts, why_not

_SHORT = ("--num-envs", 16, "--batch-envs", 16, "--total-env-steps", 20 * 512, "--num-iterations", 2)
_TOLERANCE = 1e-5


def _train(run_dir: Path, algorithm: str, *options: object) -> Path:
    done = hpcrl("train", algorithm, "--run-dir", run_dir, "--no-tensorboard", *_SHORT, *options)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return run_dir


def _rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _account(output: str) -> tuple[int, ...]:
    """Unrolls acted, learned from, dropped, under way."""
    line = next(line for line in output.splitlines() if line.startswith("unrolls: "))
    return tuple(int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", line))


@pytest.fixture(scope="module")
def lockstep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """impala in lockstep on one learner and one actor."""
    return _train(tmp_path_factory.mktemp("lockstep") / "run", "impala", "--ranks", 2, "--schedule", "lockstep")


_REPLAYED = ("--deterministic", "--max-lag", 2)


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """impala two updates behind, on one learner and two actors."""
    return _train(tmp_path_factory.mktemp("replayed") / "run", "impala", "--ranks", 3, *_REPLAYED)


def test_no_lag_is_lockstep_bit_for_bit(tmp_path: Path, lockstep: Path) -> None:
    run_dir = _train(tmp_path / "run", "impala", "--ranks", 2, "--max-lag", 0)
    assert weights(run_dir).tobytes() == weights(lockstep).tobytes()
    assert [row["lag/max"] for row in _rows(run_dir)] == ["0", "0"]


def test_a_deterministic_run_ahead_is_the_same_when_repeated(tmp_path: Path, replayed: Path, lockstep: Path) -> None:
    again = _train(tmp_path / "again", "impala", "--ranks", 3, *_REPLAYED)
    assert weights(again).tobytes() == weights(replayed).tobytes()
    assert [row["lag/max"] for row in _rows(again)] == ["2", "2"]
    assert relative_difference(weights(again), weights(lockstep)) > 0.01


def test_batches_that_cut_rounds_are_replayed_too(tmp_path: Path) -> None:
    options = ("--ranks", 4, "--learners", 2, "--num-envs", 10, "--batch-envs", 4, "--replay-epochs", 2)
    exact = ("--deterministic", "--max-lag", 9, "--check-in-sync-every", 1)
    one, other = (_train(tmp_path / name, "appo", *options, *exact) for name in ("one", "other"))
    assert weights(one).tobytes() == weights(other).tobytes()
    assert int(_rows(one)[-1]["lag/max"]) <= 9


@pytest.mark.parametrize(
    "layout", [("--ranks", 1), ("--ranks", 4), ("--ranks", 2, "--placement", "colocated"), ("--inference", "learner")]
)
def test_lockstep_is_the_same_run_on_any_layout(tmp_path: Path, lockstep: Path, layout: tuple[object, ...]) -> None:
    ranks = () if "--ranks" in layout else ("--ranks", 3)
    run_dir = _train(tmp_path / "run", "impala", "--schedule", "lockstep", *layout, *ranks)
    assert relative_difference(weights(run_dir), weights(lockstep)) <= _TOLERANCE
    episodes = [(path / "episodes.csv").read_text() for path in (run_dir, lockstep)]
    assert episodes[0] == episodes[1]


def test_lockstep_impala_is_a2c(tmp_path: Path, lockstep: Path) -> None:
    options = ("--run-dir", tmp_path / "run", "--no-tensorboard", "--num-envs", 16, "--total-env-steps", 20 * 512)
    assert hpcrl("train", "a2c", *options, "--num-iterations", 2).returncode == 0
    assert relative_difference(weights(tmp_path / "run"), weights(lockstep)) <= 1e-3


def _train_with_a_slow_actor(run_dir: Path, *options: object) -> tuple[list[dict[str, str]], tuple[int, ...]]:
    """Two learners with an actor each, of which rank 3 takes 20 times as long."""
    command = [sys.executable, "-m", "tests.faults", "3:slow@20", "train", "impala", "--run-dir", str(run_dir)]
    command += map(str, ["--learners", 2, "--no-tensorboard", "--total-env-steps", 40 * 512, "--num-iterations", 2])
    command += map(str, ["--num-envs", 16, "--batch-envs", 16, *options])
    done = run(launcher_command(4, command), timeout=60, environment=rank_environment(os.environ))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return _rows(run_dir), _account(done.stdout)


def test_a_slow_actor_is_not_waited_for_but_what_it_brings_too_late_is_counted(tmp_path: Path) -> None:
    rows, (acted, learned, dropped, under_way) = _train_with_a_slow_actor(tmp_path / "run", "--max-lag", 2)
    assert all(float(row["lag/max"]) <= 2 for row in rows)
    assert acted == learned + dropped + under_way and 0 <= under_way <= 2 * 3
    assert sum(int(row["lag/dropped_unrolls"]) for row in rows) >= 1
    assert sum(int(row["lag/dropped_steps"]) for row in rows) >= 32 * 8


def test_with_wait_nothing_is_too_old(tmp_path: Path) -> None:
    options = ("--max-lag", 2, "--on-stale", "wait", "--total-env-steps", 12 * 512)
    rows, (acted, learned, dropped, under_way) = _train_with_a_slow_actor(tmp_path / "run", *options)
    assert all(float(row["lag/max"]) <= 2 for row in rows)
    assert dropped == 0 and acted == learned + under_way
    assert sum(int(row["wait/learner_for_unrolls"]) for row in rows) > 0


@pytest.mark.parametrize("schedule", ["lockstep", "run-ahead"])
def test_an_interrupted_run_goes_on(tmp_path: Path, schedule: str, lockstep: Path) -> None:
    options = ("--ranks", 2, "--schedule", schedule)
    run_dir = _train(tmp_path / "run", "impala", *options, "--checkpoint-every", 5 * 512, "--checkpoint-keep", 9)
    kept = sorted((run_dir / "checkpoints").glob("step_*.h5"))
    for path in kept[1:]:
        path.unlink()
    done = hpcrl("train", "impala", "--run-dir", run_dir, "--resume", *options, *_SHORT, "--no-tensorboard")
    assert done.returncode == 0, done.stderr
    assert int(_rows(run_dir)[-1]["env_steps"]) >= 20 * 512
    if schedule == "lockstep":
        assert weights(run_dir).tobytes() == weights(lockstep).tobytes()


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
@pytest.mark.parametrize(
    "options",
    [_REPLAYED, ("--max-lag", 0, "--inference", "learner"), ("--learners", 2)],
    ids=["deterministic", "central", "run-ahead"],
)
def test_hosts_that_share_no_memory_run_ahead_as_well(
    tmp_path: Path, options: tuple[object, ...], lockstep: Path, replayed: Path
) -> None:
    command = [sys.executable, "-m", "hpcrl", "train", "impala", "--run-dir", str(tmp_path / "far"), "--no-tensorboard"]
    command += map(str, [*_SHORT, "--learners", 1, *options])
    done = run_on_hosts(command, {"left": 2, "right": 2}, timeout=90)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    acted, learned, dropped, under_way = _account(done.stdout)
    assert acted == learned + dropped + under_way and dropped == 0
    if "--deterministic" in options:
        # With three actors in place of two: of one learner, any number is the same run.
        assert relative_difference(weights(replayed), weights(tmp_path / "far")) <= _TOLERANCE
    if "--inference" in options:
        assert relative_difference(weights(lockstep), weights(tmp_path / "far")) <= _TOLERANCE
