"""Warnings, requeues and preemption: the run is saved, comes back once each time, and ends as if nothing had been."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

from hpcrl.storage.run_directory import RunDirectory
from tests.slurm.jobs import REPOSITORY, Jobs

_SCRIPT = REPOSITORY / "slurm/train_cpu.sbatch"
_TWO_RANKS = ("--ntasks-per-node=1", "--nodes=2")
_TRAINING = ("a2c", "--checkpoint-every", 4096, "--no-tensorboard", "--no-episode-log")
_LONG = ("--total-env-steps", 200_000, "--num-iterations", 100)
_ENDLESS = ("--total-env-steps", 1_000_000_000, "--num-iterations", 200_000)
_SHA = re.compile(r"weights sha256 (\w{64})")


def _run_dir(jobs: Jobs, job: str) -> Path:
    return jobs.folder / f"runs/hpcrl-{job}"


def _starts(jobs: Jobs, job: str) -> int:
    """How often the script of a job has started."""
    return RunDirectory(_run_dir(jobs, job)).jobs_file.read_text().split().count(job)


def _trains(jobs: Jobs, job: str) -> None:
    """Wait until the job's present start has reported an iteration."""
    start = f"restarts: {jobs.show(job, 'Restarts')},"
    jobs.until(lambda: "\niteration" in jobs.log(job).partition(start)[2], job)


def _warn(jobs: Jobs, job: str) -> None:
    jobs.cluster.call("scancel", "--signal=USR1", "--batch", job)


def _is_restarted(jobs: Jobs, job: str, times: int) -> None:
    jobs.until(lambda: jobs.show(job, "Restarts") == str(times), job)
    jobs.start(job)


def test_a_run_that_is_interrupted_again_and_again_equals_the_uninterrupted_one(jobs: Jobs) -> None:
    work = (*_TRAINING, *_LONG)
    whole = jobs.sbatch(*_TWO_RANKS, _SCRIPT, *work)
    assert jobs.ends(whole) == "COMPLETED", jobs.log(whole)

    job = jobs.sbatch(*_TWO_RANKS, _SCRIPT, *work)
    jobs.start(job)
    jobs.until(lambda: "restarts:" in jobs.log(job), job)
    _warn(jobs, job)  # before Python has started
    _is_restarted(jobs, job, 1)

    _trains(jobs, job)
    jobs.cluster.call("scontrol", "requeue", job)
    _is_restarted(jobs, job, 2)

    _trains(jobs, job)
    urgent = jobs.sbatch("--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true", "--output=/dev/null")
    _is_restarted(jobs, job, 3)
    assert jobs.ends(urgent) == "COMPLETED"

    _trains(jobs, job)
    _warn(jobs, job)
    _is_restarted(jobs, job, 4)

    assert jobs.ends(job) == "COMPLETED", jobs.log(job)
    log = jobs.log(job)
    assert jobs.show(job, "Restarts") == "4"
    assert _starts(jobs, job) == 5
    assert len(re.findall("^hpcrl: requeued$", log, re.MULTILINE)) == 2
    assert len(re.findall("^hpcrl: preempted; Slurm requeues the job$", log, re.MULTILINE)) == 1
    assert _SHA.findall(log)[-1] == _SHA.findall(jobs.log(whole))[-1]


def test_the_same_over_mpich(mpich_jobs: Jobs) -> None:
    jobs, work = mpich_jobs, (*_TRAINING, *_LONG)
    whole = jobs.sbatch(*_TWO_RANKS, _SCRIPT, *work)
    assert jobs.ends(whole) == "COMPLETED", jobs.log(whole)
    job = jobs.sbatch(*_TWO_RANKS, _SCRIPT, *work)
    jobs.start(job)
    jobs.until(lambda: "cpu binding" in jobs.log(job), job)
    _warn(jobs, job)  # while Python starts
    _is_restarted(jobs, job, 1)
    _trains(jobs, job)
    _warn(jobs, job)
    _is_restarted(jobs, job, 2)
    assert jobs.ends(job) == "COMPLETED", jobs.log(job)
    assert jobs.show(job, "Restarts") == "2"
    assert _SHA.findall(jobs.log(job))[-1] == _SHA.findall(jobs.log(whole))[-1]


def test_the_time_limit_is_warned_of_and_the_job_goes_on(jobs: Jobs) -> None:
    # Slurm warns up to a minute early.
    limits = ("--time=1", "--signal=B:USR1@50")
    job = jobs.sbatch(*_TWO_RANKS, *limits, _SCRIPT, *_TRAINING, *_ENDLESS)
    jobs.until(lambda: "hpcrl: requeued" in jobs.log(job), job, timeout_s=90)
    _is_restarted(jobs, job, 1)
    _trains(jobs, job)


