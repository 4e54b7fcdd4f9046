"""Ways to start ranks under Slurm: wrong ones are refused in one sentence, all others run."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.slurm.cluster import CPUS
from tests.slurm.jobs import REPOSITORY, Jobs

_TRAIN = ("train", "a2c", "--total-env-steps", 4096, "--num-iterations", 1, "--no-tensorboard")


def _run(
    jobs: Jobs, *words: object, variables: dict[str, str] | None = None, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    environment = jobs.cluster.environment | jobs.variables | (variables or {})
    command = list(map(str, words))
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=jobs.folder, timeout=timeout, check=False
    )


def _hpcrl(jobs: Jobs) -> tuple[str, ...]:
    return (str(jobs.environment / "bin/python3"), "-m", "hpcrl")


@pytest.mark.parametrize(
    ("leg", "given", "fitting"), [("jobs", "none", "pmix"), ("jobs", "pmi2", "pmix"), ("mpich_jobs", "pmix", "pmi2")]
)
@pytest.mark.parametrize("command", ["train", "doctor"])
def test_a_wrong_mpi_is_refused_in_one_sentence(
    leg: str, given: str, fitting: str, command: str, request: pytest.FixtureRequest
) -> None:
    jobs: Jobs = request.getfixturevalue(leg)
    words = _TRAIN if command == "train" else ("doctor",)
    done = _run(jobs, "srun", "--ntasks=4", f"--mpi={given}", *_hpcrl(jobs), *words)
    assert done.returncode != 0
    said = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("srun:")]
    assert sum("--mpi=" in line and "promises" not in line for line in said) >= 1, said
    assert any(f"--mpi={fitting}" in line for line in said), said
    assert len(said) <= (1 if command == "train" else 6), said
    assert not (jobs.folder / "runs").exists()


def test_an_unfitting_mpi_of_the_script_is_refused(jobs: Jobs) -> None:
    job = jobs.sbatch(REPOSITORY / "slurm/train_cpu.sbatch", variables={"HPCRL_MPI": "pmi2"})
    assert jobs.ends(job) == "FAILED", jobs.log(job)
    assert jobs.log(job).count("use srun --mpi=pmix") == 1


@pytest.mark.parametrize("leg", ["jobs", "mpich_jobs"])
def test_mpirun_inside_sbatch_runs_with_fewer_ranks_than_tasks(leg: str, request: pytest.FixtureRequest) -> None:
    jobs: Jobs = request.getfixturevalue(leg)
    mpirun = jobs.environment / "bin/mpirun"
    script = jobs.folder / "mine.sbatch"
    words = " ".join(map(str, (*_hpcrl(jobs), *_TRAIN, "--run-dir", "runs/mine")))
    script.write_text(
        f"#!/bin/bash\nexport OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1\n{mpirun} -n 2 {words}\n"
    )
    job = jobs.sbatch("--nodes=2", "--ntasks-per-node=2", "--output=mine-%j.log", script)
    assert jobs.ends(job) == "COMPLETED", jobs.log(job)
    assert json.loads((jobs.folder / "runs/mine/config.json").read_text())["layout"]["ranks"] == 2


def test_the_shell_of_an_allocation_trains_evaluates_and_examines(jobs: Jobs) -> None:
    hpcrl = " ".join(_hpcrl(jobs))
    train = " ".join(map(str, (*_TRAIN, "--run-dir", "runs/mine")))
    script = f"set -e; {hpcrl} {train} --ranks 2; {hpcrl} eval runs/mine --episodes 2; {hpcrl} doctor --run-dir runs"
    done = _run(jobs, "salloc", "--nodes=2", "--ntasks-per-node=2", "sh", "-c", script)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 episodes: return" in done.stdout
    assert "nothing is wrong" in done.stdout


def test_a_shell_that_is_a_task_itself_starts_ranks_of_its_own(jobs: Jobs) -> None:
    words = (*_hpcrl(jobs), *_TRAIN, "--run-dir", "runs/mine", "--ranks", 2)
    done = _run(jobs, "srun", "--ntasks=1", "--mpi=none", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((jobs.folder / "runs/mine/config.json").read_text())["layout"]["ranks"] == 2


def test_a_second_job_is_kept_out_of_a_run_directory(jobs: Jobs) -> None:
    one = jobs.sbatch(
        "--ntasks-per-node=1", REPOSITORY / "slurm/train_cpu.sbatch", "a2c", variables={"HPCRL_RUN_DIR": "runs/x"}
    )
    jobs.start(one)
    jobs.until(lambda: "\niteration" in jobs.log(one), one)
    other = jobs.sbatch(
        "--ntasks-per-node=1", REPOSITORY / "slurm/train_cpu.sbatch", "a2c", variables={"HPCRL_RUN_DIR": "runs/x"}
    )
    assert jobs.ends(other) == "FAILED", jobs.log(other)
    assert re.search(rf"in use by pid \d+ on host cpu1 \(job {one}\)", jobs.log(other))


def test_every_rank_keeps_to_cores_of_its_own(jobs: Jobs) -> None:
    # The cluster has no cgroups: ranks see all CPUs of the machine, which are the job's own where it has as many.
    cpus = len(os.sched_getaffinity(0))
    ranks = min(cpus, CPUS)
    words = (*_hpcrl(jobs), *_TRAIN, "--num-envs", 8, "--run-dir", "runs/mine")
    done = _run(jobs, "srun", "--nodes=1", f"--ntasks={ranks}", "--mpi=pmix", "--cpu-bind=none", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    said = next(line for line in done.stdout.splitlines() if line.startswith("cores: "))
    assert said.startswith("cores: rank" if 1 < cpus <= CPUS else "cores: not pinned on cpu1"), said


def _doctor(
    jobs: Jobs, *options: str, run_dir: Path | str = "runs", **variables: str
) -> subprocess.CompletedProcess[str]:
    """The doctor on two nodes of one rank each."""
    srun = ("srun", "--nodes=2", "--ntasks-per-node=1", "--mpi=pmix", *options)
    return _run(jobs, *srun, *_hpcrl(jobs), "doctor", "--run-dir", run_dir, variables=variables)


def test_the_doctor_finds_nothing_wrong_on_a_healthy_cluster(jobs: Jobs) -> None:
    done = _doctor(jobs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 ranks on 2 nodes" in done.stdout
    assert "WRONG" not in done.stdout


def test_the_doctor_finds_planted_faults(jobs: Jobs) -> None:
    (jobs.folder / "file").touch()
    run_dir = jobs.folder / "file/runs"
    pinned = ("--ntasks-per-node=2", "taskset", "-c", "0")
    done = _doctor(jobs, *pinned, run_dir=run_dir, OMP_NUM_THREADS="8")
    wrong = {line.split()[1]: line for line in done.stdout.splitlines() if line.startswith("WRONG")}
    assert done.returncode == 1, done.stdout + done.stderr
    assert wrong.keys() >= {"cores", "threads", "run"}
    assert "core 0" in wrong["cores"]
    assert "OMP_NUM_THREADS=8" in wrong["threads"]
    assert str(run_dir) in wrong["run"]
