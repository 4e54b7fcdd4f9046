"""Costs and setups for tests of the planner, in round numbers."""

from __future__ import annotations

from typing import Any

from hpcrl.config import A2CConfig, A3CConfig, ImpalaConfig
from hpcrl.planning.costs import Costs, Line, Link
from hpcrl.planning.setups import Setup, make_setup

LENGTH = 10


def costs(**changes: Any) -> Costs:
    """A step takes 1 ms and 1 ms a column, a gradient 10 ms and 0.1 ms a row; nothing between ranks takes any time."""
    numbers: dict[str, Any] = {
        "algorithm": "a2c",
        "env": "CartPole-v1",
        "model": {},
        "unroll_length": LENGTH,
        "step": Line(1e-3, 1e-3),
        "step_sd_s": 0.0,
        "inference": Line(5e-4, 0.0),
        "unroll": Line(0.0, 0.0),
        "gradient": Line(1e-2, 1e-4),
        "apply_s": 2e-3,
        "unroll_bytes": Line(0.0, 100.0),
        "weights_bytes": 1000,
        "copy_bytes_per_s": 1e18,
        "nap_s": 0.0,
        "node": Link(0.0, 1e18),
        "net": Link(0.0, 1e18),
        "links_from": "a test",
        "measured_on": "paper",
    }
    return Costs(**{**numbers, **changes})


def a2c(nodes: int, ranks_per_node: int, **options: Any) -> Setup:
    """Four environments by default."""
    return make_setup(A2CConfig(unroll_length=LENGTH, **{"num_envs": 4, **options}), nodes, ranks_per_node)


def impala(nodes: int, ranks_per_node: int, **options: Any) -> Setup:
    """Four environments, and as many columns of a batch, by default."""
    sizes = {"num_envs": 4, "batch_envs": 4, **options}
    return make_setup(ImpalaConfig(unroll_length=LENGTH, **sizes), nodes, ranks_per_node)


def a3c(nodes: int, ranks_per_node: int, **options: Any) -> Setup:
    """Four environments by default."""
    return make_setup(A3CConfig(unroll_length=LENGTH, **{"num_envs": 4, **options}), nodes, ranks_per_node)
