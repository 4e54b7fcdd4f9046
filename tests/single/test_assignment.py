"""Which ranks learn where there are GPUs, and on which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations, product
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcrl.cluster.assignment import Device, auto_learners, plan_devices
from hpcrl.devices.gpus import Gpu
from hpcrl.errors import ConfigError

View = tuple[Gpu, ...]


def see(names: str) -> View:
    """GPUs with names of one letter, as a rank sees them."""
    return tuple(Gpu(f"GPU-{name}", "H100", 80 << 30) for name in names)


def views(*names: str) -> list[View]:
    return [see(of_rank) for of_rank in names]


def plan(
    nodes: Sequence[int],
    gpus: Sequence[View],
    learners: Sequence[int],
    device: Literal["auto", "cpu", "cuda"] = "auto",
    share: bool = False,
) -> dict[int, str | None]:
    """The names of the learners' GPUs; their index is checked."""
    found = plan_devices(nodes, gpus, learners, device, share)
    assert list(found) == sorted(set(learners))
    for rank, given_ in found.items():
        assert given_ is None or given_ == Device(given_.index, gpus[rank][given_.index].uuid, "H100")
    return {rank: given_.uuid.removeprefix("GPU-") if given_ else None for rank, given_ in found.items()}


@pytest.mark.parametrize(
    ("nodes", "gpus", "learners"),
    [
        # srun --gpus-per-node: every rank of a node sees all its GPUs.
        ([0] * 6, ["ab"] * 6, (0, 1)),
        ([0] * 4 + [1] * 4, ["ab"] * 4 + ["cd"] * 4, (0, 1, 4, 5)),
        ([0, 1] * 4, ["ab", "cd"] * 4, (0, 1, 2, 3)),
        # Clones of one image may have GPUs of the same name.
        ([0, 0, 1, 1], ["a"] * 4, (0, 2)),
        # srun --gpus-per-task: every rank sees one, of its own.
        ([0] * 4, ["a", "b", "c", "d"], (0, 1, 2, 3)),
        # The same with one task that has GPUs, and actors without.
        ([0] * 4, ["", "", "a", ""], (2,)),
        # Fewer ranks than GPUs.
        ([0, 0], ["abcd", "abcd"], (0, 1)),
        # Rank 0 must leave a to rank 1, and rank 2 gets none.
        ([0] * 3, ["ab", "a", "b"], (0, 1)),
        ([0] * 4, ["a", "a", "ab", "b"], (0, 2)),
        # A heterogeneous job: GPU nodes, then CPU nodes.
        ([0, 0, 1, 1, 2, 2], ["ab", "ab", "cd", "cd", "", ""], (0, 1, 2, 3)),
        ([0, 0], ["", ""], ()),
        ([], [], ()),
    ],
)
def test_auto_is_a_learner_for_every_gpu(nodes: list[int], gpus: list[str], learners: tuple[int, ...]) -> None:
    assert auto_learners(nodes, views(*gpus)) == learners


@pytest.mark.parametrize(
    ("nodes", "gpus", "learners", "expected"),
    [
        # srun --gpus-per-node, learners the lowest ranks of each node.
        ([0] * 4, ["abcd"] * 4, [0, 1], {0: "a", 1: "b"}),
        ([0] * 8, ["abcd"] * 8, [0, 1, 2, 3], {0: "a", 1: "b", 2: "c", 3: "d"}),
        ([0] * 8, ["abcd"] * 8, [7, 2, 5], {2: "a", 5: "b", 7: "c"}),
        # Two nodes, in blocks and in turn.
        ([0] * 3 + [1] * 3, ["ab"] * 3 + ["cd"] * 3, [0, 1, 3, 4], {0: "a", 1: "b", 3: "c", 4: "d"}),
        ([0, 1] * 3, ["ab", "cd"] * 3, [0, 1, 2, 3], {0: "a", 1: "c", 2: "b", 3: "d"}),
        ([0, 0, 1, 1], ["a"] * 4, [0, 2], {0: "a", 2: "a"}),
        # srun --gpus-per-task.
        ([0] * 4, ["a", "b", "c", "d"], [0, 1, 2, 3], {0: "a", 1: "b", 2: "c", 3: "d"}),
        ([0] * 4, ["d", "c", "b", "a"], [1, 2], {1: "c", 2: "b"}),
        # CUDA_VISIBLE_DEVICES narrowed and turned, by a wrapper of each rank.
        ([0] * 2, ["ba", "ba"], [0, 1], {0: "b", 1: "a"}),
        ([0] * 3, ["abc", "bca", "cab"], [0, 1, 2], {0: "a", 1: "b", 2: "c"}),
        ([0] * 2, ["ab", "a"], [0, 1], {0: "b", 1: "a"}),
        ([0] * 4, ["ab", "bc", "cd", "a"], [0, 1, 2, 3], {0: "b", 1: "c", 2: "d", 3: "a"}),
        # Of two ways to make room the one that moves the lower rank; of two lengths the shorter.
        ([0] * 3, ["ac", "bd", "ab"], [0, 1, 2], {0: "c", 1: "b", 2: "a"}),
        ([0] * 4, ["ac", "ce", "bd", "ab"], [0, 1, 2, 3], {0: "a", 1: "c", 2: "d", 3: "b"}),
        # Colocated: every rank acts and learns.
        ([0] * 2, ["ab"] * 2, [0, 1], {0: "a", 1: "b"}),
        ([0], ["a"], [0], {0: "a"}),
        # Actors may see none.
        ([0] * 3, ["ab", "ab", ""], [0, 1], {0: "a", 1: "b"}),
    ],
)
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_every_learner_has_a_gpu_of_its_own(
    nodes: list[int],
    gpus: list[str],
    learners: list[int],
    expected: dict[int, str],
    device: Literal["auto", "cuda"],
    share: bool,
) -> None:
    assert plan(nodes, views(*gpus), learners, device, share) == expected


