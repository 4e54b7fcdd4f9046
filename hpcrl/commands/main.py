"""The console script: signals first, then the sub-command, then the exit status."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from hpcrl.errors import ConfigError, HpcrlError
from hpcrl.signals import INTERRUPTED, Requests

_USAGE = """usage: hpcrl COMMAND ...

Reinforcement learning over MPI, from a laptop to a cluster.

commands:
  train ALGORITHM   train an agent (a2c, ppo, a3c, impala, appo, bc); --help after it lists the options
  submit ALGORITHM  make a Slurm batch script for a run and submit it; takes the options of train too
  status RUN_DIR    how a run stands: its jobs, progress, last checkpoint, restarts
  runs [DIR]        all runs of a folder (runs/) in a table: state, progress, returns
  watch RUN_DIR     follow a run: returns, throughput, lag, time split, slowest actor, time to go
  plot RUN_DIR...   draw learning curves, runs that differ in their seed as one (-o curves.png)
  report RUN_DIR    write all of a run on one HTML page (-o report.html)
  eval RUN_DIR      play the newest good checkpoint of a run
  inspect PATH      what a checkpoint or recorded trajectories hold, and whether they are whole; or all of a run
  export RUN_DIR    write the weights or the recorded episodes of a run for other programs
  presets           list the configurations that are known to learn
  doctor            see whether this place is fit for hpcrl: alone, under mpirun or under srun
  plan ALGORITHM    how fast more nodes would be, by a model from costs measured here; takes the options of train too
  bench [ALGORITHM] how fast training is on this machine, and what binds it; takes the options of train too
  completion SHELL  print what completes these words in bash, zsh or fish

examples:
  hpcrl train a2c --env CartPole-v1                        one process
  hpcrl train a2c --env CartPole-v1 --ranks 4              one learner and three actors on this machine
  mpirun -n 4 hpcrl train a2c --env CartPole-v1            the same under your own MPI launcher
  hpcrl eval runs/a2c-CartPole-v1-seed1-20260101-120000
"""

_ONLY_PRINT = {"-h", "--help", "--print-config"}
_PACKAGE = Path(__file__).parents[1]
_as_python_formats = warnings.formatwarning

#: The function of each, in the module of its name.
COMMANDS = {
    "train": "train",
    "submit": "submit",
    "status": "status",
    "runs": "runs",
    "watch": "watch",
    "plot": "plot",
    "report": "report",
    "eval": "evaluate",
    "inspect": "inspect",
    "export": "export",
    "presets": "list_presets",
    "doctor": "doctor",
    "plan": "plan",
    "bench": "bench",
    "completion": "completion",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; its exit status: 0, 1 for a run that failed, 2 for input that can't be run, 130 interrupted.

    Args:
        arguments: in place of those that this process was started with, which it would leave with the status of.
    """
    leaving = arguments is None
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # As `python -m` has it: `--env mine:Env-v0` finds mine.py in the current folder.
    sys.path.insert(0, str(Path.cwd()))
    requests = Requests()
    if arguments[:1] == ["train"]:
        # Before anything heavy is imported: a signal in the first second must not be lost.
        requests.install()
    warnings.formatwarning = _format_warning
    is_in_order = True
    try:
        try:
            status = _dispatch(arguments, requests)
        finally:
            print(end="", flush=True)
    except HpcrlError as error:
        if _is_first_rank():
            print(f"hpcrl: {error}", file=sys.stderr, flush=True)
        status, is_in_order = error.exit_status, error.on_all_ranks
    except BrokenPipeError:
        if arguments[:1] == ["train"] and not _ONLY_PRINT & set(arguments):
            raise
        # Whoever read the output has enough, as under `| head`; what is left of it goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except KeyboardInterrupt:
        if _is_first_rank():
            print("hpcrl: interrupted", file=sys.stderr, flush=True)
        status, is_in_order = INTERRUPTED, False
    if status and leaving:
        # All ranks leave with it, and a launcher ends those that are still at it, whose status it would take instead.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if is_in_order:
            from hpcrl.cluster.launch import leave_in_order

            status = leave_in_order(status, os.environ)
    return status


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Of a warning that is meant for the user one line, without the place in the source."""
    if category is RuntimeWarning and Path(filename).is_relative_to(_PACKAGE):
        return f"hpcrl: warning: {' '.join(str(message).split())}\n"
    return _as_python_formats(message, category, filename, lineno, line)


def _dispatch(arguments: list[str], requests: Requests) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0
    command, *rest = arguments
    if command == "--version":
        from hpcrl import __version__

        print(f"hpcrl {__version__}")
        return 0
    if command not in COMMANDS:
        from hpcrl.config.nearest import did_you_mean

        hint = did_you_mean(command, COMMANDS)
        expected = ", ".join(COMMANDS)
        raise ConfigError(f"unknown command {command!r}{hint}, expected one of: {expected} (see hpcrl --help)")
    # Only what is asked for is imported.
    function = getattr(import_module(f"hpcrl.commands.{command}"), COMMANDS[command])
    return int(function(rest, requests) if command == "train" else function(rest))


def _is_first_rank() -> bool:
    ranks = (os.environ.get(name) for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"))
    return next((rank for rank in ranks if rank is not None), "0") == "0"
