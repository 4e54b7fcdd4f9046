"""`hpcrl plan`: how fast layouts of a run would be, from costs that this machine or another one measured."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from hpcrl.cluster.launch import inside_mpi
from hpcrl.commands.options import parse, take_value, without_file
from hpcrl.config import CONFIGS, A3CConfig, ActorCriticConfig
from hpcrl.errors import ConfigError
from hpcrl.planning.costs import Costs, Link, costs_from_json, is_costs, read_json
from hpcrl.planning.events import Simulated
from hpcrl.planning.links import links_in, links_of, told_link, with_links
from hpcrl.planning.model import Prediction, predict
from hpcrl.planning.recommend import Choice, recommend
from hpcrl.planning.setups import Setup, make_setup, require_plannable, scaled
from hpcrl.planning.simulation import MOST_RANKS, simulate
from hpcrl.storage.durable import write_json_durably

if TYPE_CHECKING:
    from hpcrl.cluster.mpi import Comm

_USAGE = """usage: hpcrl plan ALGORITHM [options of hpcrl train] --nodes 1..64 [--ranks-per-node R] [options below]

How fast would the run be on so many nodes, what would bind it, and how far would its weights lag? What steps,
actions and gradients cost is measured here in some seconds (or read from files), the rest is a model (docs/scaling.md).
"""
_MOST_NODES = 4096
_MOST_RANKS = 65536
_HEADINGS = "nodes   ranks  learn    act  envs/actor   env steps/s  per core    lag  actors  learn.  h/1M  bound by"


def _option(help: str) -> object:
    return tyro.conf.arg(help=help)


@dataclass(frozen=True)
class PlanOptions:
    """What is asked; all other options are those of hpcrl train."""

    nodes: Annotated[str, _option("Nodes: 4, or 1..64 (doubled from 1 to 64), or 1,2,3.")] = "1..16"
    ranks_per_node: Annotated[int | None, _option("Ranks on each (default: the CPUs of this machine).")] = None
    learners_per_node: Annotated[int | None, _option("Learners on each (default: as --learners says).")] = None
    envs_per_actor: Annotated[
        int | None, _option("Environments of each actor, with batches in proportion (default: --num-envs over all).")
    ] = None
    from_: Annotated[
        tuple[Path, ...],
        tyro.conf.arg(name="from", help="Costs by --save, or links by hpcrl doctor --json; may be given twice."),
    ] = ()
    latency_us: Annotated[float | None, _option("Between two nodes, one way (default: 30).")] = None
    bandwidth_gbit: Annotated[float | None, _option("Of a node's connection, Gbit/s (default: 10).")] = None
    lag_limit: Annotated[float | None, _option("Mean lag of what is recommended (default: any).")] = None
    save: Annotated[Path | None, _option("Write the costs there, for --from on another machine.")] = None
    simulate: Annotated[bool, _option("Simulate each layout too, up to 4096 ranks.")] = False
    out: Annotated[Path | None, _option("Draw a picture there.")] = None
    json: Annotated[bool, _option("Print JSON.")] = False


@dataclass(frozen=True)
class _Row:
    setup: Setup
    prediction: Prediction
    simulated: Simulated | None = None


def plan(arguments: Sequence[str]) -> int:
    """Measure, predict and print; the exit status. Collective over the world under a launcher."""
    if not arguments or arguments[0].startswith("-"):
        if arguments[:1] not in (["-h"], ["--help"]):
            raise ConfigError(f"hpcrl plan needs an algorithm, one of: {', '.join(_algorithms())}")
        print(f"{_USAGE}\nalgorithms: {', '.join(_algorithms())}; hpcrl train ALGORITHM --help lists their options.\n")
        _split(["--help"])
    algorithm, *rest = arguments
    options, words = _split(rest)
    words = without_file(algorithm, words)
    if take_value(words, "--ranks")[0] is not None:
        raise ConfigError("--ranks is decided by --nodes and --ranks-per-node under hpcrl plan")
    config = parse(algorithm, words, [field.name for field in dataclasses.fields(PlanOptions)])
    assert isinstance(config, ActorCriticConfig)
    require_plannable(config)
    runs = _runs(config, options)
    net = told_link(options.latency_us, options.bandwidth_gbit)
    if inside_mpi(os.environ):
        return _plan_on_ranks(config, options, runs, net)
    return _plan(config, options, runs, _costs(config, options, runs, net))


def _algorithms() -> list[str]:
    return [name for name in CONFIGS if name != "bc"]


def _split(arguments: Sequence[str]) -> tuple[PlanOptions, list[str]]:
    """Our options, and those of hpcrl train in their order."""
    prog, quiet = "hpcrl plan ALGORITHM", (tyro.conf.FlagCreatePairsOff, tyro.conf.UseAppendAction)
    return tyro.cli(PlanOptions, prog=prog, args=list(arguments), config=quiet, return_unknown_args=True)


def _plan_on_ranks(config: ActorCriticConfig, options: PlanOptions, runs: Sequence[Setup], net: Link) -> int:
    """Rank 0 plans, with the connections of the ranks that there are; the others wait, politely."""
    from hpcrl.activity import Activity
    from hpcrl.cluster.collectives import broadcast, gather
    from hpcrl.cluster.failures import ending_the_job
    from hpcrl.cluster.mpi import world
    from hpcrl.cluster.ranks import split_nodes
    from hpcrl.cluster.waiting import Waiter
    from hpcrl.doctor.links import measure_links

    comm: Comm = world()
    with ending_the_job(comm):
        waiter = Waiter(Activity())
        costs = _costs(config, options, runs, net) if comm.rank == 0 else None
        broadcast(comm, None, waiter)
        _, node_of = split_nodes(comm)
        hosts = broadcast(comm, gather(comm, os.uname().nodename, waiter), waiter)
        measured = links_of([link._asdict() for link in measure_links(comm, node_of, hosts, waiter)])
        if costs is None:
            return 0
        if measured:
            costs = with_links(costs, measured, f"measured on {comm.size} ranks here")
        return _plan(config, options, runs, costs)
    raise AssertionError("unreachable")


def _costs(config: ActorCriticConfig, options: PlanOptions, runs: Sequence[Setup], net: Link) -> Costs:
    """From the files that are named, else measured."""
    read: Costs | None = None
    links: list[tuple[dict[str, Link], Path]] = []
    for path in options.from_:
        data = read_json(path)
        if is_costs(data):
            read = costs_from_json(data, path)
            read.require_fit(config, path)
        else:
            links.append((links_in(data, path), path))
    told = options.latency_us is not None or options.bandwidth_gbit is not None
    source = "between nodes: as told" if told else "between nodes: assumed, give --latency-us and --bandwidth-gbit"
    if read is None:
        from hpcrl.planning.measure import measure

        print(f"measuring {config.algorithm} on {config.env} ...", file=sys.stderr, flush=True)
        read = measure(config, runs, net, source)
    elif told:
        read = dataclasses.replace(read, net=net, links_from=source)
    for found, path in links:
        read = with_links(read, found, str(path))
    return read


def _plan(config: ActorCriticConfig, options: PlanOptions, runs: Sequence[Setup], costs: Costs) -> int:
    if options.save is not None:
        try:
            write_json_durably(options.save, costs.to_json())
        except OSError as error:
            raise ConfigError(f"{options.save} can't be written: {error.strerror or error}") from error
    rows = [_row(setup, costs, options) for setup in runs]
    last = rows[-1].setup
    choice = recommend(_at(config, last), costs, last.nodes, last.ranks // last.nodes, options.lag_limit)
    if options.out is not None:
        from hpcrl.planning.chart import draw

        title = f"{config.algorithm} on {config.env}, predicted from costs measured on {costs.measured_on}"
        draw([(row.setup, row.prediction, row.simulated) for row in rows], title, options.out)
    if options.json:
        print(json.dumps(_as_json(rows, costs, choice), indent=2))
    else:
        print("\n".join(_lines(rows, costs, choice, options)))
    return 0


def _row(setup: Setup, costs: Costs, options: PlanOptions) -> _Row:
    simulated = simulate(setup, costs) if options.simulate and setup.ranks <= MOST_RANKS else None
    return _Row(setup, predict(setup, costs), simulated)


def _at(config: ActorCriticConfig, setup: Setup) -> ActorCriticConfig:
    """The configuration of a setup, whose environments may have grown with its actors."""
    if setup.num_envs == config.num_envs:
        return config
    return scaled(config, 1, setup.num_envs)


# Layouts


def _runs(config: ActorCriticConfig, options: PlanOptions) -> list[Setup]:
    """The setup of every number of nodes."""
    for name in ("ranks_per_node", "learners_per_node", "envs_per_actor"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be a whole number of at least 1, got {value}")
    if options.lag_limit is not None and not options.lag_limit >= 0:
        raise ConfigError(f"--lag-limit must be a number of at least 0, got {options.lag_limit:g}")
    each = options.ranks_per_node or len(os.sched_getaffinity(0))
    if options.learners_per_node is not None and config.learners != "auto":
        raise ConfigError("--learners-per-node and --learners say the same: give one of them")
    counts = parse_nodes(options.nodes)
    if counts[-1] * each > _MOST_RANKS:
        raise ConfigError(f"at most {_MOST_RANKS} ranks can be planned, got {counts[-1]} nodes of {each}")
    return [_run(config, options, nodes, each) for nodes in counts]


def _run(config: ActorCriticConfig, options: PlanOptions, nodes: int, each: int) -> Setup:
    if options.learners_per_node is not None and nodes * each > 1:
        config = dataclasses.replace(config, learners=nodes * options.learners_per_node)
    if options.envs_per_actor is not None:
        config = scaled(config, _actors(config, nodes * each, nodes, each), options.envs_per_actor)
    return make_setup(config, nodes, each)


def _actors(config: ActorCriticConfig, ranks: int, nodes: int, each: int) -> int:
    """How many ranks would act, however many environments there are."""
    if ranks == 1 or config.placement == "colocated":
        return ranks
    if config.learners == "auto":
        return ranks - (1 if isinstance(config, A3CConfig) or each == 1 else nodes)
    return max(1, ranks - config.learners)


def parse_nodes(text: str) -> list[int]:
    """Numbers of nodes, ascending: `4`, `1..64` (doubled, and the end) or `1,2,3`; ConfigError for anything else."""
    first, dots, last = text.partition("..")
    words = [first, last] if dots else text.split(",")
    if not all(word.isdecimal() and 1 <= int(word) <= _MOST_NODES for word in words):
        raise ConfigError(f"--nodes must be like 4, 1..64 or 1,2,3, each from 1 to {_MOST_NODES}, got {text!r}")
    numbers = [int(word) for word in words]
    if not dots:
        return sorted(set(numbers))
    low, high = numbers
    if low > high:
        raise ConfigError(f"--nodes must go from fewer to more, got {text!r}")
    return [low * 2**power for power in range(high.bit_length()) if low * 2**power < high] + [high]


# Output


def _as_json(rows: Sequence[_Row], costs: Costs, choice: Choice | None) -> dict[str, Any]:
    return {
        "costs": costs.to_json(),
        "layouts": [_layout(row.setup, row.prediction, row.simulated) for row in rows],
        "recommended": None
        if choice is None
        else {"options": list(choice.options), **_layout(choice.setup, choice.prediction, None)},
    }


def _layout(setup: Setup, prediction: Prediction, simulated: Simulated | None) -> dict[str, Any]:
    return {
        "nodes": setup.nodes,
        "ranks": setup.ranks,
        "learners": setup.learners,
        "actors": setup.actors,
        "num_envs": setup.num_envs,
        "batch_envs": setup.batch_envs,
        "unroll_length": setup.unroll_length,
        "predicted": dataclasses.asdict(prediction),
        "simulated": None if simulated is None else dataclasses.asdict(simulated),
    }


def _lines(rows: Sequence[_Row], costs: Costs, choice: Choice | None, options: PlanOptions) -> list[str]:
    lines = [
        f"predicted for {costs.algorithm} on {costs.env}, from costs measured on {costs.measured_on}",
        f"links {costs.links_from} ({costs.net.latency_s * 1e6:,.1f} us, {costs.net.bytes_per_s * 8e-9:,.2f} Gbit/s)",
        "",
        _HEADINGS + ("   simulated: env steps/s    lag" if options.simulate else ""),
    ]
    lines += [_line(row, options.simulate) for row in rows]
    lines.append("")
    last = rows[-1].setup
    where = f"on {last.nodes} {'node' if last.nodes == 1 else 'nodes'}"
    if choice is None:
        lines.append(f"no layout {where} keeps the lag below {options.lag_limit:g}")
    else:
        best = choice.prediction
        lines.append(
            f"most per core {where}: {' '.join(choice.options)} ({choice.setup.actors / choice.setup.learners:.3g} "
            f"actors a learner): {best.env_steps_per_s:,.0f} env steps/s, lag {best.lag_mean:.1f}, bound by "
            f"{best.bound_by}; another unroll length is another algorithm to tune"
        )
    return lines


def _line(row: _Row, with_simulated: bool) -> str:
    setup, found = row.setup, row.prediction
    text = (
        f"{setup.nodes:5} {setup.ranks:7} {setup.learners:6} {setup.actors:6} {setup.num_envs / setup.actors:11.3g} "
        f"{found.env_steps_per_s:13,.0f} {found.env_steps_per_s / setup.cores:9,.0f} {found.lag_mean:6.1f} "
        f"{found.actor_utilisation:6.0%} {found.learner_utilisation:7.0%} {found.core_hours_per_million:5.2g}  "
        f"{found.bound_by}"
    )
    if not with_simulated:
        return text
    if row.simulated is None:
        return f"{text:{len(_HEADINGS) + 14}} not simulated"
    return f"{text:{len(_HEADINGS) + 14}}{row.simulated.env_steps_per_s:13,.0f} {row.simulated.lag_mean:6.1f}"
