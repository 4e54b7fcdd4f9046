"""`hpcrl submit`: a batch script for a run, checked, kept in the run directory, and submitted."""

from __future__ import annotations

import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro

from hpcrl.cluster.layout import plan_layout, plan_workers
from hpcrl.commands.options import parse, take_value, without_file
from hpcrl.config import CONFIGS, A3CConfig, TrainConfig
from hpcrl.errors import ConfigError
from hpcrl.slurm import queue
from hpcrl.slurm.job import Component, Job, Training
from hpcrl.slurm.script import training_script
from hpcrl.storage.run_directory import RunDirectory, default_run_dir

_USAGE = "usage: hpcrl submit ALGORITHM [options of hpcrl train] --nodes N [options below] [--dry-run]"


def _option(help: str) -> object:
    return tyro.conf.arg(help=help)


@dataclass(frozen=True)
class SubmitOptions:
    """What is asked of Slurm; all other options are those of hpcrl train, which the job runs."""

    nodes: Annotated[int, _option("Nodes (those of the learners under --het).")] = 1
    ntasks_per_node: Annotated[int | None, _option("Ranks on a node (default: its cores are used up).")] = None
    gpus_per_node: Annotated[int, _option("GPUs of a node; each gets a learner.")] = 0
    partition: Annotated[str | None, _option("Partition (default: the site's).")] = None
    exclusive: Annotated[bool, _option("Whole nodes; implied where their cores are used up.")] = False
    het: Annotated[bool, _option("A heterogeneous job: learners on these nodes, actors on others.")] = False
    actor_nodes: Annotated[int, _option("--het: nodes of the actors.")] = 1
    actor_ntasks_per_node: Annotated[int | None, _option("--het: ranks on each of them.")] = None
    actor_partition: Annotated[str | None, _option("--het: their partition.")] = None
    time: Annotated[str, _option("Limit of a job, in Slurm's form (the run may take many jobs).")] = "01:00:00"
    warning: Annotated[int, _option("Seconds before the limit at which the run saves and is requeued.")] = 120
    max_restarts: Annotated[int, _option("Requeues at most.")] = 100
    chain: Annotated[int, _option("Jobs, each after the one before, where the site forbids requeueing.")] = 1
    job_name: Annotated[str | None, _option("Name of the job (default: of the run directory).")] = None
    sbatch: Annotated[tuple[str, ...], _option("Further options of sbatch: --sbatch=--account=physics ...")] = ()
    environment: Annotated[Path | None, _option("Python environment (default: the one that runs this).")] = None
    stage_env: Annotated[Path | None, _option("Archive of an environment, unpacked on every node's own disk.")] = None
    stage_dir: Annotated[str, _option("Folder on that disk; variables are the job's.")] = "${TMPDIR:-/tmp}"
    mpi: Annotated[str | None, _option("For srun --mpi (default: what the MPI library needs).")] = None
    dry_run: Annotated[bool, _option("Print the script; touch and submit nothing.")] = False


def submit(arguments: Sequence[str]) -> int:
    """Submit, or print; the exit status."""
    if not arguments or arguments[0].startswith("-"):
        if arguments[:1] not in (["-h"], ["--help"]):
            raise ConfigError(f"hpcrl submit needs an algorithm, one of: {', '.join(CONFIGS)}")
        print(f"{_USAGE}\n\nalgorithms: {', '.join(CONFIGS)}; hpcrl train ALGORITHM --help lists their options.\n")
        _split(["--help"])
    algorithm, *rest = arguments
    options, train_arguments = _split(rest)
    config = parse(algorithm, train_arguments, [field.name for field in fields(SubmitOptions)])
    train_arguments = without_file(algorithm, train_arguments)
    if take_value(train_arguments, "--ranks")[0] is not None:
        raise ConfigError("--ranks is decided by --nodes and --ntasks-per-node under hpcrl submit")
    run_dir = (config.run_dir or default_run_dir(config)).absolute()
    if options.chain < 1:
        raise ConfigError(f"--chain must be a whole number of at least 1, got {options.chain}")
    components = _components(options, config)
    _require_layout(config, components)
    job = Job(
        name=re.sub(r"[^\w.,+@%=-]", "_", run_dir.name) if options.job_name is None else options.job_name,
        components=components,
        time=options.time,
        warning_s=options.warning,
        output=f"{str(run_dir).replace('%', '%%')}/slurm-%j.log",
        options=options.sbatch,
        max_restarts=options.max_restarts,
    )
    if config.ranks is not None:  # of the run to resume
        size = sum(component.nodes * component.tasks_per_node for component in components)
        train_arguments = [*train_arguments, "--ranks", str(size)]
    training = _training(options, algorithm, train_arguments, run_dir, _deals_roles(config))
    script = training_script(job, training, [_title(arguments)])
    if options.dry_run:
        print(script, end="")
        return 0
    return _submit(script, run_dir, config.resume, options.chain)


def _split(arguments: Sequence[str]) -> tuple[SubmitOptions, list[str]]:
    """Our options, and those of hpcrl train in their order."""
    prog, quiet = "hpcrl submit ALGORITHM", (tyro.conf.FlagCreatePairsOff, tyro.conf.UseAppendAction)
    return tyro.cli(SubmitOptions, prog=prog, args=list(arguments), config=quiet, return_unknown_args=True)