def test_where_scontrol_fails_a_new_job_goes_on_and_restarts_are_counted(jobs: Jobs, without_scontrol: Path) -> None:
    path = f"{without_scontrol}:{jobs.variables['PATH']}"
    script = jobs.folder / "mine.sbatch"
    script.write_text(_SCRIPT.read_text().replace("max_restarts=100", "max_restarts=1"))
    job = jobs.sbatch(*_TWO_RANKS, script, *_TRAINING, *_ENDLESS, variables={"PATH": path})
    jobs.start(job)
    _trains(jobs, job)
    _warn(jobs, job)
    assert jobs.ends(job) == "COMPLETED", jobs.log(job)
    submitted = re.search(r"Submitted batch job (\d+)\n", jobs.log(job))
    assert submitted, jobs.log(job)
    following = submitted[1]
    jobs.until(lambda: "\niteration" in jobs.log(following), following)
    assert RunDirectory(_run_dir(jobs, job)).read_jobs() == [job, following]
    assert not _run_dir(jobs, following).exists()
    _warn(jobs, following)
    assert jobs.ends(following) == "FAILED", jobs.log(following)
    assert "not requeued after 1 restarts; to go on: " in jobs.log(following)


def test_a_cancelled_job_does_not_come_back(jobs: Jobs) -> None:
    job = jobs.sbatch(*_TWO_RANKS, _SCRIPT, *_TRAINING, *_ENDLESS)
    jobs.start(job)
    _trains(jobs, job)
    jobs.cluster.call("scancel", job)
    assert jobs.ends(job) == "CANCELLED"
    jobs.until(lambda: not jobs.cluster.call("squeue", "--noheader", f"--jobs={job}", check=False).strip(), job)
    assert jobs.show(job, "Restarts") == "0"


def test_ranks_that_somebody_else_stops_leave_the_job_completed(jobs: Jobs) -> None:
    job = jobs.sbatch(*_TWO_RANKS, _SCRIPT, *_TRAINING, *_ENDLESS)
    jobs.start(job)
    _trains(jobs, job)
    jobs.cluster.call("scancel", "--signal=USR1", job)
    assert jobs.ends(job) == "COMPLETED", jobs.log(job)
    assert jobs.show(job, "Restarts") == "0"
    assert RunDirectory(_run_dir(jobs, job)).read_outcome() == "stopped"


def test_a_killed_rank_ends_the_job_at_once(jobs: Jobs, mpich_jobs: Jobs) -> None:
    for one in (jobs, mpich_jobs):
        job = one.sbatch(*_TWO_RANKS, _SCRIPT, *_TRAINING, *_ENDLESS)
        one.start(job)
        _trains(one, job)
        os.kill(_ranks(job)[1], signal.SIGKILL)
        assert one.ends(job, timeout_s=20) == "FAILED", one.log(job)
        assert one.show(job, "Restarts") == "0"
        assert "to go on from the last checkpoint: " in one.log(job)


def test_a_node_that_dies_gives_the_job_back_to_slurm_and_it_resumes(jobs: Jobs) -> None:
    job = jobs.sbatch(*_TWO_RANKS, _SCRIPT, *_TRAINING, *_ENDLESS)
    jobs.start(job)
    _trains(jobs, job)
    jobs.cluster.stop("cpu2")
    try:
        jobs.until(lambda: jobs.show(job, "Restarts") == "1", job, timeout_s=90)
        assert "a node does not answer" in jobs.log(job) or "NODE FAILURE" in jobs.log(job)
    finally:
        jobs.cluster.start_node("cpu2")
    jobs.start(job, timeout_s=90)
    _trains(jobs, job)
    resumed = (_run_dir(jobs, job) / "config.json").read_text()
    assert int(re.findall(r'"env_steps": (\d+)', resumed)[-1]) > 0


def _ranks(job: str) -> dict[int, int]:
    """Process ids of a job's ranks by their numbers."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            variables = (entry / "environ").read_bytes().split(b"\0") if entry.name.isdigit() else []
            is_python = variables and b"hpcrl\0train\0" in (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if is_python and f"SLURM_JOB_ID={job}".encode() in variables:
            number = next((one for one in variables if one.startswith(b"SLURM_PROCID=")), None)
            task = any(one.startswith(b"SLURM_STEP_ID=") for one in variables)
            if number is not None and task and "python" in (entry / "exe").readlink().name:
                found[int(number.partition(b"=")[2])] = int(entry.name)
    return found
