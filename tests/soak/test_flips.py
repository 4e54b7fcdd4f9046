"""Many flipped bits in the checkpoint of a real run: each is detected, or does no harm."""

from __future__ import annotations

from pathlib import Path

from hpcrl.storage.checkpoints import CheckpointStore
from tests.commands import train
from tests.single.test_checkpoints import flip_bits

_FLIPS = 1000


def test_a_thousand_flipped_bits_are_detected_or_harmless(tmp_path: Path) -> None:
    train(tmp_path / "run", "--total-env-steps", 2048, "--num-iterations", 1, "--normalise-observations")
    path = CheckpointStore(tmp_path / "run/checkpoints").newest_file()
    assert path is not None
    refused = flip_bits(path, _FLIPS)
    assert refused > _FLIPS // 2
    print(f"{_FLIPS} flips: the manifest gave all of them away, the file alone {refused}; the others did no harm")
