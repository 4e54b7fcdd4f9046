"""How fast one layout is, as a point of a strong or a weak scaling curve; a job array measures a curve.

    python -m benchmarks.scaling --mode strong|weak --out FILE.jsonl (--ranks N | --launch "srun ...")
                                 [--algorithm a2c] [--repeats 3] [-- options of hpcrl train]

--ranks N starts N ranks here. --launch is put in front of the command, so that every repeat is a job step of its own
(`srun --mpi=pmix --kill-on-bad-exit=1 -n 8`); one more step before them asks how many ranks on which nodes that starts.

Held constant on all layouts of a curve are the algorithm, the environment, the unroll length and the network, and

- strong: environments, steps of an update and env steps of the run, in total. Environments are dealt out to the ranks
  that act, so their number should divide by the numbers of actors; it may not be smaller.
- weak: all three for each rank that acts. A learner that serves more actors gets larger batches.

By default one unroll of every environment makes an update of T x num_envs steps; that is a2c's rule, and --batch-envs
(weak: --batch-envs-per-rank) follows it for impala and appo. Under a3c every worker's unroll is an update, so with more
workers strong scaling makes more and smaller ones. The learning rate is 1e-12: gradients are computed, summed and
applied, but the policy stays the seed's, since episodes that grow longer would be cheaper to step. So the rates are for
comparison with each other, and not with those of `benchmarks.throughput`. The rate is that of all iterations but the
first, and should be measured for several seconds: give --env-steps (--env-steps-per-rank) for the fastest layout.

What a rank is depends on the placement: one rank acts and learns, two are a learner and an actor that take turns under
a2c, and with --placement split each node with several ranks spends one on a learner. So the second rank adds little;
`-- --placement colocated` makes every rank do both. A curve's base is its smallest layout, which `benchmarks.plot`
names.

A repeat is one line of --out, with its number as the seed. Those that are in the file already are skipped, so that a
requeued job measures what is missing. SIGTERM, SIGUSR1, SIGHUP or SIGINT ends the running repeat, which leaves nothing
behind. Status: 0 once all repeats are in the file, 1 where one failed (after the others), 2 for input that can't be
run, 128 + the number of the signal that stopped it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.children import CommandFailed
from benchmarks.efficiency import count
from benchmarks.layouts import DEFAULTS, ITERATIONS, Plan, Work, measure
from benchmarks.repeats import MODES, Series, append, missing, read
from benchmarks.steps import Stop, Stopped, run
from hpcrl.cluster.layout import plan_layout, plan_workers
from hpcrl.commands.options import parse
from hpcrl.config import CONFIGS, A3CConfig, ImpalaConfig
from hpcrl.errors import ConfigError, HpcrlError

#: In front of what a rank answers when it is asked for its node.
_MARK = "rank on node "
#: Options of `hpcrl train` that are this program's to set, and why.
_OURS = {
    "--ranks": "give --ranks or --launch before the --",
    "--num-envs": "give --num-envs or --envs-per-rank before the --",
    "--total-env-steps": "give --env-steps or --env-steps-per-rank before the --",
    "--batch-envs": "give --batch-envs or --batch-envs-per-rank before the --",
    "--num-iterations": f"there are always {ITERATIONS}",
    "--seed": "it is the number of the repeat",
    "--run-dir": "it is a temporary folder",
    "--resume": "every repeat starts afresh",
    "--stop-return": "all repeats are equally long",
}
#: Number of environments, env steps of a run and columns of an update, by mode: names of the arguments, and defaults.
_WORK: Mapping[str, tuple[Sequence[str], tuple[int, int]]] = {
    "strong": (("num_envs", "env_steps", "batch_envs"), (96, 400_000)),
    "weak": (("envs_per_rank", "env_steps_per_rank", "batch_envs_per_rank"), (32, 200_000)),
}


def main(words: Sequence[str] | None = None) -> int:
    """Measure what is missing; the exit status."""
    stop = Stop()
    stop.install()
    try:
        return _main(list(sys.argv[1:] if words is None else words), stop)
    except Stopped:
        assert stop.signal is not None
        print(f"benchmarks.scaling: stopped by {stop.signal.name}", file=sys.stderr, flush=True)
        return 128 + stop.signal
    except HpcrlError as error:
        print(f"benchmarks.scaling: {error}", file=sys.stderr, flush=True)
        return error.exit_status
    except CommandFailed as failure:
        print(f"benchmarks.scaling: {failure}", file=sys.stderr, flush=True)
        return 1


def _main(words: list[str], stop: Stop) -> int:
    place = words.index("--") if "--" in words else len(words)
    arguments, options = _parser().parse_args(words[:place]), words[place + 1 :]
    out: Path = arguments.out.absolute()
    present = read(out) if out.exists() else []
    plan = _plan(arguments, options, stop)
    numbers = missing(present, plan.series, len(plan.hosts), len(set(plan.hosts)), arguments.repeats)
    print(f"{plan.describe()}: {len(numbers)} of {count(arguments.repeats, 'repeat')} to measure, in {out}", flush=True)
    failures = 0
    for number in numbers:
        try:
            repeat = measure(plan, number, _folder(out.parent), arguments.timeout, stop)
        except CommandFailed as failure:
            failures += 1
            print(f"benchmarks.scaling: repeat {number}: {failure}", file=sys.stderr, flush=True)
            continue
        append(out, repeat)
        print(f"repeat {number}: {repeat.env_steps_per_s:,.0f} env steps/s for {repeat.measured_s:.1f} s", flush=True)
    return int(failures > 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--mode", choices=MODES, required=True)
    parser.add_argument("--out", type=Path, required=True, help="file that the lines are added to")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--ranks", type=_positive, help="start so many ranks here")
    how.add_argument("--launch", type=shlex.split, help="words in front of the command, which start the ranks")
    parser.add_argument("--algorithm", choices=list(CONFIGS), default="a2c")
    parser.add_argument("--repeats", type=_positive, default=3)
    parser.add_argument("--timeout", type=float, default=1800, help="seconds that a repeat may take")
    of_each = "for each rank that acts, under weak"
    parser.add_argument("--num-envs", type=_positive, help="environments in total, under strong (default: 96)")
    parser.add_argument("--env-steps", type=_positive, help="of a run, in total, under strong (default: 400000)")
    parser.add_argument("--batch-envs", type=_positive, help="of impala and appo, under strong (default: --num-envs)")
    parser.add_argument("--envs-per-rank", type=_positive, help=f"environments {of_each} (default: 32)")
    parser.add_argument("--env-steps-per-rank", type=_positive, help=f"of a run, {of_each} (default: 200000)")
    parser.add_argument("--batch-envs-per-rank", type=_positive, help=f"{of_each} (default: --envs-per-rank)")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _refuse(options: Sequence[str]) -> None:
    """ConfigError for options of `hpcrl train` that this program sets itself."""
    for word in options:
        name = word.partition("=")[0].replace("_", "-")
        if name in _OURS:
            raise ConfigError(f"{name} is set by this benchmark: {_OURS[name]}")


def _work(arguments: argparse.Namespace) -> Work:
    """What the arguments say, or the mode's defaults."""
    for mode, (names, _) in _WORK.items():
        for name in names:
            if mode != arguments.mode and getattr(arguments, name) is not None:
                raise ConfigError(f"--{name.replace('_', '-')} is for --mode {mode}, got --mode {arguments.mode}")
    names, (num_envs, env_steps) = _WORK[arguments.mode]
    given = [getattr(arguments, name) for name in names]
    num_envs, env_steps = given[0] or num_envs, given[1] or env_steps
    if issubclass(CONFIGS[arguments.algorithm], ImpalaConfig):
        return Work(arguments.mode, num_envs, env_steps, given[2] or num_envs)
    if given[2] is not None:
        raise ConfigError(f"--{names[2].replace('_', '-')} is for impala and appo, got {arguments.algorithm}")
    return Work(arguments.mode, num_envs, env_steps, None)


