"""Who learns, who acts, and with which environments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcrl.cluster.layout import Layout, plan_layout, plan_workers
from hpcrl.errors import ConfigError


def split(nodes: str, learners: int | str = "auto", num_envs: int = 16) -> Layout:
    return plan_layout(nodes, learners, "split", num_envs)  # type: ignore[arg-type]


@pytest.mark.parametrize("placement", ["split", "colocated"])
@pytest.mark.parametrize("learners", ["auto", 1])
def test_one_rank_learns_and_acts(placement: str, learners: int | str) -> None:
    layout = plan_layout("a", learners, placement, 5)  # type: ignore[arg-type]
    assert layout == Layout((0,), (0,), (0,), {0: 0}, {0: range(5)})
    assert layout.describe() == "1 rank, acting and learning, on one node, 5 environments an actor"


@pytest.mark.parametrize(
    ("nodes", "learners", "learner_of"),
    [
        ("aa", (0,), {1: 0}),
        ("aaaa", (0,), {1: 0, 2: 0, 3: 0}),
        ("aab", (0,), {1: 0, 2: 0}),
        ("aba", (0,), {1: 0, 2: 0}),
        ("abb", (0,), {1: 0, 2: 0}),
        ("ab", (0,), {1: 0}),
        ("abc", (0,), {1: 0, 2: 0}),
        ("aabb", (0, 2), {1: 0, 3: 2}),
        ("abab", (0, 1), {2: 0, 3: 1}),
        ("aaabbb", (0, 3), {1: 0, 2: 0, 4: 3, 5: 3}),
        ("aabbc", (0, 2), {1: 0, 3: 2, 4: 0}),
        ("aaabbc", (0, 3), {1: 0, 2: 0, 4: 3, 5: 3}),
    ],
)
def test_auto_is_one_learner_for_every_node_with_actors(
    nodes: str, learners: tuple[int, ...], learner_of: dict[int, int]
) -> None:
    layout = split(nodes)
    assert (layout.learners, layout.learner_of) == (learners, learner_of)
    assert layout.actors == tuple(sorted(learner_of))


@pytest.mark.parametrize(
    ("nodes", "wanted", "learners"),
    [
        ("aaaa", 2, (0, 1)),
        ("aaaaaaaa", 4, (0, 1, 2, 3)),
        ("aaaabbbb", 2, (0, 4)),
        ("aaaabbbb", 4, (0, 1, 4, 5)),
        ("aaaabbbb", 1, (0,)),
        ("aaabc", 2, (0, 1)),
        ("abbb", 2, (0, 1)),
    ],
)
def test_the_number_of_learners_can_be_chosen(nodes: str, wanted: int, learners: tuple[int, ...]) -> None:
    layout = split(nodes, wanted)
    assert layout.learners == learners
    assert all(layout.actors_of(learner) for learner in learners)


def test_a_learner_whose_node_has_no_actor_left_gets_one_from_elsewhere() -> None:
    layout = split("aabbbb", 3)
    assert layout.learners == (0, 1, 2)
    assert sorted(len(layout.actors_of(learner)) for learner in layout.learners) == [1, 1, 1]


def test_ranks_know_the_learner_of_their_group() -> None:
    layout = split("aaabbb")
    assert [layout.learner_for(rank) for rank in range(6)] == [0, 0, 0, 3, 3, 3]
    assert layout.node_of == (0, 0, 0, 1, 1, 1)
    assert layout.describe() == "2 learners and 4 actors on 2 nodes, 4 environments an actor"


def test_environments_are_dealt_to_the_actors_in_rank_order() -> None:
    assert split("aaaa", num_envs=8).env_blocks == {1: range(3), 2: range(3, 6), 3: range(6, 8)}


def test_fewer_environments_than_actors_leave_some_without() -> None:
    blocks = split("aaaa", num_envs=2).env_blocks
    assert [len(block) for block in blocks.values()] == [1, 1, 0]


@pytest.mark.parametrize("learners", ["auto", 3])
def test_colocated_ranks_all_act_and_learn(learners: int | str) -> None:
    layout = plan_layout("aab", learners, "colocated", 7)  # type: ignore[arg-type]
    assert layout.learners == layout.actors == (0, 1, 2)
    assert layout.learner_of == {0: 0, 1: 1, 2: 2}
    assert list(layout.env_blocks.values()) == [range(3), range(3, 5), range(5, 7)]


@pytest.mark.parametrize(
    ("nodes", "learners", "placement", "message"),
    [
        ("a", 2, "split", "--learners 2 must be 1"),
        ("aab", 2, "colocated", "--learners 2 must be 3"),
        ("aaa", 2, "split", "--learners 2 needs an actor for each, so at least 4 ranks, got 3"),
        ("aa", 5, "split", "at least 10 ranks, got 2"),
    ],
)
def test_layouts_that_cannot_be_are_refused(nodes: str, learners: int, placement: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_layout(nodes, learners, placement, 16)  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None)
@given(st.text("abcd", min_size=2, max_size=12), st.integers(1, 40), st.data())
def test_properties_of_every_split(nodes: str, num_envs: int, data: st.DataObject) -> None:
    wanted = data.draw(st.sampled_from(["auto", *range(1, len(nodes) // 2 + 1)]))
    layout = split(nodes, wanted, num_envs)
    assert sorted(layout.learners + layout.actors) == list(range(len(nodes)))
    assert layout.learners[0] == 0 and (wanted == "auto" or len(layout.learners) == wanted)
    groups = [layout.actors_of(learner) for learner in layout.learners]
    assert all(groups) and sorted(sum(groups, ())) == list(layout.actors) == list(layout.env_blocks)
    blocks = list(layout.env_blocks.values())
    assert [index for block in blocks for index in block] == list(range(num_envs))
    assert max(map(len, blocks)) - min(map(len, blocks)) <= 1


@settings(max_examples=150, deadline=None)
@given(st.text("abcd", min_size=2, max_size=12))
def test_auto_feeds_a_learner_of_the_own_node_where_there_is_one(nodes: str) -> None:
    layout = split(nodes)
    at_home = {nodes[learner] for learner in layout.learners}
    moved = [
        actor for actor in layout.actors if nodes[actor] in at_home and nodes[layout.learner_of[actor]] != nodes[actor]
    ]
    # Rank 0 always learns: on a node of its own it takes one actor from elsewhere.
    assert len(moved) <= (nodes.count(nodes[0]) == 1)


@pytest.mark.parametrize(
    ("nodes", "wanted", "spread", "first"),
    [
        ("aabb", 2, (0, 2), (0, 1)),
        ("aaaabbbb", 2, (0, 4), (0, 1)),
        ("ababab", 3, (0, 1, 2), (0, 1, 2)),
        ("abbbb", 2, (0, 1), (0, 1)),
        ("abbbcc", 3, (0, 1, 4), (0, 1, 2)),
        ("aaaa", 1, (0,), (0,)),
    ],
)
@pytest.mark.parametrize("plan", [plan_layout, plan_workers])
def test_learners_are_spread_or_the_first_ranks(
    plan: Callable[..., Layout], nodes: str, wanted: int, spread: tuple[int, ...], first: tuple[int, ...]
) -> None:
    assert plan(nodes, wanted, "split", 16, "first").learners == first
    assert plan(nodes, wanted, "split", 16, "spread").learners == spread
    assert plan(nodes, wanted, "split", 16) == plan(nodes, wanted, "split", 16, "spread")


def test_learners_of_a_heterogeneous_job_are_its_first_component() -> None:
    """Two nodes with two GPUs each, then two nodes that act."""
    layout = plan_layout(["gpu1", "gpu1", "gpu2", "gpu2", *["cpu1"] * 4, *["cpu2"] * 4], 4, "split", 16, "first")
    assert layout.learners == (0, 1, 2, 3)
    assert layout.actors == tuple(range(4, 12))
    assert [len(layout.actors_of(learner)) for learner in layout.learners] == [2] * 4
    assert layout.node_of == (0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)


@pytest.mark.parametrize("learner_ranks", ["spread", "first"])
def test_workers_and_owners_of_an_asynchronous_run(learner_ranks: Literal["spread", "first"]) -> None:
    split_workers = plan_workers("aabb", 2, "split", 16, learner_ranks)
    assert sorted(split_workers.learners + split_workers.actors) == [0, 1, 2, 3]
    colocated = plan_workers("aabb", 2, "colocated", 16, learner_ranks)
    assert colocated.learners == split_workers.learners and colocated.actors == (0, 1, 2, 3)
    assert colocated.is_asynchronous and not colocated.is_colocated


def test_one_owner_is_the_default_of_workers_and_a_worker_must_be_left() -> None:
    assert plan_workers("aabb", "auto", "split", 16, "first").learners == (0,)
    assert plan_workers("a", "auto", "split", 16).actors == (0,)
    with pytest.raises(ConfigError, match="at least 5 ranks"):
        plan_workers("aabb", 4, "split", 16, "first")
    with pytest.raises(ConfigError, match="at least 5 ranks, got 4"):
        plan_workers("aabb", 5, "colocated", 16)


@settings(max_examples=100, deadline=None)
@given(st.text("abcd", min_size=2, max_size=12), st.integers(1, 40), st.data())
def test_first_learners_leave_nobody_without(nodes: str, num_envs: int, data: st.DataObject) -> None:
    wanted = data.draw(st.integers(1, len(nodes) // 2))
    layout = plan_layout(nodes, wanted, "split", num_envs, "first")
    assert layout.learners == tuple(range(wanted)) and layout.actors == tuple(range(wanted, len(nodes)))
    groups = [layout.actors_of(learner) for learner in layout.learners]
    assert all(groups) and sorted(sum(groups, ())) == list(layout.actors)
