"""Compares what `hpcrl plan` predicts with what runs make: a line of JSON a case, and a table.

    python -m benchmarks.plan_check [--out FILE.jsonl] [--seconds 10] [--repeats 3] [--only WORD] [--list]

Costs are measured anew before every run, on this machine, and each run is compared with its own prediction. The cases
with an environment that sleeps 2 ms a step don't depend on how many cores there are; those on CartPole do, and on
whatever else runs here. Two hosts are network namespaces with an interface each (tests/hosts.py): `tc` limits its rate,
and delays where the kernel has netem. Their connection is measured as `hpcrl doctor` does. The measured rate is the
median over all iterations but the first; the error is the median over the repeats of predicted / measured - 1.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import training
from benchmarks.children import CommandFailed
from hpcrl.commands.options import parse
from hpcrl.config import ActorCriticConfig
from hpcrl.errors import HpcrlError
from hpcrl.planning.costs import Costs, read_json
from hpcrl.planning.links import links_in, told_link, with_links
from hpcrl.planning.measure import measure
from hpcrl.planning.model import predict
from hpcrl.planning.setups import Setup, make_setup
from hpcrl.planning.simulation import simulate
from tests.hosts import run_on_hosts, why_not

_ITERATIONS = 4
_LEARNING = ("--learning-rate", "1e-12", "--no-episode-log")
_NAP = ("--env", "tests.sleeping:Nap-v0", "--num-envs", "12", "--unroll-length", "8")
_WIDE = ("--hidden-sizes", "512", "512")
_DOCTOR = "hpcrl doctor --json"


@dataclass(frozen=True)
class Case:
    """A layout to predict and to run.

    Attributes:
        group: what several cases have in common, for people.
        nodes, ranks_per_node: of the world.
        tc: what `tc qdisc` puts on every host's interface; None on one machine, where there is no network.
    """

    group: str
    algorithm: str
    options: tuple[str, ...]
    nodes: int
    ranks_per_node: int
    tc: str | None = None

    @property
    def name(self) -> str:
        """For people."""
        where = f"{self.nodes} x {self.ranks_per_node}" if self.nodes > 1 else f"{self.ranks_per_node}"
        return f"{self.group}, {where} ranks" + (f", {self.tc or 'fast link'}" if self.tc is not None else "")


def cases() -> list[Case]:
    """All of them, groups together."""
    found = []
    for algorithm in ("a2c", "impala"):
        found += [Case(f"{algorithm} CartPole", algorithm, (), 1, ranks) for ranks in (1, 2, 3)]
    for algorithm in ("a2c", "impala", "a3c"):
        batch = ("--batch-envs", "12") if algorithm == "impala" else ()
        found += [Case(f"{algorithm} sleeping", algorithm, (*_NAP, *batch), 1, ranks) for ranks in (2, 4, 7)]
    found.append(Case("a2c sleeping, 2 learners", "a2c", (*_NAP, "--learners", "2"), 1, 8))
    wait = ("--batch-envs", "12", "--on-stale", "wait")
    found.append(Case("impala sleeping, wait", "impala", (*_NAP, *wait), 1, 7))
    for learners in (1, 2):
        options = (*_NAP, *_WIDE, "--learners", str(learners))
        named = f"a2c sleeping, 2.1 MB of weights, {learners} of 4 learn"
        found += [Case(named, "a2c", options, 2, 2, tc) for tc in _tc()]
    options = (*_NAP, *_WIDE, "--batch-envs", "12", "--learners", "1")
    found += [Case("impala sleeping, 2.1 MB of weights, 1 of 4 learns", "impala", options, 2, 2, tc) for tc in _tc()]
    return found


def _tc() -> list[str]:
    """Limits of the network that this kernel has."""
    trial = ["unshare", "-Urn", "tc", "qdisc", "replace", "dev", "lo", "root", "netem", "delay", "1ms"]
    if subprocess.run(trial, capture_output=True).returncode == 0:
        return ["", "netem delay 50us rate 10gbit", "netem delay 1ms rate 1gbit"]
    return ["", "tbf rate 1gbit burst 128kb latency 50ms", "tbf rate 200mbit burst 64kb latency 50ms"]


def main(words: Sequence[str] | None = None) -> int:
    """Check, print and write; the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.plan_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="file that the lines are added to")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a run, as predicted")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--list", action="store_true", help="print the names")
    arguments = parser.parse_args(words)
    chosen = [case for case in cases() if arguments.only in case.name]
    if arguments.list:
        print(*(case.name for case in chosen), sep="\n")
        return 0
    rows: list[dict[str, Any]] = []
    failures = 0
    for case in chosen:
        row = _check(case, arguments.seconds, arguments.repeats)
        failures += "failure" in row
        rows.append(row)
        print(json.dumps(row), flush=True)
        if arguments.out is not None:
            with arguments.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
    print("\n" + markdown([row for row in rows if "failure" not in row]))
    return int(failures > 0)


