"""`hpcrl train ALGORITHM`: one process, `--ranks N` of them, or the ranks that a launcher started."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hpcrl.cluster.launch import inside_mpi, start_ranks
from hpcrl.commands.display import Display, terminal_environment
from hpcrl.commands.layout_summary import layout_lines
from hpcrl.config import CONFIGS, TrainConfig
from hpcrl.errors import ConfigError, HpcrlError
from hpcrl.signals import Requests
from hpcrl.storage.run_directory import RunDirectory

if TYPE_CHECKING:
    from hpcrl.cluster.mpi import Comm
    from hpcrl.trainer import Trainer


def train(arguments: Sequence[str], requests: Requests) -> int:
    """Train; the exit status."""
    if not arguments or arguments[0].startswith("-"):
        if arguments[:1] in (["-h"], ["--help"]):
            print(f"usage: hpcrl train ALGORITHM [options]\n\nalgorithms: {', '.join(CONFIGS)}\n")
            print("hpcrl train ALGORITHM --help lists the options of an algorithm.")
            return 0
        raise ConfigError(f"hpcrl train needs an algorithm, one of: {', '.join(CONFIGS)}")
    algorithm, *options = arguments
    if not inside_mpi(os.environ):
        config = _parse(algorithm, options)
        if config.ranks is not None and config.ranks > 1:
            if config.run_dir is not None:
                # Ranks would say it too, seconds later.
                RunDirectory(config.run_dir).refuse_what_open_would(config.resume)
            environment = {**os.environ, **terminal_environment()}
            return start_ranks(config.ranks, ["train", *arguments], environment)
        return _run_alone(config, requests)
    return _run_as_rank(algorithm, options, requests)


def _parse(algorithm: str, options: Sequence[str]) -> TrainConfig:
    # Imported late: a second of its own, which other commands don't need.
    from hpcrl.commands.options import parse

    return parse(algorithm, options)


def _run_alone(config: TrainConfig, requests: Requests) -> int:
    from hpcrl.cluster.mpi import world

    return _run(config, world(), requests)


def _run_as_rank(algorithm: str, options: Sequence[str], requests: Requests) -> int:
    """One rank of several. An error that all ranks share lets them leave in order; any other one ends the job."""
    from hpcrl.cluster.failures import ending_the_job
    from hpcrl.cluster.mpi import world

    comm = world()
    with ending_the_job(comm):
        outcome = comm.bcast(_parse_or_error(algorithm, options) if comm.rank == 0 else None)
        if isinstance(outcome, HpcrlError):
            raise outcome
        if isinstance(outcome, int):
            return outcome
        return _run(outcome, comm, requests)
    raise AssertionError("unreachable")


def _parse_or_error(algorithm: str, options: Sequence[str]) -> TrainConfig | HpcrlError | int:
    """The configuration, or what all ranks do instead: raise an error, or leave with a status (after --help)."""
    try:
        return _parse(algorithm, options)
    except HpcrlError as error:
        error.on_all_ranks = True
        return error
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 2


def _run(config: TrainConfig, comm: Comm, requests: Requests) -> int:
    """Train with a configuration that all ranks have."""
    from hpcrl.trainer import Trainer

    requests.install()
    with Trainer(config, comm, requests) as trainer:
        display = Display(config.total_env_steps, config.num_iterations, os.environ) if comm.rank == 0 else None
        if display is not None:
            layout, *nodes = layout_lines(trainer.plan, trainer.config.learner_cores)
            display.say(f"{config.algorithm} on {config.env}: {layout}; {trainer.run_dir}")
            for note in (*nodes, *trainer.notes):
                display.say(note)
        for row in trainer:
            if display is not None:
                display.add(row)
        if display is not None:
            display.finish()
            _say_goodbye(trainer, display, requests)
        requests.ignore()
    if display is not None and trainer.trace_file is not None:
        display.say(f"trace: {trainer.trace_file} (open it in https://ui.perfetto.dev or chrome://tracing)")
    return 1 if trainer.checkpoint_failures or trainer.recording_failures else 0


def _say_goodbye(trainer: Trainer, display: Display, requests: Requests) -> None:
    display.say(f"weights sha256 {trainer.weights_sha256()}")
    if (account := trainer.account) is not None:
        display.say(account.describe())
    if trainer.stopped == "asked to stop":
        why = requests.stop or "a signal to another rank"
        display.say(
            f"stopped by {why} at env step {trainer.env_steps:,}; go on with: hpcrl train "
            f"{trainer.config.algorithm} --run-dir {trainer.run_dir} --resume"
        )
    else:
        display.say(f"{trainer.stopped} at env step {trainer.env_steps:,}; run directory: {trainer.run_dir}")
