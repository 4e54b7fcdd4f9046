"""Packed elements, which hold several leaves in bytes, as tensors: leaves out of elements, elements out of leaves."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hpcrl.errors import ShapeError
from hpcrl.spaces import Space


def unpack(space: Space, elements: Tensor) -> dict[str, Tensor]:
    """The leaves of packed elements.

    Args:
        space: packed.
        elements: uint8 [..., nbytes] with any strides.

    Returns:
        [..., *leaf.shape] in the leaf's dtype, by name: a view of `elements`, or a copy where the leaf's dtype can't be
        read at the places that strides and storage offset give.

    Raises:
        ShapeError: elements of another dtype or size.
    """
    if elements.dtype != torch.uint8 or elements.shape[-1:] != space.shape:
        got = f"{elements.dtype} {list(elements.shape)}"
        raise ShapeError(f"packed elements must be torch.uint8 [..., {space.nbytes}], got {got}")
    leaves = {}
    for name, leaf, first, end in space.places:
        numbers = _read_as(getattr(torch, leaf.dtype), elements[..., first:end])
        leaves[name] = numbers.view(elements.shape[:-1] + leaf.shape)
    return leaves


def pack(space: Space, leaves: Mapping[str, Tensor]) -> Tensor:
    """Packed elements of leaves.

    Args:
        space: packed, of one leaf or more.
        leaves: [..., *leaf.shape] in the leaf's dtype, by name, all with the same leading axes.

    Returns:
        uint8 [..., nbytes]; bytes between leaves are zero.

    Raises:
        ShapeError: a leaf of another dtype or shape.
    """
    name, leaf = space.leaves[0]
    first = leaves[name]
    leading = first.shape[: first.dim() - len(leaf.shape)]
    elements = torch.zeros(*leading, space.nbytes, dtype=torch.uint8, device=first.device)
    for name, place in unpack(space, elements).items():
        given = leaves[name]
        if (given.dtype, given.shape) != (place.dtype, place.shape):
            got = f"{given.dtype} {list(given.shape)}"
            raise ShapeError(f"the leaf {name!r} must be {place.dtype} {list(place.shape)}, got {got}")
        place.copy_(given)
    return elements


def _read_as(dtype: torch.dtype, part: Tensor) -> Tensor:
    """Bytes uint8 [..., n] as numbers [..., n / itemsize]."""
    *outer, last = part.stride()
    is_aligned = all(step % dtype.itemsize == 0 for step in (part.storage_offset(), *outer))
    if dtype.itemsize > 1 and not (last == 1 and is_aligned):
        part = part.clone(memory_format=torch.contiguous_format)
    return part.view(dtype)
