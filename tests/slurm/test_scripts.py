"""The batch scripts that are shipped, on a real cluster."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from hpcrl.storage.run_directory import RunDirectory
from tests.slurm.jobs import REPOSITORY, Jobs

_SCRIPTS = REPOSITORY / "slurm"
_SHORT = ("--total-env-steps", 20_000, "--num-iterations", 2, "--no-tensorboard")


def _config(jobs: Jobs, job: str) -> dict[str, Any]:
    return json.loads((jobs.folder / f"runs/hpcrl-{job}/config.json").read_text())


def test_train_cpu_as_shipped_trains_on_two_nodes_of_four_ranks(jobs: Jobs) -> None:
    job = jobs.sbatch(_SCRIPTS / "train_cpu.sbatch", "a2c", "--total-env-steps", 60_000)
    assert jobs.ends(job) == "COMPLETED", jobs.log(job)
    layout = _config(jobs, job)["layout"]
    assert layout["hosts"] == ["cpu1"] * 4 + ["cpu2"] * 4
    assert layout["learners"] == [0, 4]
    returns = re.findall(r"iteration \d+/\d+ .* return ([\d.]+) ", jobs.log(job))
    assert float(returns[-1]) > 150 > float(returns[0])
    assert RunDirectory(jobs.folder / f"runs/hpcrl-{job}").read_outcome() == "finished"


def test_train_gpu_has_a_learner_for_every_gpu(jobs: Jobs) -> None:
    job = jobs.sbatch(_SCRIPTS / "train_gpu.sbatch", "impala", "--num-envs", 8, "--batch-envs", 8, *_SHORT)
    assert jobs.ends(job) == "COMPLETED", jobs.log(job)
    layout = _config(jobs, job)["layout"]
    assert layout["hosts"] == ["gpu1"] * 4 + ["gpu2"] * 4
    assert layout["learners"] == [0, 1, 4, 5]
    assert {int(actor): learner for actor, learner in layout["learner_of"].items()} == {2: 0, 3: 1, 6: 4, 7: 5}


def test_train_het_is_one_world_of_learners_on_gpu_nodes_and_actors_on_cpu_nodes(mpich_jobs: Jobs) -> None:
    job = mpich_jobs.sbatch(_SCRIPTS / "train_het.sbatch", "a2c", *_SHORT)
    assert mpich_jobs.ends(job) == "COMPLETED", mpich_jobs.log(job)
    layout = _config(mpich_jobs, job)["layout"]
    assert layout["hosts"] == ["gpu1", "gpu2", "cpu1", "cpu1", "cpu2", "cpu2"]
    assert layout["learners"] == [0, 1]
    assert sorted(layout["learner_of"].values()) == [0, 0, 1, 1]


@pytest.mark.parametrize("option", ["--no-such-option", "--num-envs"])
def test_bad_arguments_end_the_job_at_once_without_a_requeue(jobs: Jobs, option: str) -> None:
    job = jobs.sbatch("--ntasks-per-node=1", _SCRIPTS / "train_cpu.sbatch", "a2c", option)
    assert jobs.ends(job) == "FAILED", jobs.log(job)
    assert jobs.show(job, "ExitCode") == "2:0"
    assert jobs.show(job, "Restarts") == "0"
