"""`hpcrl bench [ALGORITHM]`: how fast training is on this machine, and what binds it."""

from __future__ import annotations

import math
import os
import signal
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hpcrl.benching.bound import bound_by, describe, is_disturbed, percent
from hpcrl.benching.examination import Ceiling, OnLayout, ceiling_of, drop_unfinished_round, rounds, write_lines
from hpcrl.benching.layouts import layouts_for
from hpcrl.cluster.affinity import usable_cpus
from hpcrl.cluster.launch import inside_mpi
from hpcrl.commands.options import parse, take_value, without_file
from hpcrl.config import CONFIGS, ActorCriticConfig, BCConfig
from hpcrl.errors import ConfigError
from hpcrl.signals import INTERRUPTED
from hpcrl.words import plural

_HELP = """usage: hpcrl bench [ALGORITHM] [--seconds S] [--repeats N] [--json FILE] [options of hpcrl train]

Train on one process, and on as many ranks as there are cores, apart and colocated, three times each; step the
same environments with random actions and without learning; multiply and copy. Prints how fast each layout is, where
the time of its ranks goes and what binds it. The learning rate is 1e-12 unless the options say otherwise, so that
episodes stay as short as those of random actions. Takes about two minutes.

  ALGORITHM     a2c, ppo, a3c, impala or appo (a2c)
  --seconds S   that each run is measured for, beside its start (3)
  --repeats N   of each run (3)
  --json FILE   write a JSON line for each run there

hpcrl train ALGORITHM --help lists all other options; those that say how many ranks there are, how long the run is
and where it lies are the benchmark's own.
"""
#: Options of `hpcrl train` that are the benchmark's, and what it does with them.
_OURS = {
    "--ranks": "it tries one, and as many as there are cores",
    "--placement": "it tries both",
    "--total-env-steps": "give --seconds",
    "--num-iterations": "give --seconds",
    "--stop-return": "all runs are equally long",
    "--seed": "it is the number of the run",
    "--run-dir": "it is a temporary folder",
    "--resume": "every run starts afresh",
}


def bench(arguments: Sequence[str]) -> int:
    """Measure, print, and say by the exit status whether a layout failed."""
    if {"-h", "--help"} & set(arguments):
        print(_HELP, end="")
        return 0
    if inside_mpi(os.environ):
        raise ConfigError("hpcrl bench starts ranks itself and must not be started by an MPI launcher")
    names_algorithm = bool(arguments) and not arguments[0].startswith("-")
    algorithm, rest = (arguments[0], arguments[1:]) if names_algorithm else ("a2c", arguments)
    length, rest = take_value(rest, "--seconds")
    number, rest = take_value(rest, "--repeats")
    file, rest = take_value(rest, "--json")
    rest = without_file(algorithm, rest)
    seconds, repeats = _seconds(length or "3"), _repeats(number or "3")
    config = _config(algorithm, rest)
    # Leaving by an exception ends the runs too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console(soft_wrap=True, highlight=False, markup=False)
    cores = min(len(usable_cpus()), config.num_envs)
    console.print(f"hpcrl bench: {algorithm} on {config.env}, {config.num_envs} environments, {cores} cores")
    ceiling = ceiling_of(config, cores, seconds)
    found = [OnLayout(layout) for layout in layouts_for(ceiling.cores)]
    status = 0
    try:
        rounds(found, config, rest, ceiling, seconds, repeats, console.print)
    except KeyboardInterrupt:
        complete, status = drop_unfinished_round(found), INTERRUPTED
        console.print(f"interrupted after {complete} of {plural(repeats, 'round')}")
        if not complete:
            return status
    if file is not None:
        write_lines(Path(file), found, ceiling)
    _show(console, found, ceiling)
    return status or int(any(on.trouble for on in found))


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ConfigError(f"--seconds must be a number above 0, got {text!r}")
    return seconds


def _repeats(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"--repeats must be a whole number of at least 1, got {text!r}")
    return int(text)


