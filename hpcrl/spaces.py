"""What one environment observes and does, as plain data that every floor may pass on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

#: Parts of a packed element begin at multiples of this many bytes, so that views of any dtype over them are aligned.
_PACKED_ALIGNMENT = 8


@dataclass(frozen=True)
class Space:
    """Shape of one observation or action, as it is stored.

    Attributes:
        kind: "box" for arrays of numbers; "discrete" for one of `num_choices` integers; "multi_discrete" for several of
            those; "multi_binary" for zeros and ones; "packed" for several spaces, one after the other in bytes.
        shape: of one element, without time and batch; () for discrete, [bytes] for packed.
        dtype: numpy name of the stored dtype.
        num_choices: of a discrete space, else 0.
        low, high: bounds of a box action, flattened; empty where there are none.
        nvec: choices of every number of a multi_discrete space, flattened in C order; else empty.
        leaves: (name, space) of each part of a packed space, none of them packed; else empty.
    """

    kind: Literal["box", "discrete", "multi_discrete", "multi_binary", "packed"]
    shape: tuple[int, ...]
    dtype: str
    num_choices: int = 0
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    nvec: tuple[int, ...] = ()
    leaves: tuple[tuple[str, Space], ...] = ()

    @property
    def size(self) -> int:
        """Numbers in one element."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of one element."""
        return self.size * np.dtype(self.dtype).itemsize

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """Where each leaf of a packed element lies."""
        places, first = [], 0
        for name, leaf in self.leaves:
            places.append(Place(name, leaf, first, first + leaf.nbytes))
            first += _aligned(leaf.nbytes)
        return tuple(places)


class Place(NamedTuple):
    """One leaf of a packed space, and the bytes [first, end) where it lies."""

    name: str
    leaf: Space
    first: int
    end: int


def packed(leaves: tuple[tuple[str, Space], ...]) -> Space:
    """The space of elements that hold an element of each leaf, as bytes uint8 [nbytes]."""
    nbytes = sum(_aligned(leaf.nbytes) for _, leaf in leaves)
    return Space("packed", (nbytes,), "uint8", leaves=leaves)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _PACKED_ALIGNMENT) * _PACKED_ALIGNMENT


#: The leaf of a packed observation that says which actions are allowed.
ACTION_MASK = "action_mask"


@dataclass(frozen=True)
class Task:
    """What all environments of a run have in common.

    Attributes:
        observation, action: spaces of one environment. Where the observation is packed with a leaf `ACTION_MASK`, int8
            with a number for each choice of the action, choices that have a 0 there are not allowed.
        max_episode_steps: truncation limit where the environment's registration names one.
        layout_invariant: each environment's stream depends on the seed and its global index alone.
        info_mask_size: numbers of the action mask, where environments give it in their infos; else 0.
    """

    observation: Space
    action: Space
    max_episode_steps: int | None
    layout_invariant: bool
    info_mask_size: int = 0

    @property
    def has_action_mask(self) -> bool:
        """Whether observations say which actions are allowed."""
        return any(name == ACTION_MASK for name, _ in self.observation.leaves)
