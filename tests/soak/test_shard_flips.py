"""Many flipped bits in shards of trajectories: each is detected, or does no harm."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.recordings import make_shard
from tests.single.test_damaged_shards import COMPRESSIONS, flip

_FLIPS = 1000


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_thousand_flipped_bits_are_detected_or_harmless(tmp_path: Path, compression: str) -> None:
    refused = flip(make_shard(tmp_path, num_rows=400, compression=compression), _FLIPS, random.Random(1))
    assert refused > _FLIPS // 2
    print(f"{_FLIPS} flips, {compression}: {refused} refused, the others did no harm")