def _config(algorithm: str, options: Sequence[str]) -> ActorCriticConfig:
    """What the options say; ConfigError for what is the benchmark's own, or does not act."""
    for word in options:
        name = word.partition("=")[0].replace("_", "-")
        if name in _OURS:
            raise ConfigError(f"{name} is set by hpcrl bench: {_OURS[name]}")
    config = parse(algorithm, options)
    if isinstance(config, BCConfig) or not isinstance(config, ActorCriticConfig):
        acting = ", ".join(name for name in CONFIGS if name != "bc")
        raise ConfigError(f"hpcrl bench needs an algorithm that acts ({acting}), got {algorithm!r}")
    return config


def _show(console: Console, found: Sequence[OnLayout], ceiling: Ceiling) -> None:
    table = Table(title="training")
    table.add_column("layout")
    for heading in ("env steps/s", "range", "of random", "cores used"):
        table.add_column(heading, justify="right")
    for on in found:
        table.add_row(*_row(on, ceiling))
    console.print(table)
    for on in found:
        console.print(f"{on.layout.name}:")
        for line in _verdict(on, ceiling):
            console.print(f"  {line}")
    console.print(f"limits of the {ceiling.cores} cores:")
    for line in _limits(ceiling):
        console.print(f"  {line}")


def _row(on: OnLayout, ceiling: Ceiling) -> list[str]:
    if not on.runs:
        return [on.layout.name, "failed"]
    rates = [run.env_steps_per_s for run in on.runs]
    rate = statistics.median(rates)
    used = statistics.median(run.cores_used for run in on.runs)
    return [
        on.layout.name,
        f"{rate:,.0f}",
        f"{min(rates):,.0f}-{max(rates):,.0f}",
        percent(rate / ceiling.stepping_per_s),
        f"{used:.2f}",
    ]


def _verdict(on: OnLayout, ceiling: Ceiling) -> list[str]:
    """Where the time of a layout goes, what binds it, and how far that is from its limit."""
    trouble = [f"failed: {on.trouble}"] if on.trouble else []
    if not on.runs:
        return trouble
    clocks, rate = on.clocks, statistics.median(run.env_steps_per_s for run in on.runs)
    lines = [f"{name}: {describe(clock)}" for name, clock in clocks.items()]
    bound, share = bound_by(clocks), on.layout.ranks / ceiling.cores
    line = f"bound by: {bound.sentence}"
    if bound.what == "acting":
        line += f"; {percent(rate / (share * ceiling.stepping_per_s))} of random stepping on as many cores"
    elif bound.what in ("inference", "learning"):
        line += f"; its products need {percent(rate / (share * ceiling.products_per_s))} of the cores' rate"
    elif bound.what == "transport":
        line += f"; {percent(rate / ceiling.copies_per_s)} of what one core copies"
    lines.append(line)
    ranks_of = {"ranks": on.runs[0].ranks, "actors": on.runs[0].actors, "learners": on.runs[0].learners}
    used = statistics.median(run.cores_used for run in on.runs)
    if is_disturbed(used, ranks_of, clocks):
        lines.append(f"something else has the cores: these runs got {used:.2f} of {on.layout.ranks}")
    return lines + trouble


def _limits(ceiling: Ceiling) -> list[str]:
    need, reached = ceiling.need, ceiling.limits
    parts = ", ".join(f"{name} {getattr(need, name) / 1e6:,.3g}" for name in ("acting", "forward", "backward"))
    return [
        f"environments alone, random actions: {ceiling.stepping_per_s:,.0f} env steps/s; {ceiling.env_step_us:,.1f} us "
        "of a core an env step",
        f"products of the model ({need.num_weights:,} weights): {need.flop / 1e6:,.3g} MFLOP an env step ({parts}) at "
        f"{reached.flop_per_s / 1e9:,.0f} GFLOP/s a core: {ceiling.products_per_s:,.0f} env steps/s",
        f"unrolls: {need.unroll_bytes:,.0f} bytes an env step, at {reached.copied_bytes_per_s / 1e9:,.1f} GB/s copied "
        f"by a core: {ceiling.copies_per_s:,.0f} env steps/s",
    ]
