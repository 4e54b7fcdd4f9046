"""The unroll: views over one buffer, its header, its cut, and the bound on final observations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcrl.errors import ShapeError
from hpcrl.spaces import Space, Task
from hpcrl.unroll import Memory, Unroll, UnrollSpec, aligned_zeros, num_finals

CARTPOLE = Task(Space("box", (4,), "float32"), Space("discrete", (), "int64", 2), 500, True)
IMAGES = Task(Space("box", (2, 3), "uint8"), Space("box", (2,), "float32", low=(-1, -1), high=(1, 1)), None, True)
NUMBERS = Task(Space("discrete", (), "int64", 9), Space("discrete", (), "int64", 2), None, True)

#: Shape and dtype of every field of an unroll that has them all; T = 5, B = 3, K = 2, observations O and actions A.
TABLE: dict[str, tuple[tuple[Any, ...], str | None]] = {
    "header": ((8,), "int64"),
    "observation": ((6, 3, "O"), None),
    "action": ((5, 3, "A"), None),
    "reward": ((5, 3), "float32"),
    "terminated": ((5, 3), "bool"),
    "truncated": ((5, 3), "bool"),
    "ended": ((5, 3), "bool"),
    "valid": ((5, 3), "bool"),
    "behaviour_log_prob": ((5, 3), "float32"),
    "final_observation": ((2, "O"), None),
    "final_index": ((2, 2), "int64"),
    "episode_number": ((5, 3), "int64"),
    "episode_return": ((5, 3), "float64"),
    "episode_length": ((5, 3), "int64"),
    "row_version": ((5, 3), "int64"),
    "core_state": ((3, 7), "float32"),
    "history": ((2, 3, "O"), None),
    "discounted_return": ((5, 3), "float64"),
}
HEADER = (
    "actor",
    "sequence",
    "policy_version",
    "first_env_step",
    "length",
    "num_finals",
    "stop_requested",
    "save_requested",
)


def make_spec(task: Task = CARTPOLE, num_envs: int = 3) -> UnrollSpec:
    return UnrollSpec(task, 5, num_envs, 10, 2, True, Memory(7, 2, True))


@pytest.mark.parametrize("task", [CARTPOLE, IMAGES, NUMBERS])
def test_shapes_and_types_of_the_table(task: Task) -> None:
    unroll = Unroll(make_spec(task))
    assert [field.name for field in unroll.spec.fields] == list(TABLE)
    for name, (shape, dtype) in TABLE.items():
        item = {"O": task.observation, "A": task.action}
        expected = [n for part in shape for n in (item[part].shape if part in ("O", "A") else (part,))]
        array = getattr(unroll, name)
        assert list(array.shape) == expected
        assert array.dtype == (dtype or (task.action if name == "action" else task.observation).dtype)


@pytest.mark.parametrize("task", [CARTPOLE, IMAGES, NUMBERS])
def test_fields_are_views_that_share_the_buffer_and_nothing_else(task: Task) -> None:
    buffer = np.zeros(make_spec(task).nbytes, np.uint8)
    unroll = Unroll(make_spec(task), buffer)
    for number, name in enumerate(TABLE, 1):
        assert np.shares_memory(getattr(unroll, name), buffer)
        getattr(unroll, name).view(np.uint8)[:] = number
    again = Unroll(make_spec(task), buffer)
    for number, name in enumerate(TABLE, 1):
        assert (getattr(again, name).view(np.uint8) == number).all()
        offset = getattr(again, name).ctypes.data - buffer.ctypes.data
        assert offset % 64 == 0


@pytest.mark.parametrize("nbytes", [1, 63, 64, 100, 4097])
def test_memory_of_our_own_begins_at_a_cache_line(nbytes: int) -> None:
    keep = [aligned_zeros(nbytes) for _ in range(8)]
    for memory in keep:
        assert memory.ctypes.data % 64 == 0 and memory.shape == (nbytes,) and not memory.any()


def test_a_buffer_is_made_where_none_is_given() -> None:
    unrolls = [Unroll(make_spec()) for _ in range(5)]
    assert all(unroll.buffer.ctypes.data % 64 == 0 for unroll in unrolls)
    assert all(unroll.observation.ctypes.data % 64 == 0 for unroll in unrolls)
    assert not np.shares_memory(unrolls[0].buffer, unrolls[1].buffer)


def test_buffers_that_do_not_fit_are_refused() -> None:
    size = make_spec().nbytes
    wrong: list[Any] = [
        np.zeros(size - 1, np.uint8),
        np.zeros(size + 64, np.uint8),
        np.zeros(size, np.int8),
        np.zeros((size, 1), np.uint8),
        np.zeros(2 * size, np.uint8)[::2],
    ]
    for buffer in wrong:
        with pytest.raises(ShapeError, match=f"an unroll needs {size} contiguous bytes, got "):
            Unroll(make_spec(), buffer)


def test_what_only_some_runs_need_takes_no_room_in_others() -> None:
    plain = UnrollSpec(CARTPOLE, 5, 3, 10, 2)
    extra = {"row_version": (0, 3), "core_state": (3, 0), "history": (0, 3, 4), "discounted_return": (0, 3)}
    assert {field.name: field.shape for field in plain.fields if field.name in extra} == extra
    assert [field for field in make_spec().fields if field.name not in extra] == list(plain.fields)[: -len(extra)]
    # 120 bytes of versions, 84 of state, 96 of history and 120 of returns, each rounded up to cache lines.
    assert make_spec().nbytes - plain.nbytes == 128 + 128 + 128 + 128


def test_an_actor_without_environments_has_an_unroll() -> None:
    unroll = Unroll(UnrollSpec(CARTPOLE, 5, 0, 0, 0))
    assert unroll.observation.shape == (6, 0, 4) and int(unroll.valid.sum()) == 0


def test_header_words_are_read_by_name() -> None:
    unroll = Unroll(make_spec())
    unroll.set_header(**{name: number + 2**40 for number, name in enumerate(HEADER)})
    assert [getattr(unroll, name) for name in HEADER] == [number + 2**40 for number in range(len(HEADER))]
    unroll.set_header(length=7)
    assert (unroll.length, unroll.sequence) == (7, 1 + 2**40)
    with pytest.raises(AttributeError):
        _ = unroll.no_such_word
    with pytest.raises(KeyError):
        unroll.set_header(no_such_word=1)


@pytest.mark.parametrize("task", [CARTPOLE, IMAGES])
@pytest.mark.parametrize("length", [1, 3, 4])
def test_a_cut_leaves_the_rows_before_it_and_nothing_to_learn_after(task: Task, length: int) -> None:
    unroll = Unroll(make_spec(task))
    rng = np.random.default_rng(0)
    unroll.buffer[:] = rng.integers(1, 2, len(unroll.buffer), np.uint8)
    unroll.observation[:] = rng.integers(1, 9, unroll.observation.shape)
    before = {name: getattr(unroll, name).copy() for name in TABLE}
    unroll.truncate_to(length)
    assert unroll.length == length
    for name in ("action", "reward", "terminated", "truncated", "valid", "behaviour_log_prob"):
        assert np.array_equal(getattr(unroll, name)[:length], before[name][:length])
        assert not getattr(unroll, name)[length:].any()
    assert np.array_equal(unroll.observation[: length + 1], before["observation"][: length + 1])
    for row in unroll.observation[length + 1 :]:
        assert np.array_equal(row, unroll.observation[length])
    for name in ("final_observation", "final_index"):
        assert np.array_equal(getattr(unroll, name), before[name])


@settings(max_examples=80, deadline=None)
@given(
    limit=st.integers(1, 9),
    time=st.integers(1, 24),
    ages=st.lists(st.integers(0, 8), min_size=1, max_size=4),
    seed=st.integers(0, 2**32 - 1),
    rate=st.sampled_from([0.0, 0.1, 0.5]),
)
def test_a_time_limit_alone_never_fills_the_table(
    limit: int, time: int, ages: list[int], seed: int, rate: float
) -> None:
    task = Task(CARTPOLE.observation, CARTPOLE.action, limit, True)
    rng, age, used = np.random.default_rng(seed), np.array(ages) % limit, 0
    rows = num_finals(task, time, len(ages))
    for _ in range(time):
        # The actor cuts here, where the next step might need a row for every environment.
        assert used + len(ages) <= rows
        age += 1
        truncated, terminated = age >= limit, rng.random(len(ages)) < rate
        used += int((truncated & ~terminated).sum())
        age[truncated | terminated] = 0
    assert used <= rows <= len(ages) * time


def test_an_unknown_limit_has_a_row_an_environment_and_one_to_spare() -> None:
    assert num_finals(IMAGES, 32, 5) == 10
    assert num_finals(IMAGES, 1, 5) == 5
    assert num_finals(IMAGES, 32, 0) == 0