def _check(case: Case, seconds: float, repeats: int) -> dict[str, Any]:
    """All repeats of a case, or why there are none."""
    config = parse(case.algorithm, [*_LEARNING, *case.options])
    assert isinstance(config, ActorCriticConfig)
    setup = make_setup(config, case.nodes, case.ranks_per_node)
    try:
        pairs = [_predict_and_run(case, config, setup, seconds) for _ in range(repeats)]
    except (CommandFailed, HpcrlError, RuntimeError, subprocess.TimeoutExpired) as failure:
        return {"case": case.name, "failure": " ".join(str(failure).split())[-400:]}
    middle = {name: statistics.median(pair[name] for pair in pairs) for name in pairs[0]}
    rates = [pair["measured_per_s"] for pair in pairs]
    return {
        "case": case.name,
        "learners": setup.learners,
        "actors": setup.actors,
        "hosts": case.nodes,
        **middle,
        "error": statistics.median(pair["predicted_per_s"] / pair["measured_per_s"] - 1 for pair in pairs),
        "least_per_s": min(rates),
        "most_per_s": max(rates),
    }


def _predict_and_run(case: Case, config: ActorCriticConfig, setup: Setup, seconds: float) -> dict[str, float]:
    costs = measure(config, [setup], told_link(None, None), "assumed")
    if case.tc is not None:
        costs = _with_measured_links(case, costs)
    predicted, simulated = predict(setup, costs), simulate(setup, costs)
    rows = _run(case, max(_ITERATIONS, round(predicted.env_steps_per_s * seconds)), seconds)[1:]
    return {
        "predicted_per_s": predicted.env_steps_per_s,
        "simulated_per_s": simulated.env_steps_per_s,
        "measured_per_s": statistics.median(row["time/env_steps_per_s"] for row in rows),
        "predicted_lag": predicted.lag_mean,
        "simulated_lag": simulated.lag_mean,
        "measured_lag": statistics.mean(row.get("lag/mean", 0.0) for row in rows),
        "latency_us": costs.net.latency_s * 1e6,
        "gbit": costs.net.bytes_per_s * 8e-9,
    }


def _run(case: Case, env_steps: int, seconds: float) -> list[dict[str, float]]:
    """The rows of metrics.csv of one run."""
    options = [*_LEARNING, *case.options]
    limit = 180 + 10 * seconds
    if case.tc is None:
        ranks = ["--ranks", case.ranks_per_node] if case.ranks_per_node > 1 else []
        return training.train(case.algorithm, [*options, *ranks], env_steps, limit, iterations=_ITERATIONS).rows
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        length = ["--total-env-steps", str(env_steps), "--num-iterations", str(_ITERATIONS)]
        words = ["train", case.algorithm, "--run-dir", str(run_dir), "--no-tensorboard", "--checkpoint-every", "0"]
        _on_hosts(case, [*words, *length, *options], limit)
        with (run_dir / "metrics.csv").open(newline="") as file:
            return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def _on_hosts(case: Case, words: Sequence[str], limit: float) -> None:
    """Run hpcrl on hosts whose interfaces are limited."""
    if (reason := why_not()) is not None:
        raise CommandFailed(reason)
    hpcrl = shlex.join([sys.executable, "-m", "hpcrl", *words])
    limits = f"tc qdisc replace dev eth0 root {case.tc} && " if case.tc else ""
    hosts = {f"host{number}": case.ranks_per_node for number in range(1, case.nodes + 1)}
    done = run_on_hosts(["sh", "-c", f"{limits}exec {hpcrl}"], hosts, limit)
    if done.returncode:
        raise CommandFailed(f"{hpcrl}: status {done.returncode}: {done.stdout[-300:]} {done.stderr[-300:]}")


def _with_measured_links(case: Case, costs: Costs) -> Costs:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "doctor.json"
        _on_hosts(case, ["doctor", "--run-dir", folder, "--json", str(path)], 180)
        return with_links(costs, links_in(read_json(path), path), _DOCTOR)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table of rows."""
    lines = [
        "| case | learners + actors | predicted /s | simulated /s | measured /s (range) | error | lag: predicted, "
        "simulated, measured |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        spread = f"{row['measured_per_s']:,.0f} ({row['least_per_s']:,.0f} - {row['most_per_s']:,.0f})"
        lag = ", ".join(f"{row[f'{kind}_lag']:.2f}" for kind in ("predicted", "simulated", "measured"))
        lines.append(
            f"| {row['case']} | {row['learners']} + {row['actors']} | {row['predicted_per_s']:,.0f} | "
            f"{row['simulated_per_s']:,.0f} | {spread} | {row['error']:+.0%} | {lag} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
