"""`hpcrl submit` and `hpcrl status`, and the job array of the scaling benchmark."""

from __future__ import annotations

import re
import subprocess

import pytest

from hpcrl.storage.run_directory import RunDirectory
from tests.slurm.jobs import REPOSITORY, Jobs

_TRAINING = ("a2c", "--checkpoint-every", 4096, "--no-tensorboard", "--no-episode-log")
_TWO_RANKS = ("--nodes", 2, "--ntasks-per-node", 1, "--partition", "strict", "--time", 5)
_ENDLESS = ("--total-env-steps", 1_000_000_000, "--num-iterations", 200_000)


def _hpcrl(jobs: Jobs, *words: object) -> str:
    """Output of an hpcrl command that succeeds."""
    command = [jobs.environment / "bin/python3", "-m", "hpcrl", *words]
    environment = jobs.cluster.environment | jobs.variables
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        env=environment,
        cwd=jobs.folder,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_submitted_run_tells_how_it_stands(jobs: Jobs) -> None:
    said = _hpcrl(jobs, "submit", *_TRAINING, *_ENDLESS, "--run-dir", "runs/mine", *_TWO_RANKS)
    job = re.findall(r"submitted job (\d+)\n", said)[0]
    jobs.adopt(job)
    assert f"log: {jobs.folder}/runs/mine/slurm-{job}.log" in said
    jobs.start(job)
    jobs.until(lambda: "\niteration" in jobs.log(job), job)
    running = _hpcrl(jobs, "status", "runs/mine")
    assert "runs/mine: running\n" in running
    assert f"job {job}: RUNNING on cpu[1-2]" in running
    assert re.search(r"progress: [\d,]+ of 1,000,000,000 env steps", running)
    assert "restarts: 0" in running
    jobs.cluster.call("scancel", "--signal=USR1", "--batch", job)
    jobs.until(lambda: jobs.show(job, "JobState") == "PENDING", job)
    waiting = _hpcrl(jobs, "status", "runs/mine")
    assert "runs/mine: saved, waits in the queue to go on\n" in waiting
    assert f"job {job}: PENDING (BeginTime)" in waiting
    assert re.search(r"last checkpoint: step_\d+\.h5, 0:00:\d\d ago", waiting)
    jobs.start(job)
    jobs.until(lambda: "restarts: 1 (at env steps" in _hpcrl(jobs, "status", "runs/mine"), job)


def test_a_chain_of_three_jobs_goes_on_where_the_one_before_stopped(jobs: Jobs) -> None:
    work = ("--total-env-steps", 200_000, "--num-iterations", 100)
    said = _hpcrl(jobs, "submit", *_TRAINING, *work, "--run-dir", "runs/mine", *_TWO_RANKS, "--chain", 3)
    chain = re.findall(r"submitted job (\d+), and after it (\d+), (\d+)\n", said)[0]
    for job in chain:
        jobs.adopt(job)
    first, second, third = chain
    jobs.start(first)
    jobs.until(lambda: "\niteration" in jobs.log(first), first)
    assert "waits" not in _hpcrl(jobs, "status", "runs/mine").partition("\n")[0]
    jobs.cluster.call("scancel", "--signal=USR1", "--batch", first)
    assert jobs.ends(first) == "COMPLETED", jobs.log(first)
    assert jobs.show(first, "Restarts") == "0"
    assert jobs.ends(second) == "COMPLETED", jobs.log(second)
    assert jobs.ends(third) == "COMPLETED", jobs.log(third)
    assert "an earlier job of the chain has finished the run" in jobs.log(third)
    assert "a2c on" not in jobs.log(third)
    directory = RunDirectory(jobs.folder / "runs/mine")
    assert directory.read_outcome() == "finished"
    assert directory.read_jobs() == list(chain)
    assert len(directory.read_config()["resumes"]) == 1
    assert "runs/mine: finished" in _hpcrl(jobs, "status", "runs/mine")


def test_slurm_checks_the_script_before_it_is_submitted(jobs: Jobs) -> None:
    with pytest.raises(AssertionError, match=r"hpcrl: sbatch refuses the job: .*Invalid partition"):
        _hpcrl(jobs, "submit", *_TRAINING, "--nodes", 1, "--ntasks-per-node", 2, "--partition", "nowhere")
    assert not (jobs.folder / "runs").exists()


def test_the_cores_of_a_node_are_asked_of_slurm(jobs: Jobs) -> None:
    assert "#SBATCH --ntasks-per-node=4\n" in _hpcrl(jobs, "submit", "a2c", "--nodes", 1, "--dry-run")
    gpus = ("--partition", "gpu", "--gpus-per-node", 1, "--learner-cores", 2)
    assert "#SBATCH --ntasks-per-node=3\n" in _hpcrl(jobs, "submit", "a2c", "--nodes", 1, *gpus, "--dry-run")


def test_the_scaling_array_writes_what_the_plot_reads(jobs: Jobs) -> None:
    short = ("--mode", "strong", "--repeats", 1, "--env-steps", 24_000, "--num-envs", 12)
    variables = {"HPCRL_RUN_DIR": str(jobs.folder / "results")}
    options = (f"--chdir={REPOSITORY}", f"--output={jobs.folder}/%x-%A_%a.log", "--array=0-1")
    array = jobs.sbatch(*options, REPOSITORY / "slurm/scaling.sbatch", *short, variables=variables)
    results = [jobs.folder / f"results/scaling-{array}_{element}.jsonl" for element in (0, 1)]
    jobs.until(lambda: all(path.exists() for path in results), array, timeout_s=120)
    jobs.until(lambda: not jobs.cluster.call("squeue", "--noheader", f"--jobs={array}", check=False).strip(), array)
    plot = [jobs.environment / "bin/python3", "-m", "benchmarks.plot", *results, "-o", jobs.folder / "scaling.png"]
    done = subprocess.run(list(map(str, plot)), capture_output=True, text=True, cwd=REPOSITORY, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (jobs.folder / "scaling.png").stat().st_size > 10_000
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("|")]
    assert {"1", "2"} <= set(rows), done.stdout
