"""Who learns on what: the plan from what the ranks see."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tests.no_mpi  # noqa: F401

# isort: split
import pytest
import torch

from hpcrl.config import A2CConfig, A3CConfig, ImpalaConfig, TrainConfig
from hpcrl.devices.gpus import Gpu
from hpcrl.errors import ConfigError
from hpcrl.roles import computing
from hpcrl.roles.computing import Plan, make_plan, may_use_gpus
from hpcrl.spaces import Space, Task

VECTOR = Task(Space("box", (4,), "float32"), Space("discrete", (), "int64", 2), None, True)
IMAGE = Task(Space("box", (4, 84, 84), "uint8"), Space("discrete", (), "int64", 6), None, True)


def gpus(*names: str) -> tuple[Gpu, ...]:
    return tuple(Gpu(f"GPU-{name}", "NVIDIA Test", 2**30) for name in names)


def planned(nodes: str, seen: list[tuple[Gpu, ...]], wants_gpus: bool = True, **options: Any) -> Plan:
    config: TrainConfig = options.pop("config", None) or A2CConfig(**{"device": "auto", **options})
    return make_plan(config, nodes, seen, [f"host-{node}" for node in nodes], wants_gpus)


def indices(plan: Plan) -> dict[int, int | None]:
    return {rank: None if device is None else device.index for rank, device in plan.devices.items()}


def test_a_learner_for_every_gpu_of_every_node() -> None:
    plan = planned("aaaabbbb", [gpus("1", "2")] * 8)
    assert plan.layout.learners == (0, 1, 4, 5) and plan.layout.actors == (2, 3, 6, 7)
    assert plan.layout.learner_of == {2: 0, 3: 1, 6: 4, 7: 5}
    assert indices(plan) == {0: 0, 1: 1, 4: 0, 5: 1} and plan.on_gpus
    assert plan.describe() == "learning on 4 x NVIDIA Test"


def test_one_gpu_a_task() -> None:
    plan = planned("aaaa", [gpus("1"), gpus("2"), (), ()])
    assert plan.layout.learners == (0, 1) and indices(plan) == {0: 0, 1: 0}


def test_one_rank_on_one_gpu() -> None:
    plan = planned("a", [gpus("1")])
    assert plan.layout.learners == (0,) and indices(plan) == {0: 0} and plan.layout.is_colocated
    assert plan.describe() == "learning on NVIDIA Test"


def test_without_gpus_all_is_as_before() -> None:
    for wants in (False, True):
        plan = planned("aaab", [()] * 4, wants)
        assert plan.layout.learners == (0,) and indices(plan) == {0: None}
        assert not plan.on_gpus and plan.describe() is None


def test_gpus_that_are_not_wanted_change_nothing() -> None:
    assert planned("aaaa", [gpus("1", "2")] * 4, False) == planned("aaaa", [()] * 4)


def test_workers_of_a3c_take_none() -> None:
    plan = planned("aaa", [gpus("1")] * 3, False, config=A3CConfig())
    assert plan.layout.is_asynchronous and indices(plan) == {0: None}


def test_a_number_of_learners_is_obeyed() -> None:
    assert indices(planned("aaaa", [gpus("1", "2")] * 4, learners=1)) == {0: 0}
    plan = planned("aaaa", [gpus("1")] * 4, learners=2, share_gpus=True)
    assert indices(plan) == {0: 0, 1: 0}
    assert plan.describe() == "learning on 2 x NVIDIA Test (some shared)"
    assert indices(planned("aa", [gpus("1", "2")] * 2, placement="colocated")) == {0: 0, 1: 1}


@pytest.mark.parametrize(
    ("nodes", "seen", "options", "message"),
    [
        (
            "aa",
            [gpus("1", "2")] * 2,
            {},
            "2 of 2 ranks can have a GPU each, and a learner needs an actor; start at least 4",
        ),
        ("aa", [(), gpus("1")], {}, "rank 0, which always learns, sees no GPU, but rank 1 does"),
        ("aaaa", [gpus("1")] * 4, {"learners": 2}, "--share-gpus"),
        ("aa", [gpus("1")] * 2, {"placement": "colocated"}, "--share-gpus"),
        ("aa", [()] * 2, {"device": "cuda"}, "on host-a can't learn on a GPU"),
        ("ab", [gpus("1"), ()], {"placement": "colocated"}, "rank 1 on host-b"),
    ],
)
def test_other_maps_are_refused(nodes: str, seen: list[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(nodes, seen, **options)


@pytest.mark.parametrize(
    ("config", "task", "expected"),
    [
        (A2CConfig(device="auto"), VECTOR, False),
        (A2CConfig(device="auto", hidden_sizes=(512, 512)), VECTOR, True),
        (A2CConfig(device="auto"), IMAGE, True),
        (ImpalaConfig(device="auto", core="lstm"), VECTOR, True),
        (A2CConfig(), IMAGE, False),
        (A2CConfig(device="cuda"), VECTOR, True),
        (A2CConfig(device="cpu"), IMAGE, False),
        (A3CConfig(device="auto"), IMAGE, False),
    ],
)
def test_small_policies_learn_on_the_cpu(
    config: TrainConfig, task: Task, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert may_use_gpus(config, task) == expected


def test_a_build_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert not may_use_gpus(A2CConfig(device="auto"), IMAGE)
    with pytest.raises(ConfigError, match="--device cuda needs a build of torch for CUDA"):
        may_use_gpus(A2CConfig(device="cuda"), IMAGE)


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="--device must be cpu or auto under a3c"):
        A3CConfig(device="cuda")
    with pytest.raises(ConfigError, match="--share-gpus must be false with --device cpu"):
        A2CConfig(device="cpu", share_gpus=True)


@pytest.mark.parametrize(
    ("how", "words"),
    [("none", ""), ("kernels", ", compiled"), ("graphs", ", compiled and replayed as CUDA graphs")],
)
def test_what_gpus_compute_may_be_compiled(how: str, words: str) -> None:
    assert planned("a", [gpus("1")], compile=how).describe() == f"learning on NVIDIA Test{words}"


def test_what_cpus_compute_is_not_compiled() -> None:
    for config, wants_gpus in ((A2CConfig(device="auto"), True), (A3CConfig(device="auto"), False)):
        config = replace(config, compile="graphs")
        with pytest.raises(ConfigError, match="must be none where learners compute on CPUs"):
            planned("aa", [()] * 2, wants_gpus, config=config)


def test_the_cpu_needs_no_accelerator() -> None:
    assert computing.make_accelerator(None) is None