def test_a_mig_instance_counts_as_a_gpu() -> None:
    """Before driver 570 CUDA shows all ranks the same instance, unless each has another in CUDA_VISIBLE_DEVICES."""
    first, second = (Gpu(f"MIG-{name}", "A100 MIG 3g.20gb", 20 << 30) for name in "pq")
    found = plan_devices([0, 0, 0], [(first,), (second,), ()], [0, 1], "cuda", False)
    assert found == {0: Device(0, "MIG-p", "A100 MIG 3g.20gb"), 1: Device(0, "MIG-q", "A100 MIG 3g.20gb")}
    with pytest.raises(ConfigError, match="they see 1 between them; type --learners 1, --share-gpus or --device cpu"):
        plan_devices([0, 0, 0], [(first,)] * 3, [0, 1], "cuda", False)


@pytest.mark.parametrize("share", [False, True])
def test_on_the_cpu_nobody_has_one(share: bool) -> None:
    assert plan([0, 0], views("a", "a"), [0, 1], "cpu", share) == {0: None, 1: None}
    assert plan([0, 0], views("a", ""), [0, 1], "cpu", share) == {0: None, 1: None}
    assert plan([0, 0], views("", ""), [0, 1], "auto", share) == {0: None, 1: None}
    # GPUs that only actors see do not matter.
    assert plan([0, 0], views("", "a"), [0], "auto", share) == {0: None}


@pytest.mark.parametrize(
    ("nodes", "gpus", "learners", "expected"),
    [
        ([0] * 4, ["ab"] * 4, [0, 1, 2, 3], {0: "a", 1: "b", 2: "a", 3: "b"}),
        ([0] * 3, ["a"] * 3, [0, 1, 2], {0: "a", 1: "a", 2: "a"}),
        ([0] * 3, ["ab", "ab", "a"], [0, 1, 2], {0: "a", 1: "b", 2: "a"}),
        ([0] * 4, ["ab", "ab", "a", "a"], [0, 1, 2, 3], {0: "b", 1: "b", 2: "a", 3: "a"}),
        ([0, 0, 1, 1], ["a"] * 4, [0, 1, 2, 3], {0: "a", 1: "a", 2: "a", 3: "a"}),
    ],
)
def test_shared_gpus_have_equally_many(
    nodes: list[int], gpus: list[str], learners: list[int], expected: dict[int, str]
) -> None:
    assert plan(nodes, views(*gpus), learners, "auto", share=True) == expected


@pytest.mark.parametrize(
    ("device", "share", "nodes", "gpus", "learners", "message"),
    [
        (
            "cuda",
            False,
            [0, 0],
            ["", ""],
            [0, 1],
            "ranks 0-1 on n0 can't learn on a GPU, as they see none (0 of 2 learners do); type --device cpu",
        ),
        (
            "auto",
            True,
            [0, 0, 1, 1],
            ["a", "a", "", ""],
            [0, 2],
            "rank 2 on n1 can't learn on a GPU, as it sees none (1 of 2 learners do); "
            "type --learners 1 or --device cpu",
        ),
        (
            "cuda",
            False,
            [0, 0, 1, 2],
            ["a", "", "", ""],
            [0, 1, 2, 3],
            "rank 1 on n0 can't learn on a GPU, as it sees none (1 of 4 learners do); "
            "type --learners 1 or --device cpu",
        ),
        (
            "auto",
            False,
            [0, 0, 1, 1],
            ["", "", "a", "a"],
            [0, 2],
            "rank 0 on n0 can't learn on a GPU, as it sees none (1 of 2 learners do); type --device cpu",
        ),
        (
            "auto",
            False,
            [0] * 3 + [1] * 4,
            ["ab"] * 3 + ["cd"] * 4,
            [0, 1, 3, 4, 5],
            "ranks 3-5 on n1 can't learn on a GPU each, as they see 2 between them; "
            "type --learners 4, --share-gpus or --device cpu",
        ),
        # The GPU of rank 2 is of no use to the others.
        (
            "cuda",
            False,
            [0] * 4,
            ["a", "a", "b", "ab"],
            [0, 1, 2],
            "ranks 0-1 on n0 can't learn on a GPU each, as they see 1 between them; "
            "type --learners 2, --share-gpus or --device cpu",
        ),
        # As many GPUs as learners, but others see them.
        (
            "cuda",
            False,
            [0] * 3,
            ["a", "a", "b"],
            [0, 1],
            "ranks 0-1 on n0 can't learn on a GPU each, as they see 1 between them; type --share-gpus or --device cpu",
        ),
    ],
)
def test_refusals_say_who_where_and_what_to_type(
    device: Literal["auto", "cuda"],
    share: bool,
    nodes: list[int],
    gpus: list[str],
    learners: list[int],
    message: str,
) -> None:
    with pytest.raises(ConfigError) as refused:
        plan_devices(nodes, views(*gpus), learners, device, share, [f"n{node}" for node in nodes])
    assert str(refused.value) == message
    with pytest.raises(ConfigError) as refused:
        plan_devices(nodes, views(*gpus), learners, device, share)
    assert str(refused.value) == message.replace("on n", "on node ")


