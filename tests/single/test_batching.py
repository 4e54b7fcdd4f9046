"""Batches: columns of several unrolls side by side, with their final observations."""

from __future__ import annotations

import tests.no_mpi  # noqa: F401

# isort: split
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcrl.algorithms.registry import LOSSES
from hpcrl.config import CONFIGS
from hpcrl.roles.batching import Batcher
from hpcrl.roles.inbox import Piece
from hpcrl.spaces import Space, Task
from hpcrl.unroll import Unroll, UnrollSpec
from tests.playing import Playing

TIME = 4
TASKS = [
    Task(Space("box", (2, 3), "uint8"), Space("box", (2,), "float32", low=(-1, -1), high=(1, 1)), None, True),
    Task(Space("discrete", (), "int64", 9), Space("discrete", (), "int64", 2), None, True),
]
FIELDS = ("observation", "action", "reward", "behaviour_log_prob", "terminated", "truncated", "valid")


def make_unroll(task: Task, num_envs: int, seed: int) -> Unroll:
    """Random content, and final observations of some of its cells."""
    rng = np.random.default_rng(seed)
    unroll = Unroll(UnrollSpec(task, TIME, num_envs, 0, 2 * num_envs))
    for name in FIELDS:
        array = getattr(unroll, name)
        array[...] = rng.integers(0, 2 if array.dtype == bool else 9, array.shape)
    count = int(rng.integers(0, 2 * num_envs + 1))
    cells = rng.choice(TIME * num_envs, min(count, TIME * num_envs), replace=False)
    unroll.set_header(length=TIME, num_finals=len(cells))
    unroll.final_index[: len(cells)] = np.stack(np.divmod(cells, num_envs), 1)
    # Rows of the table that are not in use hold what was there before.
    unroll.final_index[len(cells) :] = 1
    unroll.final_observation[...] = rng.integers(0, 9, unroll.final_observation.shape)
    return unroll


@st.composite
def piece_lists(draw: st.DrawFn) -> list[list[tuple[int, int, int, int]]]:
    """Some batches: lists of (columns of the unroll, seed, first, end)."""

    def piece() -> tuple[int, int, int, int]:
        num_envs = draw(st.integers(1, 5))
        first = draw(st.integers(0, num_envs))
        return num_envs, draw(st.integers(0, 1000)), first, draw(st.integers(first, num_envs))

    return [[piece() for _ in range(draw(st.integers(0, 3)))] for _ in range(draw(st.integers(1, 3)))]


@pytest.mark.parametrize("task", TASKS)
@settings(max_examples=60, deadline=None)
@given(batches=piece_lists())
def test_columns_lie_side_by_side_with_their_final_observations(
    task: Task, batches: list[list[tuple[int, int, int, int]]]
) -> None:
    batcher = Batcher(task, TIME)
    for batch in batches:
        pieces = [Piece(make_unroll(task, size, seed), first, end) for size, seed, first, end in batch]
        batcher.stack(pieces)
        width = sum(piece.end - piece.first for piece in pieces)
        for name in FIELDS:
            got = getattr(batcher.batch, name).numpy()
            wanted = [getattr(unroll, name)[:, first:end] for unroll, first, end in pieces]
            assert got.shape[:2] == (TIME + (name == "observation"), width)
            assert not pieces or (np.array_equal(got, np.concatenate(wanted, 1)) and got.dtype == wanted[0].dtype)
        finals = {}
        column = 0
        for unroll, first, end in pieces:
            for row in range(unroll.num_finals):
                t, b = unroll.final_index[row].tolist()
                if first <= b < end:
                    finals[t, column + b - first] = unroll.final_observation[row]
            column += end - first
        index = [tuple(row) for row in batcher.batch.final_index.tolist()]
        assert sorted(index) == sorted(finals)
        assert batcher.batch.final_index.shape == (len(finals), 2)
        for place, cell in enumerate(index):
            assert np.array_equal(batcher.batch.final_observation[place].numpy(), finals[cell])


def test_the_memory_grows_to_the_largest_batch_and_is_used_again() -> None:
    task = TASKS[0]
    batcher = Batcher(task, TIME)
    unroll = make_unroll(task, 5, 1)
    places = []
    for width in (2, 5, 1, 0, 4, 5):
        batcher.stack([Piece(unroll, 0, width)])
        places.append([getattr(batcher.batch, name).data_ptr() for name in FIELDS if width])
    # Equal sizes lie at equal places: sums over a batch must not round differently from one to the next.
    assert places[1] == places[5]
    before = batcher.batch
    batcher.stack([Piece(make_unroll(task, 5, 2), 0, 5)])
    assert before.reward.data_ptr() == batcher.batch.reward.data_ptr()
    first = places[1][0]
    assert all(place[0] == first for place in places[1:] if place)


def test_there_is_a_batch_before_the_first() -> None:
    batch = Batcher(TASKS[1], TIME).batch
    assert batch.observation.shape == (TIME + 1, 0) and batch.final_index.shape == (0, 2)
    assert int(batch.valid.sum()) == 0


@pytest.mark.parametrize("algorithm", LOSSES)
def test_a_learner_without_a_column_takes_part_with_nothing(algorithm: str) -> None:
    playing = Playing("Pendulum-v1", 1, 2)
    batch = Batcher(playing.spec.task, TIME).batch
    loss = LOSSES[algorithm](playing.policy, batch, CONFIGS[algorithm](), 0.01, None)
    loss.total.backward()
    assert not loss.statistics.any()
    assert all(not parameter.grad.any() for parameter in playing.policy.parameters() if parameter.grad is not None)