def _title(arguments: Sequence[str]) -> str:
    return f"Made by: hpcrl submit {' '.join(shlex.join(arguments).splitlines())}"


def _components(options: SubmitOptions, config: TrainConfig) -> list[Component]:
    if not options.het:
        return [_only_component(options, config)]
    learners = options.ntasks_per_node or max(1, options.gpus_per_node)
    first = Component(
        options.nodes, learners, options.gpus_per_node, config.learner_cores, options.partition, options.exclusive
    )
    actors, whole = _tasks(options.actor_ntasks_per_node, options.actor_partition, 0, "--actor-ntasks-per-node")
    second = Component(options.actor_nodes, actors, partition=options.actor_partition, exclusive=whole)
    return [first, second]


def _only_component(options: SubmitOptions, config: TrainConfig) -> Component:
    """Learners take --learner-cores of a node's cores, and actors one each."""
    if config.placement == "colocated" and config.learner_cores > 1:
        tasks, whole = _tasks(options.ntasks_per_node, options.partition, 0, "--ntasks-per-node", config.learner_cores)
        whole = whole or options.exclusive
        return Component(options.nodes, tasks, options.gpus_per_node, config.learner_cores, options.partition, whole)
    beside = max(1, options.gpus_per_node) * (config.learner_cores - 1)
    tasks, whole = _tasks(options.ntasks_per_node, options.partition, beside, "--ntasks-per-node")
    # Slurm gives every task as many cores; where they differ the job takes whole nodes and hpcrl deals them out.
    whole = whole or options.exclusive or config.learner_cores > 1
    return Component(options.nodes, tasks, options.gpus_per_node, partition=options.partition, exclusive=whole)


def _tasks(
    wanted: int | None, partition: str | None, beside: int, flag: str, cores_per_task: int = 1
) -> tuple[int, bool]:
    """Ranks on a node, and whether they use up its cores."""
    if wanted is not None:
        return wanted, False
    if (cores := queue.cores_per_node(partition)) is None:
        where = f"partition {partition}" if partition else "the default partition"
        raise ConfigError(f"{flag} is needed, since Slurm does not tell here how many cores a node of {where} has")
    return max(1, (cores - beside) // cores_per_task), True


def _deals_roles(config: TrainConfig) -> bool:
    """Whether the learners follow from the job's GPUs or components."""
    return config.learners == "auto" and config.placement == "split"


def _require_layout(config: TrainConfig, components: Sequence[Component]) -> None:
    """ConfigError where the ranks can't be dealt out."""
    nodes = [
        (place, node)
        for place, component in enumerate(components)
        for node in range(component.nodes)
        for _ in range(component.tasks_per_node)
    ]
    learners, which = config.learners, config.learner_ranks
    if _deals_roles(config) and len(components) > 1:
        learners, which = components[0].nodes * components[0].tasks_per_node, "first"
    elif _deals_roles(config) and components[0].gpus_per_node:
        learners = components[0].nodes * components[0].gpus_per_node
    plan = plan_workers if isinstance(config, A3CConfig) else plan_layout
    plan(nodes, learners, config.placement, config.num_envs, which)


def _training(
    options: SubmitOptions, algorithm: str, arguments: Sequence[str], run_dir: Path, deals_roles: bool
) -> Training:
    _, kept = take_value(arguments, "--run-dir")
    environment = options.environment or Path(sys.prefix)
    for folder in (options.environment, options.stage_env):
        if folder is not None and not folder.exists():
            raise ConfigError(f"{folder} does not exist")
    return Training(
        arguments=[algorithm, *(word for word in kept if word not in ("--resume", "--no-resume"))],
        run_dir=run_dir,
        environment=environment.absolute(),
        packed_environment=options.stage_env.absolute() if options.stage_env else None,
        stage_dir=options.stage_dir,
        deals_roles=deals_roles,
        mpi=options.mpi,
        on_warning="chain" if options.chain > 1 else "requeue",
    )


def _submit(script: str, run_dir: Path, resume: bool, chain: int) -> int:
    if not queue.has_sbatch():
        raise ConfigError("no sbatch is here: submit on a login node of the cluster, or look at it with --dry-run")
    directory = RunDirectory(run_dir)
    if directory.config_file.exists() and not resume:
        raise ConfigError(f"Run directory {run_dir} holds a run: give --resume, or another --run-dir.")
    with tempfile.TemporaryDirectory(prefix="hpcrl-") as folder:
        trial = Path(folder) / directory.batch_script.name
        trial.write_text(script)
        queue.check(trial)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        directory.batch_script.write_text(script)
        # A chain would take it for its own.
        if directory.read_outcome() == "finished":
            directory.outcome_file.unlink()
    except OSError as error:
        raise ConfigError(f"Run directory {run_dir} can't be written: {error}.") from error
    jobs: list[str] = []
    for _ in range(chain):
        jobs.append(queue.submit(directory.batch_script, after=jobs[-1] if jobs else None))
        directory.add_job(jobs[-1])
    print(f"submitted job {jobs[0]}" + (f", and after it {', '.join(jobs[1:])}" if chain > 1 else ""))
    print(f"script: {directory.batch_script}")
    print(f"log: {run_dir}/slurm-{jobs[0]}.log")
    print(f"how it stands: hpcrl status {run_dir}")
    return 0
