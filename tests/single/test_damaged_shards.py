"""A damaged shard is refused, or nothing that it says has changed."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from hpcrl.errors import TrajectoryError
from hpcrl.storage.chunks import zstandard
from hpcrl.storage.shard_reader import Shard
from tests.recordings import content, is_same, make_shard
from tests.single.test_hostile_files import run_python
from tests.single.test_hostile_shards import old_index

COMPRESSIONS = [
    "gzip",
    "none",
    pytest.param("zstd", marks=pytest.mark.skipif(zstandard is None, reason="needs the package zstandard")),
]


def flip(path: Path, num_flips: int, generator: random.Random) -> int:
    """Flip bits of a shard, one at a time; how many flips were refused, the others having changed nothing."""
    whole, expected = path.read_bytes(), content(Shard(path))
    about, refused = Shard(path).about, 0
    for _ in range(num_flips):
        damaged = bytearray(whole)
        bit = generator.randrange(8 * len(whole))
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            shard = Shard(path)
            shard.verify()
        except TrajectoryError as refusal:
            assert str(path) in str(refusal)
            refused += 1
        else:
            assert shard.about == about, f"bit {bit}"
            assert is_same(content(shard), expected), f"bit {bit}"
    path.write_bytes(whole)
    return refused


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_100_flipped_bits_are_detected_or_harmless(tmp_path: Path, compression: str) -> None:
    path = make_shard(tmp_path, num_rows=400, compression=compression)
    assert flip(path, 100, random.Random(0)) > 50


def test_what_lies_in_chunks_is_never_harmless(tmp_path: Path) -> None:
    path = make_shard(tmp_path)
    whole = path.read_bytes()
    for name, series in Shard(path).series.items():
        for chunk in series.chunks.values():
            damaged = bytearray(whole)
            damaged[chunk.first + chunk.size // 2] ^= 4
            path.write_bytes(damaged)
            with pytest.raises(TrajectoryError, match=f"in {name} a chunk"):
                Shard(path).verify()


def test_truncation_at_any_length(tmp_path: Path) -> None:
    path = make_shard(tmp_path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 211):
        path.write_bytes(whole[:length])
        with pytest.raises(TrajectoryError):
            Shard(path)


def test_a_shard_that_shrinks_or_goes_after_it_was_opened(tmp_path: Path) -> None:
    path = make_shard(tmp_path)
    shard, gone = Shard(path), Shard(path)
    where = shard.series["observation"].chunks[0, 0, 0]
    with path.open("r+b") as file:
        file.truncate(where.first + where.size // 2)
    with pytest.raises(TrajectoryError, match="checksum"):
        shard.read("observation", 0, 1)
    path.rename(path.with_name(f"{path.name}.discarded"))
    with pytest.raises(TrajectoryError, match="No such file"):
        gone.read("observation", 0, 1)


FUZZ = """
import random, resource, sys
from pathlib import Path
from hpcrl.errors import TrajectoryError
from hpcrl.storage.shard_reader import Shard
path, rng, refused = Path(sys.argv[1]), random.Random(int(sys.argv[2])), 0
content = path.read_bytes()
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (256 << 20),) * 2)
Shard(path).verify()
for _ in range(200):
    damaged = bytearray(content)
    for _ in range(rng.choice([1, 1, 4, 30])):
        damaged[rng.randrange(len(damaged))] = rng.choice([0, 1, 0x7F, 0xFF, rng.randrange(256)])
    path.write_bytes(damaged)
    try:
        shard = Shard(path)
        shard.verify()
        for name, series in shard.series.items():
            shard.read(name, 0, series.shape[0])
    except TrajectoryError as error:
        assert "allocate" not in str(error), error
        refused += 1
print(refused > 50)
"""


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_fuzzed_bytes_neither_crash_nor_hang_nor_grow(tmp_path: Path, compression: str) -> None:
    done = run_python(FUZZ, make_shard(tmp_path, compression=compression), 1)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_fuzzed_bytes_of_a_file_whose_structures_have_no_checksums(tmp_path: Path) -> None:
    path = make_shard(tmp_path)
    old_index(path)
    done = run_python(FUZZ, path, 1)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_rows_of_one_column_and_of_all(tmp_path: Path) -> None:
    """Wherever chunks end."""
    shard = Shard(make_shard(tmp_path, num_rows=2100))
    whole = shard.read("observation", 0, 2101)
    assert len(shard.series["observation"].chunks) > 1
    for first, end in ((0, 1), (0, 0), (7, 9), (1000, 1100), (1023, 1025), (0, 2101), (2100, 2101)):
        assert np.array_equal(shard.read("observation", first, end), whole[first:end])
        assert np.array_equal(shard.read("observation", first, end, 2), whole[first:end, 2])
    for first, end, column in ((-1, 3, None), (3, 2102, None), (4, 3, 0), (0, 1, 3), (0, 1, -1)):
        with pytest.raises(IndexError):
            shard.read("observation", first, end, column)
