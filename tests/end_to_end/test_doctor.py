"""`hpcrl doctor` as a user runs it: a healthy place, and places with faults that it must find and name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from hpcrl.cluster.launch import launcher_command, rank_environment
from tests.commands import HPCRL, hpcrl, run

_NUMERICS = ("OMP_", "MKL_", "OPENBLAS_", "GOMP_", "KMP_")
_CORES = sorted(os.sched_getaffinity(0))


def _environment(**variables: str) -> Mapping[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith((*_NUMERICS, "SLURM_"))}
    return rank_environment(clean | variables)


def _lines(done: subprocess.CompletedProcess[str], name: str) -> list[str]:
    """The lines about a check, the one of what to do under it included."""
    lines = done.stdout.splitlines()
    found = [place for place, line in enumerate(lines) if line[7:].startswith(name)]
    return [line for place in found for line in lines[place : place + 2] if place + 1 < len(lines)]


@pytest.mark.skipif(len(_CORES) < 2, reason="two ranks need two cores")
def test_two_ranks_of_a_healthy_place(tmp_path: Path) -> None:
    command = [*HPCRL, "doctor", "--run-dir", "runs", "--json", "report.json"]
    done = run(launcher_command(2, command), environment=_environment(), folder=tmp_path)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "WRONG" not in done.stdout
    for name in (
        "world",
        "cores",
        "threads",
        "gpus",
        "mpi",
        "allreduce",
        "node link",
        "sums",
        "run dir",
        "hdf5",
        "versions",
    ):
        assert len([line for line in done.stdout.splitlines() if line[7:].startswith(f"{name} ")]) == 1, done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert [rank["rank"] for rank in report["ranks"]] == [0, 1]
    assert not report["wrong"]
    assert len(report["findings"]) >= 11
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.skipif(shutil.which("taskset") is None, reason="there is no taskset")
def test_threads_and_binding_and_a_folder_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = launcher_command(2, [*HPCRL, "doctor", "--run-dir", str(tmp_path / "file" / "runs")])
    environment = _environment(OMP_NUM_THREADS="8")
    done = run(["taskset", "-c", str(_CORES[0]), *command], environment=environment, folder=tmp_path)
    assert done.returncode == 1, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stdout + done.stderr
    cores, cores_do, threads, threads_do, folder, folder_do = [
        line for name in ("cores", "threads", "run dir") for line in _lines(done, name)
    ]
    assert (cores[:5], threads[:5], folder[:5]) == ("WRONG",) * 3
    assert "ewer ranks" in cores_do
    assert "OMP_NUM_THREADS=8" in threads
    assert "unset OMP_NUM_THREADS" in threads_do
    assert str(tmp_path / "file" / "runs") in folder
    assert "--run-dir" in folder_do
    assert "3 things are wrong" in done.stdout


def test_tasks_of_srun_that_each_are_alone(tmp_path: Path) -> None:
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2"}
    tasks = [
        run([*HPCRL, "doctor"], environment=_environment(**step, SLURM_PROCID=str(task)), folder=tmp_path)
        for task in range(2)
    ]
    assert [task.returncode for task in tasks] == [1, 1]
    assert "WRONG  world" in tasks[0].stdout
    assert "--mpi=p" in tasks[0].stdout
    assert tasks[1].stdout == ""


def test_bad_options_are_refused_in_one_sentence() -> None:
    for arguments in (("--bla",), ("--time-limit", 0), ("--time-limit", "soon")):
        done = hpcrl("doctor", *arguments)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert str(arguments[0]) in done.stderr