def _plan(arguments: argparse.Namespace, options: Sequence[str], stop: Stop) -> Plan:
    """What the command line asks for; ConfigError for what can't be run."""
    _refuse(options)
    work = _work(arguments)
    config = parse(arguments.algorithm, [*DEFAULTS, *options, *work.options()])
    hosts = _hosts(arguments, stop)
    deal = plan_workers if isinstance(config, A3CConfig) else plan_layout
    actors = len(deal(hosts, config.learners, config.placement, len(hosts)).actors)
    total = work.on(actors)
    if total.num_envs < actors:
        raise ConfigError(f"--num-envs must be at least the number of actors, {actors}, got {total.num_envs}")
    asked = (work.num_envs, work.env_steps, work.batch_envs)
    series = Series(work.mode, config.algorithm, config.env, tuple(options), *asked)
    return Plan(arguments.launch or (), hosts, actors, series, total)


def _hosts(arguments: argparse.Namespace, stop: Stop) -> list[str]:
    """The node of every rank; a launcher is asked."""
    if arguments.launch is None:
        return [os.uname().nodename] * arguments.ranks
    answer = run([*arguments.launch, "sh", "-c", f'echo "{_MARK}$(uname -n)"'], arguments.timeout, stop)
    hosts = [line.partition(_MARK)[2].strip() for line in answer.splitlines() if _MARK in line]
    if not hosts:
        raise ConfigError(f"--launch must start ranks whose output comes back, got: {answer!r}")
    return sorted(hosts)


def _folder(path: Path) -> Path:
    """`path`, made where it is not there; run directories lie in it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ConfigError(f"the folder {path} of --out can't be written: {error}") from error
    return path


if __name__ == "__main__":
    sys.exit(main())
