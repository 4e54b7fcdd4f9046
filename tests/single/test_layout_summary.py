"""The layout in words: one line for one rank, a few for a thousand."""

from __future__ import annotations

import re
from typing import Any

import tests.no_mpi  # noqa: F401

# isort: split
from hpcrl.commands.layout_summary import layout_lines
from hpcrl.config import A2CConfig, A3CConfig, ImpalaConfig, TrainConfig
from hpcrl.devices.gpus import Gpu
from hpcrl.roles.computing import make_plan


def lines(nodes: list[int], config: TrainConfig, gpus: int = 0) -> list[str]:
    """Of a world whose ranks are on these nodes, each with so many GPUs."""
    seen: list[Any] = [tuple(Gpu(f"{node}-{gpu}", "NVIDIA Test", 2**30) for gpu in range(gpus)) for node in nodes]
    plan = make_plan(config, nodes, seen, [f"n{node:02}" for node in nodes], bool(gpus))
    return layout_lines(plan, config.learner_cores)


def test_one_rank_is_one_line() -> None:
    assert lines([0], A2CConfig(num_envs=5)) == [
        "1 rank, acting and learning, on one node, 5 environments an actor, on cpu with 1 core"
    ]
    [line] = lines([0], A2CConfig(device="auto", learner_cores=4), gpus=1)
    assert line.endswith("on NVIDIA Test with 4 cores")


def test_one_node() -> None:
    assert lines([0] * 4, A2CConfig(num_envs=7, learner_cores=2)) == [
        "1 learner and 3 actors on one node, 2 or 3 environments an actor",
        "  n00, ranks 0-3: 1 learns on cpu, 2 cores; 3 act, 2 or 3 environments each",
    ]


def test_nodes_alike_share_a_line_whatever_their_order() -> None:
    # Ranks are dealt out in turn, and one node has no other rank.
    config = ImpalaConfig(num_envs=8, batch_envs=8, device="auto")
    assert lines([0, 1, 2, 0, 1, 3, 0, 1], config, gpus=1)[1:] == [
        "  n00 and n01, ranks 0-1, 3-4, 6-7: on each, 1 learns on NVIDIA Test; 2 act, 2 environments each",
        "  n02 and n03, ranks 2, 5: on each, 1 learns on NVIDIA Test",
    ]


def test_what_workers_and_owners_do() -> None:
    assert lines([0] * 3 + [1] * 2, A3CConfig(num_envs=6, learners=2))[1:] == [
        "  n00, ranks 0-2: 1 owns weights on cpu; 2 work, 2 environments each",
        "  n01, ranks 3-4: 1 owns weights on cpu; 1 works, 2 environments",
    ]
    assert lines([0] * 3, A3CConfig(num_envs=6, placement="colocated"))[1:] == [
        "  n00, ranks 0-2: 1 owns weights and works on cpu, 2 environments; 2 work, 2 environments each"
    ]


def test_a_thousand_ranks_are_a_few_lines() -> None:
    nodes = [rank // 16 for rank in range(1024)]
    config = ImpalaConfig(num_envs=4000, batch_envs=4000, device="auto", learner_cores=8)
    learners, actors = "on each, 4 learn on NVIDIA Test, 8 cores each; 12 act", "environments each"
    assert lines(nodes, config, gpus=4) == [
        "256 learners and 768 actors on 64 nodes, 5 or 6 environments an actor",
        f"  n00 to n12 (13 nodes), ranks 0-207: {learners}, 6 {actors}",
        f"  n13, ranks 208-223: {learners.removeprefix('on each, ')}, 5 or 6 {actors}",
        f"  n14 to n63 (50 nodes), ranks 224-1023: {learners}, 5 {actors}",
    ]
    in_turn = lines([node for node in range(20) for _ in range(2 + node % 2)], A2CConfig(num_envs=60))
    assert len(in_turn) == 3 and in_turn[1].startswith("  n00, n02, n04, n06, ... (10 nodes), 20 ranks: on each, ")


def test_however_many_kinds_of_nodes_there_are() -> None:
    nodes = [node for node in range(30) for _ in range(node + 2)]
    said = lines(nodes, A2CConfig(num_envs=1200))
    assert len(said) == 9 and said[-1] == "  and 23 nodes of 23 other kinds"
    assert [int(re.findall(r"ranks (\d+)", line)[0]) for line in said[1:-1]] == [0, 2, 5, 9, 14, 20, 27]
