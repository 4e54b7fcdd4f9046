"""a3c from the command line: every gradient is accounted for, and whatever is slow, asked for or broken is seen to."""

from __future__ import annotations

import csv
import math
import os
import re
import signal
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from hpcrl.cluster.launch import launcher_command, rank_environment
from hpcrl.cluster.layout import plan_workers
from hpcrl.commands.options import parse
from hpcrl.config import A3CConfig
from hpcrl.errors import ConfigError
from hpcrl.presets import preset
from hpcrl.storage.checkpoints import Checkpoint, CheckpointStore
from tests.commands import HPCRL, Running, hpcrl, weights
from tests.hosts import run_on_hosts, why_not

_SMALL = ("--no-tensorboard", "--hidden-sizes", "16")
_FOREVER = ("--total-env-steps", "100000000", "--num-iterations", "100000", *_SMALL)
#: As many updates as can be from few environment steps.
_QUICK = ("--num-envs", "8", "--unroll-length", "8")


def _train(run_dir: Path, *options: object) -> str:
    """Train to the end; what it printed."""
    done = hpcrl("train", "a3c", "--run-dir", run_dir, *_SMALL, *options, timeout=90)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def _start_with_a_fault(run_dir: Path, fault: str, ranks: int, *options: object) -> Running:
    command = [sys.executable, "-m", "tests.faults", fault, "train", "a3c", "--run-dir", str(run_dir)]
    return Running(launcher_command(ranks, [*command, *map(str, options)]), environment=rank_environment(os.environ))


def _account(output: str) -> tuple[int, int, int]:
    """Gradients pushed, applied on every shard, and dropped; fails where a gradient is missing on any shard."""
    line = next(line for line in output.splitlines() if line.startswith("gradients: "))
    counts = re.fullmatch(
        r"gradients: (\S+) pushed, (\S+) applied(?: \(on each of \d+ shards\))?, (\S+) dropped.*", line
    )
    assert counts is not None, f"the shards got different numbers of gradients: {line}"
    pushed, applied, dropped = (int(count.replace(",", "")) for count in counts.groups())
    assert pushed == applied + dropped and applied > 0, line
    return pushed, applied, dropped


