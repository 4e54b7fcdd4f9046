"""What networks see of stored observations: one number at a time, against elements as Gymnasium knows them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hpcrl.envs.codec import ObservationWriter, observation_space, with_action_mask
from hpcrl.models.inputs import Inputs, Seen
from hpcrl.spaces import Space
from tests.worlds import OBSERVATIONS, draw

#: Also what no world shows.
SPACES: dict[str, gym.Space] = {
    **OBSERVATIONS,
    "bytes": Box(0, 255, (3, 2), np.uint8),
    "whole numbers": Box(-5, 5, (3,), np.int32),
    "grid": MultiDiscrete(np.array([[2, 3], [4, 2]])),
    "two images": Dict(
        left=Box(0, 255, (16, 18), np.uint8), right=Box(0, 255, (3, 16, 16), np.uint8), on=MultiBinary(1)
    ),
    "images alone": Tuple([Box(0, 255, (16, 16), np.uint8), Box(0, 255, (16, 16, 3), np.uint8)]),
}
#: Spaces of which nothing is an image.
WITHOUT_IMAGES = [name for name in SPACES if name not in ("image", "dict", "nested", "two images", "images alone")]


def slow_seen(space: gym.Space, element: Any) -> tuple[list[float], list[bool], list[np.ndarray]]:
    """The numbers of one element's row, whether each comes from a Box, and its images."""
    match space:
        case Dict() | Tuple():
            parts = space.spaces.items() if isinstance(space, Dict) else enumerate(space.spaces)
            row: list[float] = []
            boxes: list[bool] = []
            images: list[np.ndarray] = []
            for key, part in parts:
                of_part = slow_seen(part, element[key])
                row, boxes, images = row + of_part[0], boxes + of_part[1], images + of_part[2]
            return row, boxes, images
        case Discrete():
            return (
                [float(choice == element) for choice in range(space.start, space.start + space.n)],
                [False] * int(space.n),
                [],
            )
        case MultiDiscrete():
            numbers = zip(element.reshape(-1), space.start.reshape(-1), space.nvec.reshape(-1), strict=True)
            row = [float(choice == number - start) for number, start, n in numbers for choice in range(n)]
            return row, [False] * len(row), []
        case MultiBinary():
            return element.reshape(-1).tolist(), [False] * element.size, []
        case Box() if space.dtype == np.uint8 and len(space.shape) in (2, 3) and max(space.shape) >= 16:
            return [], [], [element]
        case Box():
            return np.float32(element).reshape(-1).tolist(), [True] * element.size, []
    raise TypeError(space)


def stored_elements(space: gym.Space, elements: list[Any], masks: np.ndarray | None = None) -> tuple[Space, Tensor]:
    """Elements in their stored form, with masks [N, choices] beside them where there are any."""
    stored = observation_space(space)
    if masks is not None:
        stored = with_action_mask(stored, masks.shape[1])
    memory = np.zeros((len(elements), *stored.shape), stored.dtype)
    writer = ObservationWriter(space, stored, memory)
    for row, element in enumerate(elements):
        writer.write(row, element, {} if masks is None else {"action_mask": masks[row]})
    return stored, torch.from_numpy(memory)


def assert_seen(seen: Seen, rows: list[list[float]], images: list[list[np.ndarray]]) -> None:
    assert seen.rows.dtype == torch.float32
    np.testing.assert_array_equal(seen.rows.numpy(), np.array(rows, np.float32).reshape(len(rows), -1))
    assert len(seen.images) == len(images[0])
    for number, image in enumerate(seen.images):
        assert image.dtype == torch.uint8
        np.testing.assert_array_equal(image.numpy(), np.stack([own[number] for own in images]))


@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31), with_mask=st.booleans())
def test_every_kind_is_taken_apart_as_a_loop_would(name: str, seed: int, with_mask: bool) -> None:
    space, rng = SPACES[name], np.random.default_rng(seed)
    elements = [draw(space, rng) for _ in range(5)]
    masks = rng.integers(2, size=(5, 7), dtype=np.int8) if with_mask else None
    stored, observation = stored_elements(space, elements, masks)
    rows, boxes, images = zip(*(slow_seen(space, element) for element in elements), strict=True)
    inputs = Inputs(stored, normalise=False)
    assert inputs.num_inputs == len(rows[0]) == len(inputs.boxes)
    assert inputs.boxes.dtype == torch.bool and inputs.boxes.tolist() == boxes[0]
    assert [image.shape for image in inputs.images] == [image.shape for image in images[0]]
    seen = inputs(observation)
    assert_seen(seen, list(rows), list(images))
    assert_seen(Seen(inputs.raw_rows(observation), seen.images, None), list(rows), list(images))
    if masks is None:
        assert seen.mask is None
    else:
        assert seen.mask is not None and seen.mask.dtype == torch.int8
        np.testing.assert_array_equal(seen.mask.numpy(), masks)


