"""Packed elements as tensors: round trips, places of bytes against the obvious ones, views and copies."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hpcrl.errors import ShapeError
from hpcrl.models.packing import pack, unpack
from hpcrl.spaces import Space, packed

DTYPES = ("uint8", "int8", "int16", "float32", "int64", "float64")
KINDS = st.builds(
    lambda shape, dtype: Space("box", tuple(shape), dtype),
    st.lists(st.integers(1, 3), max_size=3),
    st.sampled_from(DTYPES),
)
SPACES = st.lists(KINDS, min_size=1, max_size=4).map(
    lambda leaves: packed(tuple((f"camera/{number}", leaf) for number, leaf in enumerate(leaves)))
)
LEADING = st.lists(st.integers(0, 3), max_size=3)

#: Sizes in bytes that are no multiples of 8: 3, 4 and 10, one after the other at 0, 8 and 16.
ODD = packed(
    (
        ("flags", Space("multi_binary", (3,), "int8")),
        ("force", Space("box", (), "float32")),
        ("pixels", Space("box", (5, 2), "uint8")),
    )
)


def random_leaves(space: Space, leading: tuple[int, ...], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randint(0, 127, (*leading, *leaf.shape), generator=generator).to(getattr(torch, leaf.dtype))
        for name, leaf in space.leaves
    }


def assert_leaves_equal(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert list(got) == list(expected)
    for name, leaf in expected.items():
        assert got[name].dtype == leaf.dtype
        assert got[name].shape == leaf.shape and torch.equal(got[name], leaf)


@settings(max_examples=60, deadline=None)
@given(SPACES, LEADING, st.integers(0, 2**31))
def test_unpack_undoes_pack(space: Space, leading: list[int], seed: int) -> None:
    leaves = random_leaves(space, tuple(leading), seed)
    elements = pack(space, leaves)
    assert elements.dtype == torch.uint8 and elements.shape == (*leading, space.nbytes)
    assert_leaves_equal(unpack(space, elements), leaves)


def test_bytes_lie_at_their_places_and_those_between_are_zero() -> None:
    leaves = random_leaves(ODD, (4,), 1)
    elements = pack(ODD, leaves)
    expected = torch.zeros(4, 32, dtype=torch.uint8)
    for row in range(4):
        expected[row, :3] = leaves["flags"][row].view(torch.uint8)
        expected[row, 8:12] = leaves["force"][row].reshape(1).view(torch.uint8)
        expected[row, 16:26] = leaves["pixels"][row].reshape(10)
    assert torch.equal(elements, expected)


def test_leaves_are_views() -> None:
    elements = torch.zeros(6, 5, ODD.nbytes, dtype=torch.uint8)
    for batch in (elements, elements[1:4, ::2], elements[2], elements.transpose(0, 1), elements[3, 4]):
        for leaf in unpack(ODD, batch).values():
            leaf.fill_(1)
            assert torch.equal(leaf, torch.ones_like(leaf))
        assert all(torch.equal(leaf, torch.ones_like(leaf)) for leaf in unpack(ODD, batch).values())
        elements.zero_()


@settings(max_examples=40, deadline=None)
@given(SPACES, st.integers(0, 9), st.integers(0, 3), st.booleans(), st.integers(0, 2**31))
def test_any_memory_gives_the_same_leaves(space: Space, offset: int, gap: int, reverse: bool, seed: int) -> None:
    """Elements at an odd storage offset, at odd distances, or with their bytes apart."""
    leaves = random_leaves(space, (3, 2), seed)
    elements = pack(space, leaves)
    wide = torch.full((offset + 6 * (space.nbytes + gap),), 77, dtype=torch.uint8)
    strides = (2 * (space.nbytes + gap), space.nbytes + gap, 1)
    moved = wide.as_strided(elements.shape, strides, offset)
    if reverse:
        moved = torch.empty(*reversed(elements.shape), dtype=torch.uint8).permute(2, 1, 0)
    moved.copy_(elements)
    assert_leaves_equal(unpack(space, moved), leaves)
    assert_leaves_equal(unpack(space, moved[1:, 1]), {name: leaf[1:, 1] for name, leaf in leaves.items()})
    assert_leaves_equal(unpack(space, moved[0, 0]), {name: leaf[0, 0] for name, leaf in leaves.items()})


def test_leaves_of_single_bytes_are_views_of_any_memory() -> None:
    elements = torch.zeros(ODD.nbytes, 3, dtype=torch.uint8).t()
    unpack(ODD, elements)["pixels"].fill_(5)
    assert (elements[:, 16:26] == 5).all() and int(elements.sum()) == 3 * 10 * 5


def test_pack_takes_leaves_in_any_memory() -> None:
    leaves = random_leaves(ODD, (4, 3), 2)
    turned = {name: leaf.movedim(0, -1).contiguous().movedim(-1, 0) for name, leaf in leaves.items()}
    assert torch.equal(pack(ODD, turned), pack(ODD, leaves))
    alone = {name: leaf[2, 1] for name, leaf in leaves.items()}
    assert torch.equal(pack(ODD, alone), pack(ODD, leaves)[2, 1])


def test_the_order_of_the_mapping_does_not_matter() -> None:
    leaves = random_leaves(ODD, (2,), 3)
    assert torch.equal(pack(ODD, dict(reversed(leaves.items()))), pack(ODD, leaves))


@pytest.mark.parametrize(
    "elements", [torch.zeros(2, ODD.nbytes - 1, dtype=torch.uint8), torch.zeros(2, ODD.nbytes), torch.zeros(())]
)
def test_elements_that_do_not_fit_are_refused(elements: Tensor) -> None:
    with pytest.raises(ShapeError, match=r"packed elements must be torch.uint8 \[..., 32\]"):
        unpack(ODD, elements)


@pytest.mark.parametrize(
    ("name", "leaf"),
    [
        ("force", torch.zeros(4, dtype=torch.float64)),
        ("force", torch.zeros(1)),
        ("flags", torch.zeros(4, 3, dtype=torch.bool)),
        ("pixels", torch.zeros(1, 5, 2, dtype=torch.uint8)),
        ("pixels", torch.zeros(4, 10, dtype=torch.uint8)),
    ],
)
def test_leaves_that_do_not_fit_are_refused(name: str, leaf: Tensor) -> None:
    leaves = random_leaves(ODD, (4,), 4) | {name: leaf}
    with pytest.raises(ShapeError, match=f"the leaf '{name}' must be"):
        pack(ODD, leaves)


def test_spaces_are_as_large_as_their_places() -> None:
    assert all(place.first % 8 == 0 and place.end - place.first == place.leaf.nbytes for place in ODD.places)
    assert math.prod(ODD.shape) == ODD.nbytes == 32