def _rows(run_dir: Path) -> list[dict[str, float]]:
    """The rows of the metrics; what a row has no number for is left out of it."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def _newest(run_dir: Path) -> Checkpoint:
    checkpoint = CheckpointStore(run_dir / "checkpoints").newest()
    assert checkpoint is not None
    return checkpoint


def _num_saved(run_dir: Path) -> int:
    return len(list((run_dir / "checkpoints").glob("step_*.h5")))


def _require_sound(run_dir: Path, total_env_steps: int) -> None:
    """The files of a run that reached its end: finite weights, and rows that go on and make sense."""
    assert np.isfinite(weights(run_dir)).all()
    rows = _rows(run_dir)
    for name in ("iteration", "env_steps", "learner_updates", "time/elapsed_s"):
        column = [row[name] for row in rows]
        assert all(now > before for before, now in pairwise(column)), (name, column)
    assert rows[-1]["env_steps"] >= total_env_steps
    for row in rows:
        for prefix in ("lag/", "lag/shard_spread_"):
            least, mean, most = (row[prefix + name] for name in ("min", "mean", "max"))
            assert 0 <= least <= mean <= most < math.inf
        for name in ("train/policy_loss", "train/value_loss", "train/entropy", "train/grad_norm"):
            assert math.isfinite(row[name])
        for name in ("time/actor_acting_s", "time/actor_learning_s", "time/learner_learning_s", "comm/gradient_bytes"):
            assert row[name] > 0


def test_gradients_that_are_too_old_are_dropped_and_all_are_accounted_for(tmp_path: Path) -> None:
    total = 3_000
    options = ("--total-env-steps", total, "--num-iterations", 4, "--max-lag", 1, "--check-in-sync-every", 1, *_QUICK)
    output = _train(tmp_path / "run", "--ranks", 6, "--learners", 2, *options)
    assert "4 workers and 2 parameter owners on one node, 2 environments a worker" in output
    _, applied, dropped = _account(output)
    _require_sound(tmp_path / "run", total)
    rows = _rows(tmp_path / "run")
    assert rows[-1]["learner_updates"] == applied == _newest(tmp_path / "run").attributes["learner_updates"]
    assert dropped > 0
    assert sum(row["lag/dropped_unrolls"] for row in rows) == dropped
    assert dropped <= sum(row["lag/dropped_steps"] for row in rows) <= 16 * dropped
    assert rows[-1]["env_steps"] <= 16 * applied


def test_a_slow_worker_holds_nobody_up(tmp_path: Path) -> None:
    options = ("--total-env-steps", 10_000, "--num-iterations", 2, *_SMALL)
    done = _start_with_a_fault(tmp_path / "run", "3:slow@20", 4, *options).wait(timeout=90)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    _, applied, dropped = _account(done.stdout)
    assert dropped == 0 and applied >= 10_000 / (6 * 32)
    _require_sound(tmp_path / "run", 10_000)
    with (tmp_path / "run/episodes.csv").open(newline="") as file:
        episodes = [int(row["env_index"]) for row in csv.DictReader(file)]
    # Its environments are the last five of sixteen.
    assert sum(env >= 11 for env in episodes) < len(episodes) / 5


def test_every_rank_may_work_and_own_a_shard(tmp_path: Path) -> None:
    options = ("--total-env-steps", 8_000, "--num-iterations", 2)
    output = _train(tmp_path / "run", "--ranks", 2, "--learners", 2, "--placement", "colocated", *options)
    assert "2 workers and 2 parameter owners among them" in output
    assert _account(output)[2] == 0
    _require_sound(tmp_path / "run", 8_000)


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_hosts_that_share_no_memory_push_and_publish_as_well(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hpcrl", "train", "a3c", "--run-dir", str(tmp_path / "far"), "--learners", "2"]
    options = ("--total-env-steps", "15000", "--num-iterations", "3", *_SMALL)
    done = run_on_hosts([*command, *options], {"left": 3, "right": 2}, timeout=90)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "3 workers and 2 parameter owners on 2 nodes" in done.stdout
    _, applied, dropped = _account(done.stdout)
    assert dropped == 0 and _rows(tmp_path / "far")[-1]["learner_updates"] == applied
    _require_sound(tmp_path / "far", 15_000)
    assert all(row["comm/weights_bytes"] > 0 for row in _rows(tmp_path / "far"))
    with (tmp_path / "far/episodes.csv").open(newline="") as file:
        assert {int(row["env_index"]) for row in csv.DictReader(file)} == set(range(16))


def test_an_interrupted_run_goes_on_with_other_workers_and_owners(tmp_path: Path) -> None:
    run_dir, total = tmp_path / "run", 60_000
    options = ("--total-env-steps", str(total), "--num-iterations", "40", "--checkpoint-every", "0", *_SMALL)
    first = Running([*HPCRL, "train", "a3c", "--run-dir", str(run_dir), "--ranks", "4", *options])
    first.until(lambda: (run_dir / "metrics.csv").exists() and len(_rows(run_dir)) > 2)
    first.process.send_signal(signal.SIGINT)
    done = first.wait(timeout=60)
    assert done.returncode == 0 and "--resume" in done.stdout, f"{done.stdout}\n{done.stderr}"
    before, rows_before = _newest(run_dir), _rows(run_dir)
    _, applied, _ = _account(done.stdout)
    assert before.attributes["learner_updates"] == applied
    assert rows_before[-1]["env_steps"] <= before.attributes["env_steps"] < total

    output = _train(run_dir, "--ranks", 4, "--learners", 2, "--resume")
    after, rows = _newest(run_dir), _rows(run_dir)
    _, applied_again, _ = _account(output)
    assert after.attributes["learner_updates"] == applied + applied_again == rows[-1]["learner_updates"]
    assert after.attributes["env_steps"] >= total
    assert after.attributes["elapsed_s"] > before.attributes["elapsed_s"] >= rows_before[-1]["time/elapsed_s"]
    assert rows[: len(rows_before)] == rows_before and len(rows) > len(rows_before)
    assert rows[len(rows_before)]["time/elapsed_s"] > before.attributes["elapsed_s"]
    assert rows[len(rows_before)]["learner_updates"] > before.attributes["learner_updates"]
    _require_sound(run_dir, total)
    for checkpoint in (before, after):
        squares = checkpoint.group("optimizer/square_avg")
        assert {name: array.shape for name, array in squares.items()} == {
            name: array.shape for name, array in checkpoint.group("weights").items()
        }
        assert all((array > 0).any() and np.isfinite(array).all() for array in squares.values())


def test_a_signal_to_any_one_rank_reaches_the_lead(tmp_path: Path) -> None:
    """To save: the second owner, then a worker, each once. To stop: the second owner."""
    run_dir = tmp_path / "run"
    layout = ("--ranks", "4", "--learners", "2", "--checkpoint-every", "0", "--checkpoint-keep", "99")
    # But for the first evaluation nothing makes the ranks meet, so that nobody but the workers can tell the lead.
    alone = ("--num-iterations", "1", "--eval-at-start", "--eval-episodes", "1")
    running = Running([*HPCRL, "train", "a3c", "--run-dir", str(run_dir), *_FOREVER, *layout, *alone])
    running.until(lambda: (run_dir / "metrics.csv").exists() and _rows(run_dir))
    ranks = running.ranks()
    assert len(ranks) == 4
    for asked, rank in enumerate((1, 3)):
        os.kill(ranks[rank], signal.SIGUSR2)
        running.until(lambda asked=asked: _num_saved(run_dir) > asked)  # type: ignore[misc]
        time.sleep(0.5)
        assert _num_saved(run_dir) == asked + 1
    os.kill(ranks[1], signal.SIGUSR1)
    done = running.wait(timeout=60)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "stopped by a signal to another rank" in done.stdout
    _account(done.stdout)
    assert np.isfinite(weights(run_dir)).all()


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("worker:raise@30", r"\[rank 2\] RuntimeError: a planted fault"),
        ("1:kill@30", r"process rank 1 with PID"),
        ("owner:stop@30", r"rank 0 gave no sign of life for \d+ s \(phase \w+, update \d+\)"),
    ],
)
def test_a_rank_that_breaks_is_named_and_ends_the_job(tmp_path: Path, fault: str, named: str) -> None:
    owners = 1 if fault.startswith("owner") else 2
    options = ("--learners", owners, "--hang-timeout", 2, "--checkpoint-every", 2048, *_FOREVER)
    done = _start_with_a_fault(tmp_path / "run", fault, owners + 1, *options).wait(timeout=60)
    assert done.returncode not in (0, None)
    assert re.search(named, done.stderr), done.stderr
    if "raise" in fault:
        assert done.returncode == 1
        assert "[rank 2]     fault()" in done.stderr
    assert np.isfinite(weights(tmp_path / "run")).all()


@pytest.mark.parametrize(
    ("size", "owners", "placement", "message"),
    [
        (
            3,
            3,
            "split",
            r"--learners 3, owners of the weights, needs at least 4 ranks \(or --placement colocated\), got 3",
        ),
        (2, 5, "split", "needs at least 6 ranks"),
        (2, 3, "colocated", "--learners 3, owners of the weights, needs at least 3 ranks, got 2"),
        (1, 2, "split", "needs at least 2 ranks, got 1"),
    ],
)
def test_owners_that_leave_no_worker_are_refused(size: int, owners: int, placement: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_workers("a" * size, owners, placement, 16)  # type: ignore[arg-type]


def test_owners_are_spread_over_nodes_and_every_rank_may_be_a_worker() -> None:
    layout = plan_workers("aaabb", 2, "split", 7)
    assert (layout.learners, layout.actors) == ((0, 3), (1, 2, 4))
    assert list(layout.env_blocks.values()) == [range(3), range(3, 5), range(5, 7)]
    colocated = plan_workers("aa", "auto", "colocated", 4)
    assert (colocated.learners, colocated.actors) == ((0,), (0, 1)) and not colocated.is_colocated
    alone = plan_workers("a", "auto", "split", 4)
    assert alone.learners == alone.actors == (0,)


def test_options_that_a3c_does_not_have_are_refused() -> None:
    with pytest.raises(ConfigError, match="--max-lag must be a whole number of 0 or more, got -1"):
        A3CConfig(max_lag=-1)
    with pytest.raises(ConfigError, match="preset first-light is for a2c, not for a3c"):
        preset("first-light", "a3c")
    with pytest.raises(ConfigError, match="--max-lag must be"):
        parse("a3c", ["--max-lag", "-1"])
    with pytest.raises(ConfigError, match=r"unknown option --batch-envs \(an option of impala and appo\)"):
        parse("a3c", ["--batch-envs", "8"])
