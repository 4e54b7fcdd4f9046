"""Frame stacking: single frames are stored, and put side by side where a network sees them.

Mnih et al. 2015 ("Human-level control through deep reinforcement learning") stack four frames.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from hpcrl.errors import ConfigError
from hpcrl.models.images import image_layout, is_image
from hpcrl.models.sequence import Sequence
from hpcrl.spaces import Space


def stacked_space(space: Space, num_frames: int) -> Space:
    """The space of `num_frames` elements side by side.

    Images [H, W], [C, H, W] and [H, W, C] become [frames * C, H, W], all else becomes one long vector; the newest frame
    is last.

    Raises:
        ConfigError: a space that can't be stacked.
    """
    if num_frames == 1:
        return space
    if space.kind != "box" or not space.shape:
        raise ConfigError(f"--frame-stack needs observations in one Box with axes, got a {space.kind} space")
    if not is_image(space):
        return dataclasses.replace(space, shape=(num_frames * space.size,))
    layout = image_layout(space.shape)
    return dataclasses.replace(space, shape=(num_frames * layout.channels, layout.height, layout.width))


def stack_frames(space: Space, frames: Tensor) -> Tensor:
    """Frames [N, frames, *space.shape], oldest first -> elements of the stacked space [N, ...]."""
    if not is_image(space):
        return frames.flatten(1)
    if len(space.shape) == 2:
        return frames
    if image_layout(space.shape).channels_last:
        frames = frames.movedim(-1, -3)
    return frames.flatten(1, 2)


def stack_sequence(space: Space, sequence: Sequence) -> Tensor:
    """All rows of a sequence, and then its final observations, each with the frames before it in its episode.

    Before an episode's first frame there is that frame.

    Returns:
        elements of the stacked space [T * B + F, ...].
    """
    time, num_envs = sequence.starts.shape
    frames = torch.cat([sequence.history, sequence.observation])
    device = frames.device
    columns = torch.arange(num_envs, device=device)
    places = _places(sequence, torch.arange(time, device=device)[:, None], columns)
    rows = taken(frames.flatten(0, 1), places * num_envs + columns[:, None]).flatten(0, 1)
    if not len(sequence.final_index):
        return stack_frames(space, rows)
    t, b = sequence.final_index.unbind(1)
    finals = torch.cat([frames[places[t, b, 1:], b[:, None]], sequence.final_observation[:, None]], 1)
    return stack_frames(space, torch.cat([rows, finals]))


def taken(elements: Tensor, index: Tensor) -> Tensor:
    """Elements [N, *shape] at int64 [...] -> [..., *shape], in words of eight bytes where that is possible."""
    rows = elements.reshape(len(elements), math.prod(elements.shape[1:]))
    # A compiler can't ask where a tensor begins in memory, and needs no words.
    wide = not torch.compiler.is_compiling() and rows.dtype.itemsize < 8
    wide = wide and rows.shape[1] * rows.dtype.itemsize % 8 == 0 and rows.storage_offset() % 8 == 0
    words = rows.view(torch.int64) if wide else rows
    return words.index_select(0, index.flatten()).view(rows.dtype).view(*index.shape, *elements.shape[1:])


def history_of_rows(sequence: Sequence, t: Tensor, b: Tensor) -> Tensor:
    """The frames before the rows (t, b) in their episodes, oldest first: what `history` is for row 0.

    Args:
        sequence: with a history.
        t, b: int64 [M].

    Returns:
        [frame_stack - 1, M, *shape].
    """
    before = len(sequence.history)
    places = _places(sequence, t, b)[:, :-1].T
    num_envs = sequence.starts.shape[1]
    frames = taken(sequence.observation.flatten(0, 1), (places - before).clamp_(min=0) * num_envs + b)
    older, row = torch.nonzero(places < before, as_tuple=True)
    frames[older, row] = sequence.history[places[older, row], b[row]]
    return frames


def _places(sequence: Sequence, t: Tensor, b: Tensor) -> Tensor:
    """Where the frames of rows (t, b), int64 [...], lie in history and observations joined: [..., frame_stack]."""
    before = len(sequence.history)
    # Row t is frame t + before; the first frame of its episode, or of what is known of it, comes as `begins`.
    row = torch.arange(len(sequence.starts), device=sequence.starts.device)[:, None]
    begins = torch.where(sequence.starts, row + before, 0).cummax(0).values
    ages = torch.arange(before, -1, -1, device=row.device)
    return torch.maximum((t + before)[..., None] - ages, begins[t, b][..., None])
