"""The most that two cores could do for the preset cartpole-throughput, and how much of it is reached."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import children, training
from benchmarks.processes import on_every_core
from benchmarks.settings import CORES, Settings
from benchmarks.stepping import rate as stepping_rate
from benchmarks.tables import RATE, Column, Measurement, Results, Table, median_of
from hpcrl.envs.factory import describe_task
from hpcrl.envs.world import World
from hpcrl.models.policy import Policy
from hpcrl.presets.classic import cartpole_throughput

_PRESET = "impala, preset cartpole-throughput"
_PARTS = "parts alone, on all cores at once"
_SQUARE = 1024


def table(settings: Settings) -> Table:
    """The run, and the rates of what it is made of."""
    workloads: dict[str, Callable[[int], Measurement]] = {
        _PRESET: partial(_run, settings),
        _PARTS: partial(_parts, settings),
    }
    columns = [
        Column("square_gflops", f"GFLOP/s of {_SQUARE}^3"),
        Column("acting_gflops", "of 64 x 64, acting"),
        Column("forward_gflops", "forward"),
        Column("backward_gflops", "backward"),
        Column("env_ns", "ns of env a step", ",.0f"),
        Column("acting_ns", "of the policy, acting", ",.0f"),
        Column("learning_ns", "learning", ",.0f"),
    ]
    return Table("limits", f"Limits of {CORES} cores", workloads, columns=columns, notes=_notes)


def _run(settings: Settings, round_: int) -> Measurement:
    options = ("--preset", "cartpole-throughput", "--ranks", CORES, "--seed", round_ + 1)
    return training.train("impala", options, settings.native_env_steps, iterations=20).measurement()


def _parts(settings: Settings, _: int) -> Measurement:
    done = children.run([sys.executable, "-m", "benchmarks.limits", str(settings.seconds)], 120 + 8 * settings.seconds)
    return {**json.loads(done.output.splitlines()[-1]), "cores": done.cores, "peak_mb": done.peak_mb}


def flop_per_env_step() -> dict[str, float]:
    """Multiplications and additions in the affine maps of the preset's policy, for one env step.

    Acting needs the policy alone. Learning goes forward over T + 1 rows of every T and back over as many, without the
    gradient towards observations.
    """
    config = cartpole_throughput()
    policy = Policy(describe_task(World(config.env, "native")), config)
    maps = [module for module in policy.modules() if isinstance(module, nn.Linear)]
    whole = sum(2 * module.weight.numel() for module in maps)
    first = sum(2 * encoder.layers[0].weight.numel() for encoder in (policy.encoder, policy.value_encoder) if encoder)
    values = 2 * policy.value_head.weight.numel()
    if policy.value_encoder is not None:
        values += sum(2 * layer.weight.numel() for layer in policy.value_encoder.layers)
    rows = (config.unroll_length + 1) / config.unroll_length
    return {"acting": whole - values, "forward": rows * whole, "backward": rows * (2 * whole - first)}


def _gflops(work: Callable[[], object], flop: float, seconds: float) -> float:
    work()
    calls, start = 0, time.perf_counter()
    while time.perf_counter() < start + seconds:
        work()
        calls += 1
    return calls * flop / (time.perf_counter() - start) / 1e9


def _rates_of_one_core(seconds: float) -> dict[str, float]:
    torch.set_num_threads(1)
    config = cartpole_throughput()
    width = config.hidden_sizes[0]
    acting, learning = config.num_envs // CORES, config.batch_envs // CORES * config.unroll_length
    square = torch.rand(_SQUARE, _SQUARE)
    weight, bias = torch.rand(width, width), torch.rand(width)
    few, many, delta = torch.rand(acting, width), torch.rand(learning, width), torch.rand(learning, width)

    task = describe_task(World(config.env, "native"))
    policy = Policy(task, config)
    seen, batch = (torch.rand(rows, task.observation.size) for rows in (acting, learning))

    def backward() -> tuple[Tensor, Tensor]:
        return delta @ weight, delta.t() @ many

    def learn() -> None:
        parameters, value = policy(batch)
        (parameters.sum() + value.sum()).backward()

    square_flop, layer = 2 * _SQUARE**3, 2 * width * width
    # A "FLOP" for each step makes the rate that of steps.
    acting_ns = 1 / _gflops(lambda: policy.step(seen, torch.zeros(len(seen), 0)), acting, seconds)
    learning_ns = 1 / _gflops(learn, learning, seconds)
    with torch.inference_mode():
        return {
            "square_gflops": _gflops(lambda: square @ square, square_flop, seconds),
            "acting_gflops": _gflops(lambda: torch.addmm(bias, few, weight.t()), acting * layer, seconds),
            "forward_gflops": _gflops(lambda: torch.addmm(bias, many, weight.t()), learning * layer, seconds),
            "backward_gflops": _gflops(backward, 2 * learning * layer, seconds),
            "env_ns": 1e9 / stepping_rate("native", acting, seconds),
            "acting_ns": acting_ns,
            "learning_ns": learning_ns,
        }


def _notes(results: Results) -> Iterable[str]:
    flop = flop_per_env_step()
    total = sum(flop.values())
    yield "GFLOP/s and ns are those of one core while all are busy."
    yield ""
    yield "- FLOP an env step: " + ", ".join(f"{name} {count:,.0f}" for name, count in flop.items()) + f": {total:,.0f}"
    rate = median_of(results, _PRESET, RATE)
    numbers = {
        name: median_of(results, _PARTS, name)
        for name in ("square_gflops", *(f"{name}_gflops" for name in flop), "env_ns", "acting_ns", "learning_ns")
    }
    if any(number is None for number in numbers.values()):
        return
    env_ns, square = numbers["env_ns"] or 0, numbers["square_gflops"] or 1
    policy_ns = (numbers["acting_ns"] or 0) + (numbers["learning_ns"] or 0)
    layers_ns = sum(count / (numbers[f"{name}_gflops"] or 1) for name, count in flop.items())
    for name, ns in (
        ("products at the rate of large matrices", total / square),
        ("products at the rate of large matrices, and environments", total / square + env_ns),
        ("products at the rate of 64 x 64 layers, and environments", layers_ns + env_ns),
        ("the policy alone, without loss, sampling or optimizer, and environments", policy_ns + env_ns),
    ):
        limit = CORES * 1e9 / ns
        reached = f"; reached {100 * rate / limit:.0f} %" if rate else ""
        yield f"- {name}: {ns:,.0f} ns a step and core, at most {limit:,.0f} env steps/s{reached}"


def main() -> None:
    """The rates of one core, all cores being busy; one JSON line."""
    parts = on_every_core(_rates_of_one_core, (float(sys.argv[1]) / 7,), CORES)
    print(json.dumps({name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}))


if __name__ == "__main__":
    main()
