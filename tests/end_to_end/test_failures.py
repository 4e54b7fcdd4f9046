"""A rank that fails, dies or hangs ends the job, named; nothing hangs, and the last checkpoint stays good."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from hpcrl.cluster.launch import launcher_command, rank_environment
from tests.commands import Running, in_turn, run, weights

_FOREVER = (
    "--total-env-steps",
    "100000000",
    "--num-iterations",
    "1000",
    "--checkpoint-every",
    "2048",
    "--no-tensorboard",
)


def _start(run_dir: Path, fault: str, *options: str, ranks: int = 3, algorithm: str = "a2c") -> Running:
    command = [
        sys.executable,
        "-m",
        "tests.faults",
        fault,
        "train",
        algorithm,
        "--run-dir",
        str(run_dir),
        *_FOREVER,
        *options,
    ]
    return Running(launcher_command(ranks, command), environment=rank_environment(os.environ))


@pytest.mark.parametrize(("role", "algorithm"), [("learner", "impala"), ("actor", "a2c")])
def test_an_exception_ends_the_job_with_its_traceback(tmp_path: Path, role: str, algorithm: str) -> None:
    done = _start(tmp_path / "run", f"{role}:raise@30", algorithm=algorithm).wait(timeout=30)
    rank = {"actor": 1, "learner": 0}[role]
    assert done.returncode == 1
    assert f"[rank {rank}] RuntimeError: a planted fault" in done.stderr
    assert f"[rank {rank}]     fault()" in done.stderr
    assert weights(tmp_path / "run").size


@pytest.mark.parametrize(
    ("role", "fault", "algorithm"),
    [("learner", "exit", "a2c"), ("actor", "kill", "impala"), ("learner", "kill", "impala")],
)
def test_a_rank_that_vanishes_ends_the_job(tmp_path: Path, role: str, fault: str, algorithm: str) -> None:
    done = _start(tmp_path / "run", f"{role}:{fault}@30", algorithm=algorithm).wait(timeout=30)
    assert done.returncode not in (0, None)
    assert weights(tmp_path / "run").size


_STOPPED = {
    "actor": (1, 3, "impala", ()),
    "rank-0": (0, 3, "a2c", ()),
    "learner": (1, 2, "a2c", ("--placement", "colocated")),
}


@pytest.mark.parametrize(("rank", "ranks", "algorithm", "options"), _STOPPED.values(), ids=_STOPPED)
def test_a_stopped_rank_is_named_and_ends_the_job(
    tmp_path: Path, rank: int, ranks: int, algorithm: str, options: tuple[str, ...]
) -> None:
    hang = ("--hang-timeout", "3")
    running = _start(tmp_path / "run", f"{rank}:stop@30", *hang, *options, ranks=ranks, algorithm=algorithm)
    done = running.wait(timeout=40)
    assert done.returncode not in (0, None)
    named = re.search(rf"rank {rank} gave no sign of life for \d+ s \(phase (\w+), update (\d+)\)", done.stderr)
    assert named is not None and named[1] == "transport" and 0 < int(named[2]) < 30


def test_an_environment_that_sleeps_for_ever_is_named(tmp_path: Path) -> None:
    done = _start(tmp_path / "run", "actor:sleep@30", "--hang-timeout", "3").wait(timeout=40)
    assert done.returncode not in (0, None)
    assert "rank 1 gave no sign of life" in done.stderr


_SCRIPT = """
import hpcrl
from hpcrl.cluster.mpi import world

config = hpcrl.A2CConfig(total_env_steps=10**9, num_iterations=10**5, tensorboard=False, run_dir="run")
with hpcrl.Trainer(config) as trainer:
    for row in trainer:
        if row["iteration"] == 2 and world().rank == 1:
            raise ValueError("a fault in the script around the trainer")
"""


def test_a_script_that_fails_on_one_rank_ends_the_job(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(_SCRIPT)
    command = launcher_command(2, [sys.executable, "script.py"])
    done = run(command, timeout=40, folder=tmp_path, environment=rank_environment(os.environ))
    assert done.returncode == 1
    assert "[rank 1] ValueError: a fault in the script around the trainer" in done.stderr


def test_a_single_process_that_hangs_ends_itself(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.faults",
        "learner:sleep@30",
        "train",
        "a2c",
        "--run-dir",
        str(tmp_path / "run"),
    ]
    done = run([*command, *_FOREVER, "--hang-timeout", "1"], timeout=40)
    assert done.returncode == -9
    assert "rank 0 gave no sign of life" in done.stderr


def test_a_job_that_lost_a_rank_is_resumed(tmp_path: Path) -> None:
    length = ("--total-env-steps", "30000", "--num-iterations", "3")
    _start(tmp_path / "run", "actor:kill@30", *length, ranks=2).wait(timeout=30)
    common = ("train", "a2c", "--no-tensorboard", "--run-dir")
    resume = (*common, tmp_path / "run", "--resume")
    resumed, uninterrupted = in_turn([resume, (*common, tmp_path / "uninterrupted", *length)], ranks=2)
    assert resumed.returncode == uninterrupted.returncode == 0, f"{resumed.stderr}\n{uninterrupted.stderr}"
    assert "finished at env step" in resumed.stdout
    assert weights(tmp_path / "run").tobytes() == weights(tmp_path / "uninterrupted").tobytes()
