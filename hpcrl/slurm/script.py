"""Renders batch scripts: what Slurm is asked for, what is set, and blocks of shell that are the same in all."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from hpcrl.slurm.job import Component, Job, Training

_BLOCKS = Path(__file__).with_name("blocks")
_ARGUMENTS_AFTER = 'if [ $# -gt 0 ]; then {name}=("$@"); fi # those after the name of this file take their place'
_ENVIRONMENT = (
    "# Which Python: that of an environment, .venv by default, else what modules put on the path.",
    "environment=${HPCRL_ENVIRONMENT:-.venv}",
)


def training_script(job: Job, training: Training, title: Sequence[str]) -> str:
    """The batch script of a run.

    Args:
        job: what is asked of Slurm.
        training: what is run.
        title: lines of comment at the top.
    """
    parts = [_header(job, title), _block("warnings"), _settings(job, training)]
    parts += [_block(name) for name in _names(job, training)]
    return "\n".join(parts)


def scaling_script(job: Job, layouts: Sequence[tuple[int, int]], title: Sequence[str]) -> str:
    """The batch script of a scaling benchmark: a job array, one layout an element.

    Args:
        job: what is asked of Slurm for the largest layout.
        layouts: nodes and ranks of each element.
        title: lines of comment at the top.
    """
    lines = [
        "# Nodes and ranks of each element of the array.",
        f"layouts=({_words([f'{nodes} {ranks}' for nodes, ranks in layouts])})",
        "# What to measure: the arguments of `python -m benchmarks.scaling`.",
        "benchmark=(--mode strong)",
        _ARGUMENTS_AFTER.format(name="benchmark"),
        "run_dir=${HPCRL_RUN_DIR:-results}",
        *_ENVIRONMENT,
        f"max_restarts={job.max_restarts}",
    ]
    parts = [_header(job, title, f"#SBATCH --array=0-{len(layouts) - 1}"), _block("warnings"), _lines(lines)]
    names = ["start", "every_node", "python", "mpi", "leftovers", "scaling", "wait"]
    names += ["finished_scaling", "preempted", "lost_node", "ended_scaling", "requeue"]
    return "\n".join([*parts, *(_block(name) for name in names)])


def _names(job: Job, training: Training) -> Iterator[str]:
    het = "het_" if len(job.components) > 1 else ""
    yield from ("start", "jobs")
    if training.on_warning == "chain":
        yield "chained"
    yield from (f"{het}every_node", "stage" if training.packed_environment else "python")
    yield from ("mpi", "leftovers", "ranks", f"{het}step", "wait")
    if training.packed_environment:
        yield "unstage"
    yield from ("finished", "preempted")
    yield from ("lost_node", "ended", "requeue") if training.on_warning == "requeue" else ("ended_chained",)


def _block(name: str) -> str:
    return (_BLOCKS / f"{name}.sh").read_text()


def _header(job: Job, title: Sequence[str], *more: str) -> str:
    lines = ["#!/bin/bash", *(f"# {line}".rstrip() for line in title), f"#SBATCH --job-name={job.name}"]
    lines += [f"#SBATCH --output={shlex.quote(job.output)}", "#SBATCH --open-mode=append", "#SBATCH --requeue"]
    lines += [f"#SBATCH --signal=B:USR1@{job.warning_s}", *more]
    lines += [f"#SBATCH {option}" for option in job.options]
    for number, component in enumerate(job.components):
        lines += ["#SBATCH hetjob"] * (number > 0)
        lines += [f"#SBATCH --time={job.time}", *(f"#SBATCH {option}" for option in _options(component))]
    return _lines(lines)


def _options(component: Component) -> Iterator[str]:
    if component.partition:
        yield f"--partition={component.partition}"
    yield f"--nodes={component.nodes}"
    yield f"--ntasks-per-node={component.tasks_per_node}"
    if component.gpus_per_node:
        yield f"--gpus-per-node={component.gpus_per_node}"
    if component.cpus_per_task > 1:
        yield f"--cpus-per-task={component.cpus_per_task}"
    if component.exclusive:
        yield from ("--exclusive", "--mem=0")


def _settings(job: Job, training: Training) -> str:
    lines = ["# What to train: the arguments of `hpcrl train`.", f"train=({_words(training.arguments)})"]
    if training.run_dir is None:
        lines += [_ARGUMENTS_AFTER.format(name="train")]
    lines += [f"roles=({_roles(job, training)})"]
    if training.run_dir is None:
        lines += ["# Where the run lies: the same after a requeue."]
        lines += ["run_dir=${HPCRL_RUN_DIR:-runs/$SLURM_JOB_NAME-$SLURM_JOB_ID}"]
    else:
        lines += [f"run_dir={shlex.quote(str(training.run_dir))}"]
    if training.packed_environment is not None:
        lines += [f"packed_environment={shlex.quote(str(training.packed_environment))}"]
        lines += [f"stage_dir={training.stage_dir}"]
    elif training.environment is not None:
        lines += [f"environment={shlex.quote(str(training.environment))}"]
    else:
        lines += _ENVIRONMENT
    if training.mpi is not None:
        lines += [f"HPCRL_MPI={shlex.quote(training.mpi)}"]
    if training.on_warning == "requeue":
        lines += [f"max_restarts={job.max_restarts}"]
    return _lines(lines)


def _roles(job: Job, training: Training) -> str:
    """The learners: one for every GPU of a job that has some, the first component of a heterogeneous job."""
    if not training.deals_roles:
        return ""
    if len(job.components) > 1:
        return '--learners "$SLURM_NTASKS_HET_GROUP_0" --learner-ranks first'
    if job.components[0].gpus_per_node:
        return "--learners $((SLURM_JOB_NUM_NODES * SLURM_GPUS_ON_NODE))"
    return ""


def _lines(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _words(arguments: Sequence[str]) -> str:
    return " ".join(map(shlex.quote, arguments))