World = tuple[list[int], list[View]]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Up to six ranks on three nodes, each with an ordered choice of up to four GPUs."""
    size = draw(st.integers(1, 6))
    nodes = draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
    names = st.lists(st.sampled_from("abcd"), max_size=4, unique=True).map("".join)
    return nodes, [see(draw(names)) for _ in range(size)]


def choices(world: World, ranks: Iterable[int]) -> list[list[tuple[int, str]]]:
    """Every way to give these ranks GPUs that they see, as (node, UUID)."""
    nodes, gpus = world
    return [list(way) for way in product(*([(nodes[rank], gpu.uuid) for gpu in gpus[rank]] for rank in ranks))]


def loads(way: Iterable[tuple[int, str]]) -> list[int]:
    return sorted(Counter(way).values(), reverse=True)


def exists(world: World, ranks: Sequence[int]) -> bool:
    return any(len(set(way)) == len(way) for way in choices(world, ranks))


@settings(max_examples=300, deadline=None)
@given(worlds())
def test_auto_learners_are_the_lowest_of_the_most(world: World) -> None:
    nodes, gpus = world
    sets = [ranks for size in range(len(nodes) + 1) for ranks in combinations(range(len(nodes)), size)]
    possible = [ranks for ranks in sets if exists(world, ranks)]
    most = max(map(len, possible))
    learners = auto_learners(nodes, gpus)
    assert learners == min(ranks for ranks in possible if len(ranks) == most)
    if learners:
        assert None not in plan(nodes, gpus, learners, "cuda").values()


@settings(max_examples=400, deadline=None)
@given(worlds(), st.data())
def test_plans_are_refused_exactly_where_none_exists(world: World, data: st.DataObject) -> None:
    nodes, gpus = world
    learners = data.draw(st.lists(st.sampled_from(range(len(nodes))), min_size=1, unique=True))
    device = data.draw(st.sampled_from(["auto", "cuda"]))
    seeing = [rank for rank in learners if gpus[rank]]
    try:
        found = plan(nodes, gpus, learners, device)
    except ConfigError:
        assert not exists(world, learners) and (device == "cuda" or seeing)
        return
    assert found == plan(nodes, gpus, sorted(learners, reverse=True), device)
    if device == "auto" and not seeing:
        assert set(found.values()) == {None}
    else:
        places = [(nodes[rank], name) for rank, name in found.items()]
        assert len(set(places)) == len(places) and None not in found.values()
        # Nobody is moved off its first choice where all first choices differ.
        first = {rank: gpus[rank][0].uuid.removeprefix("GPU-") for rank in learners}
        if len({(nodes[rank], name) for rank, name in first.items()}) == len(first):
            assert found == first


@settings(max_examples=300, deadline=None)
@given(worlds(), st.data())
def test_shared_loads_are_as_even_as_can_be(world: World, data: st.DataObject) -> None:
    nodes, gpus = world
    seeing = [rank for rank in range(len(nodes)) if gpus[rank]]
    if not seeing:
        return
    learners = data.draw(st.lists(st.sampled_from(seeing), min_size=1, unique=True))
    found = plan(nodes, gpus, learners, share=True)
    way = [(nodes[rank], f"GPU-{name}") for rank, name in found.items()]
    best = min(sum(load * load for load in loads(other)) for other in choices(world, learners))
    assert way in choices(world, sorted(learners))
    assert sum(load * load for load in loads(way)) == best
    if exists(world, learners):
        assert found == plan(nodes, gpus, learners)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=12), st.integers(1, 6), st.booleans())
def test_learners_that_see_all_are_given_gpus_in_turn(nodes: list[int], number: int, share: bool) -> None:
    gpus = [see("abcdef"[:number])] * len(nodes)
    learners = list(range(len(nodes))) if share else list(auto_learners(nodes, gpus))
    found = plan_devices(nodes, gpus, learners, "cuda", share)
    for rank, given_ in found.items():
        assert given_ is not None
        before = [other for other in learners if other < rank and nodes[other] == nodes[rank]]
        assert given_.index == len(before) % number
