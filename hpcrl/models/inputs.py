"""From stored observations to what encoders see: rows of numbers, images, and the mask of actions."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcrl.models.images import is_image
from hpcrl.models.packing import unpack
from hpcrl.spaces import ACTION_MASK, Space

#: Normalised observations are clipped here, in standard deviations.
_NORMALISED_CLIP = 10.0


class Seen(NamedTuple):
    """N observations, taken apart.

    Attributes:
        rows: float32 [N, num_inputs], all that is no image: numbers as they are, choices one-hot.
        images: [N, *shape] of each image.
        mask: int8 [N, choices], which actions are allowed; None where all are.
    """

    rows: Tensor
    images: tuple[Tensor, ...]
    mask: Tensor | None


class Inputs(nn.Module):
    """Takes observations apart.

    Args:
        space: of observations.
        normalise: whether rows are shifted and scaled.

    Attributes:
        num_inputs: numbers of a row.
        images: spaces of the images.
        boxes: for each number of a row, whether it is one of a Box.
        mean, scale: float32 [num_inputs] where rows are normalised; parameters without a gradient, so that they travel
            with the weights.
    """

    def __init__(self, space: Space, normalise: bool) -> None:
        super().__init__()
        self._space = space
        leaves = space.leaves or (("", space),)
        self._seen = [(name, leaf) for name, leaf in leaves if name != ACTION_MASK]
        self.images = [leaf for _, leaf in self._seen if is_image(leaf)]
        vectors = [leaf for _, leaf in self._seen if not is_image(leaf)]
        self.num_inputs = sum(map(row_size, vectors))
        boxes = [leaf.kind == "box" for leaf in vectors for _ in range(row_size(leaf))]
        self.boxes = torch.tensor(boxes, dtype=torch.bool)
        self._is_plain_box = space.kind == "box" and not self.images
        self.mean = self.scale = None
        if normalise:
            self.mean = nn.Parameter(torch.zeros(self.num_inputs), requires_grad=False)
            self.scale = nn.Parameter(torch.ones(self.num_inputs), requires_grad=False)

    def forward(self, observation: Tensor) -> Seen:
        """Observations [N, *shape], taken apart and normalised."""
        if self._is_plain_box:
            return Seen(self._normalised(self.raw_rows(observation)), (), None)
        leaves = self._leaves(observation)
        images = tuple(leaves[name] for name, leaf in self._seen if is_image(leaf))
        return Seen(self._normalised(self._rows_of(leaves, observation)), images, leaves.get(ACTION_MASK))

    def raw_rows(self, observation: Tensor) -> Tensor:
        """Observations [N, *shape] -> rows float32 [N, num_inputs], not normalised.

        Where frames of a vector are stacked also single ones, [N, *frame.shape] -> [N, num_inputs / frames].
        """
        if self._is_plain_box:
            return _flat(observation).to(torch.float32)
        return self._rows_of(self._leaves(observation), observation)

    def _leaves(self, observation: Tensor) -> dict[str, Tensor]:
        return unpack(self._space, observation) if self._space.leaves else {"": observation}

    def _rows_of(self, leaves: dict[str, Tensor], observation: Tensor) -> Tensor:
        parts = [_leaf_rows(leaf, leaves[name]) for name, leaf in self._seen if not is_image(leaf)]
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts, 1) if parts else torch.empty(len(observation), 0, device=observation.device)

    def _normalised(self, rows: Tensor) -> Tensor:
        if self.mean is None or self.scale is None:
            return rows
        return ((rows - self.mean) * self.scale).clamp_(-_NORMALISED_CLIP, _NORMALISED_CLIP)


def row_size(space: Space) -> int:
    """Numbers that a network sees of one element: of a choice as many as there are."""
    if space.kind == "discrete":
        return space.num_choices
    return sum(space.nvec) if space.kind == "multi_discrete" else space.size


def _leaf_rows(space: Space, elements: Tensor) -> Tensor:
    """Elements [N, *shape] -> float32 [N, row_size]."""
    if space.kind == "discrete":
        return functional.one_hot(elements.reshape(-1), space.num_choices).float()
    if space.kind == "multi_discrete":
        numbers = _flat(elements).unbind(1)
        return torch.cat([functional.one_hot(n, size) for n, size in zip(numbers, space.nvec, strict=True)], 1).float()
    return _flat(elements).to(torch.float32)


def _flat(elements: Tensor) -> Tensor:
    """[N, *shape] -> [N, size], also where N is 0."""
    return elements.reshape(len(elements), math.prod(elements.shape[1:]))