@pytest.mark.parametrize("name", SPACES)
def test_no_observations_are_no_rows(name: str) -> None:
    stored, observation = stored_elements(SPACES[name], [draw(SPACES[name], np.random.default_rng(0))])
    for normalise in (False, True):
        inputs = Inputs(stored, normalise)
        assert inputs(observation[:0]).rows.shape == inputs.raw_rows(observation[:0]).shape == (0, inputs.num_inputs)
        assert inputs(observation).rows.shape == (1, inputs.num_inputs)


def test_a_single_number_is_a_row_of_one() -> None:
    stored, observation = stored_elements(Box(-1, 1, (), np.float32), [np.float32(0.5), np.float32(-1)])
    inputs = Inputs(stored, True)
    assert observation.shape == (2,) and inputs.num_inputs == 1 and inputs.boxes.tolist() == [True]
    assert inputs(observation).rows.tolist() == inputs.raw_rows(observation).tolist() == [[0.5], [-1]]


def test_a_mask_that_the_environment_shows_itself_is_no_input() -> None:
    space = Dict(action_mask=Box(0, 1, (3,), np.int8), place=Box(-1, 1, (2,), np.float32))
    elements = [{"action_mask": np.array([1, 0, 1], np.int8), "place": np.array([0.5, -1], np.float32)}]
    stored, observation = stored_elements(space, elements)
    seen = Inputs(stored, False)(observation)
    assert seen.rows.tolist() == [[0.5, -1]] and seen.mask is not None and seen.mask.tolist() == [[1, 0, 1]]


@pytest.mark.parametrize("name", ["vector", "whole numbers", "dict", "tuple", "nested", "discrete"])
def test_numbers_of_boxes_are_shifted_scaled_and_clipped(name: str) -> None:
    space, rng = SPACES[name], np.random.default_rng(1)
    stored, observation = stored_elements(space, [draw(space, rng) for _ in range(40)])
    plain, inputs = Inputs(stored, False)(observation), Inputs(stored, True)
    assert inputs.mean is not None and inputs.scale is not None
    assert torch.equal(inputs(observation).rows, plain.rows.clamp(-10, 10))
    assert not inputs.mean.requires_grad and not inputs.scale.requires_grad
    assert [path for path, _ in inputs.named_parameters()] == ["mean", "scale"]
    with torch.no_grad():
        inputs.mean.copy_(torch.where(inputs.boxes, 0.3, 0.0))
        inputs.scale.copy_(torch.where(inputs.boxes, 25.0, 1.0))
    seen = inputs(observation)
    boxes = inputs.boxes.numpy()
    raw = plain.rows.numpy()
    expected = np.where(boxes, ((raw - np.float32(0.3)) * 25).clip(-10, 10), raw)
    np.testing.assert_allclose(seen.rows.numpy(), expected, rtol=1e-6, atol=1e-6)
    assert not boxes.any() or (abs(seen.rows.numpy()) == 10).any()
    assert torch.equal(inputs.raw_rows(observation), plain.rows), "raw rows are never normalised"
    assert len(seen.images) == len(plain.images)
    assert all(map(torch.equal, seen.images, plain.images))


def test_raw_rows_of_single_frames_are_a_part_of_stacked_rows() -> None:
    inputs = Inputs(Space("box", (12,), "float32"), True)
    frames = torch.arange(3 * 4.0).reshape(3, 2, 2)
    assert inputs.raw_rows(frames).tolist() == frames.reshape(3, 4).tolist()


@pytest.mark.parametrize("name", WITHOUT_IMAGES)
def test_rows_do_not_change_with_the_memory_that_they_come_from(name: str) -> None:
    """Batches cut columns out of unrolls, so elements lie apart."""
    space, rng = SPACES[name], np.random.default_rng(2)
    stored, observation = stored_elements(space, [draw(space, rng) for _ in range(6)])
    wide = torch.stack([observation, observation.flip(0)], 1)
    inputs = Inputs(stored, False)
    assert torch.equal(inputs(wide[:, 0]).rows, inputs(observation).rows)
    assert torch.equal(inputs(wide[::2, 1]).rows, inputs(observation.flip(0)[::2]).rows)
