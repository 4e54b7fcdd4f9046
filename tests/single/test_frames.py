"""Stacked frames against a loop over rows that knows each episode apart: all layouts, starts anywhere, finals."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hpcrl.errors import ConfigError
from hpcrl.models.frames import history_of_rows, stack_frames, stack_sequence, stacked_space
from hpcrl.models.images import image_layout, is_image
from hpcrl.models.sequence import Sequence
from hpcrl.spaces import Space, packed

GREY, FIRST, LAST = (16, 17), (3, 16, 17), (16, 17, 3)
LAYOUTS = {
    "vector": Space("box", (4,), "float32"),
    "matrix": Space("box", (2, 3), "float32"),
    "volume": Space("box", (3, 4, 2), "float32"),
    "bytes": Space("box", (5,), "uint8"),
    "grey": Space("box", GREY, "uint8"),
    "one channel": Space("box", (16, 17, 1), "uint8"),
    "channels first": Space("box", FIRST, "uint8"),
    "channels last": Space("box", LAST, "uint8"),
}
IMAGES = ("grey", "one channel", "channels first", "channels last")


class Story(NamedTuple):
    """How a sequence goes.

    Attributes:
        starts: where episodes begin, bool [B][T]; row 0 never.
        num_history: frames before row 0.
        finals: places t * B + b, where the next observation was reset away.
    """

    starts: list[list[bool]]
    num_history: int
    finals: list[int]


@st.composite
def stories(draw: st.DrawFn) -> Story:
    time, envs = draw(st.integers(1, 9)), draw(st.integers(1, 3))
    starts = [[False, *draw(st.lists(st.booleans(), min_size=time - 1, max_size=time - 1))] for _ in range(envs)]
    finals = draw(st.lists(st.integers(0, time * envs - 1), unique=True, max_size=4))
    return Story(starts, draw(st.integers(1, 4)), finals)


def sequence_of(space: Space, story: Story, seed: int) -> Sequence:
    """A sequence of random frames."""
    rng = np.random.default_rng(seed)
    starts = torch.tensor(story.starts).T.contiguous()
    time, envs = starts.shape

    def frames(*leading: int) -> Tensor:
        return torch.from_numpy(rng.integers(0, 255, (*leading, *space.shape)).astype(space.dtype))

    finals = torch.tensor([divmod(place, envs) for place in story.finals], dtype=torch.int64).reshape(-1, 2)
    return Sequence(
        frames(time, envs), starts, torch.zeros(envs, 0), frames(story.num_history, envs), frames(len(finals)), finals
    )


def side_by_side(frames: list[np.ndarray], layout: str) -> np.ndarray:
    """What a network sees of frames, oldest first, one number at a time where they are images."""
    if layout not in IMAGES:
        return np.concatenate([frame.reshape(-1) for frame in frames])
    channels = {"grey": 1, "one channel": 1}.get(layout, 3)
    stacked = np.zeros((len(frames) * channels, 16, 17), np.uint8)
    for number, frame in enumerate(frames):
        for channel in range(channels):
            plane = frame if layout == "grey" else frame[channel] if layout == "channels first" else frame[..., channel]
            stacked[number * channels + channel] = plane
    return stacked


def slow_histories(sequence: Sequence) -> list[list[list[np.ndarray]]]:
    """The frames that are stacked with row t of environment b, oldest first, by [t][b]: its own is the last."""
    num_history = len(sequence.history)
    rows: list[list[list[np.ndarray]]] = []
    known = [list(column) for column in sequence.history.numpy().swapaxes(0, 1)]
    for t, observations in enumerate(sequence.observation.numpy()):
        rows.append([])
        for b, observation in enumerate(observations):
            if sequence.starts[t, b]:
                known[b] = [observation] * num_history
            known[b] = [*known[b][-num_history:], observation]
            rows[t].append(known[b])
    return rows


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=25, deadline=None)
@given(story=stories(), seed=st.integers(0, 2**31))
def test_a_sequence_is_stacked_as_a_loop_would(layout: str, story: Story, seed: int) -> None:
    space = LAYOUTS[layout]
    sequence = sequence_of(space, story, seed)
    histories = slow_histories(sequence)
    expected = [side_by_side(frames, layout) for row in histories for frames in row]
    for (t, b), final in zip(sequence.final_index.tolist(), sequence.final_observation.numpy(), strict=True):
        expected.append(side_by_side([*histories[t][b][1:], final], layout))
    stacked = stack_sequence(space, sequence)
    stored = stacked_space(space, story.num_history + 1)
    assert stacked.dtype == sequence.observation.dtype and stacked.shape == (len(expected), *stored.shape)
    assert np.array_equal(stacked.numpy(), np.stack(expected))


@settings(max_examples=40, deadline=None)
@given(stories(), st.data(), st.integers(0, 2**31))
def test_the_history_of_any_row_is_that_of_a_sequence_that_begins_there(
    story: Story, data: st.DataObject, seed: int
) -> None:
    sequence = sequence_of(LAYOUTS["matrix"], story, seed)
    time, envs = sequence.starts.shape
    chosen = data.draw(st.lists(st.integers(0, time * envs - 1), max_size=6))
    t, b = (torch.tensor(part, dtype=torch.int64) for part in ([k // envs for k in chosen], [k % envs for k in chosen]))
    got = history_of_rows(sequence, t, b)
    assert got.shape == (story.num_history, len(chosen), 2, 3)
    histories = slow_histories(sequence)
    for place, (row, env) in enumerate(zip(t.tolist(), b.tolist(), strict=True)):
        assert np.array_equal(got[:, place].numpy(), np.stack(histories[row][env][:-1]))
        # What comes after a cut is stacked as before it.
        rest = sequence._replace(
            observation=sequence.observation[row:, env : env + 1],
            starts=sequence.starts[row:, env : env + 1] & (torch.arange(row, time) > row)[:, None],
            history=got[:, place : place + 1],
            final_observation=sequence.final_observation[:0],
            final_index=sequence.final_index[:0],
        )
        whole = stack_sequence(LAYOUTS["matrix"], sequence)[: time * envs].view(time, envs, -1)
        assert torch.equal(stack_sequence(LAYOUTS["matrix"], rest), whole[row:, env])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_stacked_images_are_images_and_nothing_else_becomes_one(layout: str) -> None:
    space = LAYOUTS[layout]
    assert stacked_space(space, 1) is space
    for frames in (2, 4, 9):
        stacked = stacked_space(space, frames)
        assert stacked.dtype == space.dtype and stacked.size == frames * space.size
        assert is_image(stacked) == is_image(space) == (layout in IMAGES)
        if layout in IMAGES:
            channels = {"grey": 1, "one channel": 1}.get(layout, 3)
            assert image_layout(stacked.shape) == (frames * channels, 16, 17, False)


def test_small_images_that_count_as_vectors_stay_vectors() -> None:
    for shape in ((10, 20), (10, 20, 3), (2, 10, 20)):
        space = Space("box", shape, "uint8")
        assert not is_image(space) and stacked_space(space, 4).shape == (4 * space.size,)
        frames = torch.arange(2 * 4 * space.size).to(torch.uint8).reshape(2, 4, *shape)
        assert torch.equal(stack_frames(space, frames), frames.reshape(2, -1))


@pytest.mark.parametrize(
    "space",
    [
        Space("box", (), "float32"),
        Space("discrete", (), "int64", 3),
        Space("multi_discrete", (2,), "int64", nvec=(2, 3)),
        Space("multi_binary", (2,), "int8"),
        packed((("a", LAYOUTS["grey"]),)),
    ],
)
def test_only_arrays_of_numbers_are_stacked(space: Space) -> None:
    assert stacked_space(space, 1) is space
    with pytest.raises(ConfigError, match=f"--frame-stack needs observations in one Box with axes, got a {space.kind}"):
        stacked_space(space, 2)
