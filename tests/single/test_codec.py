"""Stored forms against Gymnasium's own elements, leaf by leaf: there and back, alone and in vector environments."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hpcrl.envs.codec import (
    ActionReader,
    ObservationWriter,
    action_space,
    leaf_views,
    leaves_of,
    observation_space,
    with_action_mask,
)
from hpcrl.envs.stored import StoredForm
from hpcrl.errors import ConfigError
from hpcrl.spaces import ACTION_MASK, Space
from tests.worlds import ACTIONS, MASKABLE, OBSERVATIONS, AnyWorld, Masked, Scripted, draw

Leaves = dict[str, NDArray]


def slow_store(space: gym.Space, element: Any, way: str = "") -> Leaves:
    """The stored leaves of one element, by the way to each; of a plain space under an empty name."""
    match space:
        case Dict() | Tuple():
            parts = space.spaces.items() if isinstance(space, Dict) else enumerate(space.spaces)
            leaves: Leaves = {}
            for key, part in parts:
                leaves |= slow_store(part, element[key], f"{way}/{key}" if way else str(key))
            return leaves
        case Discrete():
            return {way: np.array(int(element) - int(space.start), np.int64)}
        case MultiDiscrete():
            return {way: np.array([int(n) for n in (element - space.start).flat], np.int64).reshape(space.shape)}
        case MultiBinary():
            return {way: np.array(element, np.int8)}
        case Box() if np.issubdtype(space.dtype, np.floating):
            return {way: np.array(element, np.float32)}
        case Box():
            return {way: np.array(element)}
    raise TypeError(space)


def unpacked(stored: Space, elements: NDArray) -> Leaves:
    """The leaves [N, *shape] of stored elements, byte by byte where they are packed."""
    if stored.kind != "packed":
        return {"": elements}
    leaves, first = {}, 0
    for name, leaf in stored.leaves:
        rows = [bytes(row[first : first + leaf.nbytes]) for row in elements]
        leaves[name] = np.stack([np.frombuffer(row, leaf.dtype).reshape(leaf.shape) for row in rows])
        first += -(-leaf.nbytes // 8) * 8
    assert first == stored.nbytes
    return leaves


def assert_stored(stored: Space, elements: NDArray, expected: list[Leaves]) -> None:
    got = unpacked(stored, elements)
    assert list(got) == list(expected[0])
    for name, leaf in got.items():
        assert leaf.dtype == expected[0][name].dtype
        np.testing.assert_array_equal(leaf, np.stack([own[name] for own in expected]), err_msg=name)


def stored_action(space: gym.Space, actions: list[Any]) -> NDArray:
    """Actions in their stored form, leaf by leaf."""
    stored = action_space(space)
    elements: NDArray = np.zeros((len(actions), *stored.shape), stored.dtype)
    views = leaf_views(stored, elements) if stored.kind == "packed" else {"": elements}
    for row, action in enumerate(actions):
        for name, leaf in slow_store(space, action).items():
            views[name][row] = leaf
    return elements


def same(one: Any, other: Any) -> bool:
    """Equal elements, of one structure."""
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, tuple):
        return isinstance(other, tuple) and len(one) == len(other) and all(map(same, one, other))
    return np.array_equal(one, other)


# Observations


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("kind", OBSERVATIONS)
def test_observations_are_stored_leaf_by_leaf(kind: str, with_mask: bool) -> None:
    space, rng = OBSERVATIONS[kind], np.random.default_rng(0)
    stored = observation_space(space)
    if with_mask:
        stored = with_action_mask(stored, 5)
    elements = [draw(space, rng) for _ in range(6)]
    masks = rng.integers(2, size=(6, 5), dtype=np.int8)
    expected = []
    for element, mask in zip(elements, masks, strict=True):
        leaves = slow_store(space, element)
        if with_mask:
            leaves = {name or "observation": leaf for name, leaf in leaves.items()} | {ACTION_MASK: mask}
        expected.append(leaves)

    one_by_one = np.full((6, *stored.shape), 1, stored.dtype)
    writer = ObservationWriter(space, stored, one_by_one)
    for row in (3, 0, 5, 1, 4, 2):
        writer.write(row, elements[row], {ACTION_MASK: masks[row], "other": 7})
    assert_stored(stored, one_by_one, expected)

    empty: Any = create_empty_array(space, 6)
    together = concatenate(space, elements, empty)
    for mask in (masks, np.array([*masks, None], object)[:-1]):
        memory = np.full((6, *stored.shape), 1, stored.dtype)
        ObservationWriter(space, stored, memory).write_batch(together, {ACTION_MASK: mask})
        assert_stored(stored, memory, expected)


@pytest.mark.parametrize("kind", OBSERVATIONS)
def test_leaves_are_named_by_the_way_to_them(kind: str) -> None:
    space = OBSERVATIONS[kind]
    stored = observation_space(space)
    names = list(slow_store(space, draw(space, np.random.default_rng(1))))
    assert [name for name, _ in leaves_of(space)] == names
    assert [name for name, _ in stored.leaves] == ([] if names == [""] else names)
    if kind == "nested":
        assert names == ["body/camera", "body/joints", "cards/0", "cards/1/turn"]


def test_elements_that_begin_elsewhere_count_from_zero() -> None:
    grid = MultiDiscrete(np.array([[2, 3], [2, 9]]), start=np.array([[5, -1], [0, 100]]))
    space = Tuple([Discrete(4, start=-7), grid])
    stored = observation_space(space)
    memory = np.zeros((1, *stored.shape), stored.dtype)
    ObservationWriter(space, stored, memory).write(0, (-4, np.array([[6, 1], [1, 108]])), {})
    got = unpacked(stored, memory)
    assert got["0"].tolist() == [3] and got["1"].tolist() == [[[1, 2], [1, 8]]]
    assert [leaf.num_choices or leaf.nvec for _, leaf in stored.leaves] == [4, (2, 3, 2, 9)]


def test_numbers_keep_their_dtype_but_for_large_floats() -> None:
    for dtype, expected in ((np.uint8, "uint8"), (np.int32, "int32"), (np.float64, "float32"), (np.float16, "float32")):
        assert observation_space(Box(0, 1, (2,), dtype)).dtype == expected
    huge = Box(-np.inf, np.inf, (1,), np.float64)
    memory = np.zeros((1, 1), np.float32)
    ObservationWriter(huge, observation_space(huge), memory).write(0, np.array([1 / 3]), {})
    assert memory[0, 0] == np.float32(1 / 3)


# Actions


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(list(ACTIONS)), st.integers(1, 5), st.integers(0, 2**31))
def test_actions_come_back_as_they_were_stored(kind: str, count: int, seed: int) -> None:
    space, rng = ACTIONS[kind], np.random.default_rng(seed)
    actions = [draw(space, rng) for _ in range(count)]
    stored = stored_action(space, actions)
    assert_stored(action_space(space), stored, [slow_store(space, action) for action in actions])
    reader = ActionReader(space, action_space(space))
    rows = list(reader.rows(stored))
    assert len(rows) == count and all(space.contains(row) for row in rows)
    assert all(map(same, rows, actions))
    batched = reader.batch(stored)
    assert all(map(same, iterate(batch_space(space, count), batched), actions))
    # Columns of an unroll are no contiguous memory.
    wide = np.stack([stored, stored[::-1]], 1)
    assert all(map(same, list(reader.rows(wide[:, 0])), actions))


@pytest.mark.parametrize("kind", ["box", "tuple", "dict"])
def test_numbers_beyond_the_bounds_are_clipped_and_what_was_given_is_kept(kind: str) -> None:
    space, rng = ACTIONS[kind], np.random.default_rng(0)
    actions = [draw(space, rng) for _ in range(4)]
    stored = stored_action(space, actions)
    leaf = {"box": "", "tuple": "1", "dict": "arm"}[kind]
    view = leaf_views(action_space(space), stored)[leaf] if kind != "box" else stored
    view[1], view[2] = 99.0, -99.0
    kept = stored.copy()
    rows = list(ActionReader(space, action_space(space)).rows(stored))
    part: Any = space if kind == "box" else space[1] if kind == "tuple" else space["arm"]  # type: ignore[index]
    inner = [row if kind == "box" else row[1] if kind == "tuple" else row["arm"] for row in rows]
    assert np.array_equal(inner[1], part.high) and np.array_equal(inner[2], part.low)
    assert same(rows[0], actions[0]) and all(space.contains(row) for row in rows) and np.array_equal(stored, kept)


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_no_actions_are_read_as_none(kind: str) -> None:
    """An environment that stands at the beginning of its episode has none to replay."""
    reader = ActionReader(ACTIONS[kind], action_space(ACTIONS[kind]))
    assert list(reader.rows(stored_action(ACTIONS[kind], []))) == []


# What is refused


@pytest.mark.parametrize(
    ("space", "problem"),
    [
        (Text(3), "observations must be Box, Discrete"),
        (Dict(a=Discrete(2), b=Text(3)), "observations must be Box, Discrete"),
        (gym.spaces.Sequence(Discrete(2)), "observations must be Box, Discrete"),
        (Box(0, 1, (2, 0)), "observations must be Box, Discrete"),
        (Dict(), "observations must hold something"),
        (Tuple([Dict(), Tuple([])]), "observations must hold something"),
    ],
)
def test_spaces_that_can_not_be_stored_are_refused(space: gym.Space, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        observation_space(space)


@pytest.mark.parametrize("space", [Box(0, 5, (2,), np.int64), Tuple([Discrete(2), Box(0, 255, (1,), np.uint8)])])
def test_boxes_of_whole_numbers_are_no_actions(space: gym.Space) -> None:
    with pytest.raises(ConfigError, match="a Box of actions must be of floats"):
        action_space(space)


# Vector environments in every autoreset mode, against single ones that are stepped and reset by hand


def allowed(env: Any, rng: np.random.Generator) -> Any:
    """A random action that a masked world allows."""
    while True:
        action = draw(env.action_space, rng)
        if not hasattr(env, "_mask") or env._mask[env._numbers(action)].all():
            return action


WORLDS = [
    *(partial(AnyWorld, observation=observation, action="dict") for observation in OBSERVATIONS),
    *(partial(AnyWorld, observation="vector", action=action) for action in ACTIONS),
    *(partial(Masked, action=action, place=place) for action in MASKABLE for place in ("info", "observation")),
    *(partial(Scripted, observation=observation) for observation in ("vector", "dict")),
]


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("world", WORLDS, ids=lambda world: "-".join([world.func.__name__, *world.keywords.values()]))
def test_a_vector_environment_in_stored_form_is_single_ones_stepped_by_hand(world: Any, mode: AutoresetMode) -> None:
    num_envs, rng = 3, np.random.default_rng(0)
    singles = [world() for _ in range(num_envs)]
    mask_size = len(singles[0].reset(seed=0)[1].get(ACTION_MASK, ()))
    envs = StoredForm(SyncVectorEnv([world] * num_envs, autoreset_mode=mode), mask_size)
    stored = envs.stored_observation
    assert (ACTION_MASK in dict(stored.leaves)) == (mask_size > 0 or world.keywords.get("place") == "observation")

    def leaves(observation: Any, info: dict[str, Any]) -> Leaves:
        own = slow_store(singles[0].observation_space, observation)
        if not mask_size:
            return own
        return {name or "observation": leaf for name, leaf in own.items()} | {ACTION_MASK: info[ACTION_MASK]}

    now = [leaves(*env.reset(seed=7 + place)) for place, env in enumerate(singles)]
    assert_stored(stored, envs.reset(seed=7)[0], now)
    ended, finals_seen = [False] * num_envs, 0
    for _ in range(40):
        actions = [allowed(env, rng) for env in singles]
        finals: dict[int, Leaves] = {}
        if mode == AutoresetMode.DISABLED and any(ended):
            mask = np.array(ended)
            now = [leaves(*env.reset()) if end else own for env, end, own in zip(singles, ended, now, strict=True)]
            actions = [allowed(env, rng) for env in singles]
            assert_stored(stored, envs.reset(options={"reset_mask": mask})[0], now)
            ended = [False] * num_envs
        rewards = np.zeros(num_envs)
        flags = np.zeros((2, num_envs), np.bool_)
        for place, env in enumerate(singles):
            if mode == AutoresetMode.NEXT_STEP and ended[place]:
                now[place], ended[place] = leaves(*env.reset()), False
                continue
            observation, rewards[place], *flags[:, place], info = env.step(actions[place])
            now[place], ended[place] = leaves(observation, info), bool(flags[:, place].any())
            if mode == AutoresetMode.SAME_STEP and ended[place]:
                finals[place] = now[place]
                now[place], ended[place] = leaves(*env.reset()), False
        got, reward, terminated, truncated, info = envs.step(stored_action(envs.single_action_space, actions))
        assert_stored(stored, got, now)
        assert np.array_equal(reward, rewards) and np.array_equal([terminated, truncated], flags)
        assert ("final_obs" in info) == bool(finals)
        for place, own in enumerate(info.get("final_obs", [])):
            assert (own is None) == (place not in finals)
            if own is not None:
                finals_seen += 1
                assert_stored(stored, own[None], [finals[place]])
    assert (finals_seen > 5) == (mode == AutoresetMode.SAME_STEP)
    envs.close()


def test_names_with_slashes_are_told_apart() -> None:
    space = Dict({"walker/joints": Box(-1, 1, (2,)), "7": Discrete(3), "": Discrete(2)})
    stored = observation_space(space)
    assert [name for name, _ in stored.leaves] == [key for key, _ in leaves_of(space)]
    memory = np.zeros((1, *stored.shape), stored.dtype)
    element = {"walker/joints": np.array([0.5, -0.25], np.float32), "7": 2, "": 1}
    ObservationWriter(space, stored, memory).write(0, element, {})
    views = leaf_views(stored, memory)
    assert (
        views["walker/joints"].tolist() == [[0.5, -0.25]] and views["7"].tolist() == [2] and views[""].tolist() == [1]
    )


def test_two_parts_of_one_name_are_refused() -> None:
    space = Dict({"a/b": Discrete(2), "a": Dict(b=Discrete(3))})
    with pytest.raises(ConfigError, match="two parts of the same name among"):
        observation_space(space)


def test_parts_of_a_tuple_may_come_as_a_list() -> None:
    space = Tuple((Discrete(3), Discrete(4)))
    stored = observation_space(space)
    memory = np.zeros((1, *stored.shape), stored.dtype)
    ObservationWriter(space, stored, memory).write(0, [2, 3], {})
    assert [view.tolist() for view in leaf_views(stored, memory).values()] == [[2], [3]]


@pytest.mark.parametrize("space", [Box(-0.1, 0.1, (2,), np.float64), MultiDiscrete([3, 4], dtype=np.int8)])
def test_actions_are_of_the_dtype_of_the_space_and_inside_of_it(space: Any) -> None:
    stored = action_space(space)
    (action,) = ActionReader(space, stored).rows(np.full((1, 2), 2, stored.dtype))
    assert action.dtype == space.dtype and space.contains(action)
