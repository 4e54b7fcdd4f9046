"""Files made to harm are refused: no other file is read, nothing huge allocated, nothing hangs."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t

from hpcrl.errors import CheckpointError
from hpcrl.storage.checkpoints import load_checkpoint
from hpcrl.storage.hdf5 import MAX_ATTRIBUTE_BYTES, MAX_ATTRIBUTES, MAX_DEPTH, read_arrays, write_arrays

SECRET = np.arange(8, dtype=np.float32)


def external_link(file: h5py.File, secret: Path) -> None:
    file["weights"] = h5py.ExternalLink(secret, "/secret")


def soft_link(file: h5py.File, secret: Path) -> None:
    file["real"] = SECRET
    file["weights"] = h5py.SoftLink("/real")


def dangling_soft_link(file: h5py.File, secret: Path) -> None:
    file["weights"] = h5py.SoftLink("/nowhere")


def external_storage(file: h5py.File, secret: Path) -> None:
    file.create_dataset("weights", (8,), "f4", external=[(str(secret), 0, 32)])


def virtual_dataset(file: h5py.File, secret: Path) -> None:
    layout = h5py.VirtualLayout((8,), "f4")
    layout[:] = h5py.VirtualSource(secret, "secret", (8,))
    file.create_virtual_dataset("weights", layout)


def virtual_dataset_of_open_shape(file: h5py.File, secret: Path) -> None:
    layout = h5py.VirtualLayout((8,), "f4", maxshape=(None,))
    source = h5py.VirtualSource(secret, "secret", (8,), maxshape=(None,))
    layout[: h5s.UNLIMITED] = source[: h5s.UNLIMITED]
    file.create_virtual_dataset("weights", layout)


def object_references(file: h5py.File, secret: Path) -> None:
    file.create_dataset("weights", data=np.array([file.ref], dtype=h5py.ref_dtype), dtype=h5py.ref_dtype)


def variable_strings(file: h5py.File, secret: Path) -> None:
    file["weights"] = np.array(["a", "b"], dtype=h5py.string_dtype())


def variable_arrays(file: h5py.File, secret: Path) -> None:
    file.create_dataset("weights", (2,), h5py.vlen_dtype("f4"))


def compound(file: h5py.File, secret: Path) -> None:
    file["weights"] = np.zeros(2, [("a", "f4"), ("b", "i4")])


def opaque(file: h5py.File, secret: Path) -> None:
    file["weights"] = np.zeros(2, "V16")


def enumeration(file: h5py.File, secret: Path) -> None:
    file.create_dataset("weights", (2,), h5py.enum_dtype({"a": 1}))


def complex_numbers(file: h5py.File, secret: Path) -> None:
    file["weights"] = np.zeros(2, "c8")


def array_type(file: h5py.File, secret: Path) -> None:
    file.create_dataset("weights", (2,), np.dtype(("f4", (1 << 12,))))


def fixed_strings(file: h5py.File, secret: Path) -> None:
    file["weights"] = np.zeros(2, "S4")


def named_type(file: h5py.File, secret: Path) -> None:
    file["weights"] = np.dtype("f4")


def empty_space(file: h5py.File, secret: Path) -> None:
    file["weights"] = h5py.Empty("f4")


def third_bool(file: h5py.File, secret: Path) -> None:
    dataset = file.create_dataset("weights", (2,), "bool")
    dataset.id.write(h5s.ALL, h5s.ALL, np.array([1, 77], np.uint8).view(np.bool_))


def huge_contiguous(file: h5py.File, secret: Path) -> None:
    file.create_dataset("weights", (1 << 40,), "f8")


def huge_chunked(file: h5py.File, secret: Path) -> None:
    file.create_dataset("weights", (1 << 40,), "f8", chunks=(1 << 10,), fletcher32=True)


def huge_chunk(file: h5py.File, secret: Path) -> None:
    file.create_dataset("weights", (1,), "f8", maxshape=(None,), chunks=(1 << 28,), fletcher32=True)


def overflowing_shape(file: h5py.File, secret: Path) -> None:
    file.create_dataset("weights", (1 << 31, 1 << 31, 0), "f8")


def many_unwritten(file: h5py.File, secret: Path) -> None:
    for number in range(100):
        file.create_dataset(f"weights/{number}", (1000,), "f8")


def gzip_bomb(file: h5py.File, secret: Path) -> None:
    file.create_dataset("weights", data=np.zeros(1 << 25, np.uint8), chunks=(1 << 25,), compression=9)


def compressed(file: h5py.File, secret: Path) -> None:
    file.create_dataset("weights", data=np.random.default_rng(0).random(100), compression=1)


def missing_chunk(file: h5py.File, secret: Path) -> None:
    file["ballast"] = np.zeros(1000)
    file.create_dataset("weights", (80,), "f4", chunks=(8,), fletcher32=True)[:40] = 1


def short_chunk(file: h5py.File, secret: Path) -> None:
    file["ballast"] = np.zeros(1000)
    weights = file.create_dataset("weights", (16,), "f4", chunks=(8,), fletcher32=True)
    weights.id.write_direct_chunk((0,), bytes(36))
    weights.id.write_direct_chunk((8,), bytes(1))


def chunk_without_checksum(file: h5py.File, secret: Path) -> None:
    file["ballast"] = np.zeros(1000)
    weights = file.create_dataset("weights", (8,), "f4", chunks=(8,), fletcher32=True)
    weights.id.write_direct_chunk((0,), bytes(32), filter_mask=1)


def unknown_filter(file: h5py.File, secret: Path) -> None:
    file.create_dataset("weights", data=SECRET, chunks=(8,), compression="lzf")


def absent_filter(file: h5py.File, secret: Path) -> None:
    plist = h5p.create(h5p.DATASET_CREATE)
    plist.set_chunk((8,))
    plist.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
    h5d.create(file.id, b"weights", h5t.IEEE_F32LE, h5s.create_simple((8,)), plist)


def cycle(file: h5py.File, secret: Path) -> None:
    group = file.create_group("a")
    group.create_group("b")["again"] = group


def cycle_to_root(file: h5py.File, secret: Path) -> None:
    file["a"] = file["/"]


def second_name(file: h5py.File, secret: Path) -> None:
    file["weights"] = SECRET
    file["more"] = file["weights"]


def deep_nesting(file: h5py.File, secret: Path) -> None:
    file.create_group("/".join("g" * (MAX_DEPTH + 1)))


def very_deep_nesting(file: h5py.File, secret: Path) -> None:
    group = file
    for _ in range(3000):
        group = group.create_group("g")


def many_objects(file: h5py.File, secret: Path) -> None:
    for number in range(300):
        file.create_group(str(number))


def unprintable_name(file: h5py.File, secret: Path) -> None:
    file["weights\x1b[2J"] = SECRET


def undecodable_name(file: h5py.File, secret: Path) -> None:
    file[b"weights\xff"] = SECRET


def variable_attribute(file: h5py.File, secret: Path) -> None:
    file.attrs["config"] = "{}"


def reference_attribute(file: h5py.File, secret: Path) -> None:
    file.attrs["config"] = file.ref


def array_attribute(file: h5py.File, secret: Path) -> None:
    file.attrs["config"] = np.zeros(3)


def empty_attribute(file: h5py.File, secret: Path) -> None:
    file.attrs["config"] = h5py.Empty("f4")


def huge_attribute(file: h5py.File, secret: Path) -> None:
    file.attrs["config"] = np.bytes_(b"x" * (MAX_ATTRIBUTE_BYTES + 1))


def many_attributes(file: h5py.File, secret: Path) -> None:
    for number in range(MAX_ATTRIBUTES + 1):
        file.attrs[str(number)] = number


CORPUS: dict[Callable[[h5py.File, Path], None], str] = {
    external_link: "no hard link",
    soft_link: "no hard link",
    dangling_soft_link: "no hard link",
    external_storage: "outside the file",
    virtual_dataset: "virtual dataset",
    virtual_dataset_of_open_shape: "virtual dataset",
    object_references: "has dtype",
    variable_strings: "has dtype",
    variable_arrays: "has dtype",
    compound: "has dtype",
    opaque: "has dtype",
    enumeration: "has dtype",
    complex_numbers: "has dtype",
    array_type: "has dtype",
    fixed_strings: "has dtype",
    named_type: "neither a group nor a dataset",
    empty_space: "no shape",
    third_bool: "neither true nor false",
    huge_contiguous: "more data than the file can hold",
    huge_chunked: "more data than the file can hold",
    huge_chunk: "more data than the file can hold",
    overflowing_shape: "too (big|large)",
    many_unwritten: "more data than the file can hold",
    gzip_bomb: "other than Fletcher32",
    compressed: "other than Fletcher32",
    unknown_filter: "other than Fletcher32",
    absent_filter: "other than Fletcher32",
    missing_chunk: "not stored whole",
    short_chunk: "chunk of a wrong size",
    chunk_without_checksum: "chunk of a wrong size",
    cycle: "linked twice",
    cycle_to_root: "linked twice",
    second_name: "linked twice",
    deep_nesting: "nested deeper",
    very_deep_nesting: "nested deeper",
    unprintable_name: "no name for an array",
    undecodable_name: "decode",
    variable_attribute: "neither a text nor a number",
    reference_attribute: "neither a text nor a number",
    array_attribute: "no scalar",
    empty_attribute: "no scalar",
    huge_attribute: "bytes",
    many_attributes: "attributes",
}


def hostile(directory: Path, make: Callable[[h5py.File, Path], None], libver: str = "latest") -> Path:
    secret = directory / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["secret"] = SECRET
    path = directory / "hostile.h5"
    with h5py.File(path, "w", libver=libver) as file:
        make(file, secret)
    return path


@pytest.mark.parametrize("make", CORPUS, ids=lambda make: make.__name__)
def test_hostile_file_is_refused(tmp_path: Path, make: Callable[[h5py.File, Path], None]) -> None:
    path = hostile(tmp_path, make)
    with pytest.raises(CheckpointError, match=CORPUS[make]) as refusal:
        load_checkpoint(path)
    message = str(refusal.value)
    assert str(path) in message
    assert message.isprintable()
    assert "GiB" not in message  # an allocation was not even tried


@pytest.mark.parametrize("make", [external_link, external_storage, virtual_dataset, virtual_dataset_of_open_shape])
def test_no_other_file_is_opened(tmp_path: Path, make: Callable[[h5py.File, Path], None]) -> None:
    """A named pipe in the place of the other file would block whoever opens it."""
    path = hostile(tmp_path, make)
    (tmp_path / "secret.h5").unlink()
    os.mkfifo(tmp_path / "secret.h5")
    program = "import sys; from hpcrl.storage.hdf5 import *; read_arrays(Path(sys.argv[1]))"
    done = run_python(program, path)
    assert "CheckpointError" in done.stderr


def test_too_many_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcrl.storage.hdf5.MAX_OBJECTS", 200)
    with pytest.raises(CheckpointError, match="more than 200 objects"):
        load_checkpoint(hostile(tmp_path, many_objects))


def test_plain_files_of_others_are_read(tmp_path: Path) -> None:
    def plain(file: h5py.File, secret: Path) -> None:
        file.create_dataset("a/chunked", data=SECRET, chunks=(3,), maxshape=(None,))
        file.create_dataset("a/empty", (0,), "f4", maxshape=(None,))
        file["a/plain"] = SECRET
        file.attrs["count"] = np.int32(3)

    arrays, attributes = read_arrays(hostile(tmp_path, plain, libver="earliest"))
    assert arrays.keys() == {"a/chunked", "a/empty", "a/plain"}
    assert np.array_equal(arrays["a/chunked"], SECRET)
    assert np.array_equal(arrays["a/plain"], SECRET)
    assert arrays["a/empty"].shape == (0,)
    assert attributes == {"count": 3}


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n", b"\0" * 4096, b"not HDF5 at all\n" * 100])
def test_no_hdf5_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.h5").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.h5"):
        load_checkpoint(tmp_path / "x.h5")


def test_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.h5")
    for path in (tmp_path / "pipe.h5", tmp_path, tmp_path / "missing.h5", Path("/dev/zero")):
        with pytest.raises(CheckpointError, match="no such file"):
            load_checkpoint(path)


def test_truncation_at_any_length(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    write_arrays(path, {f"weights/{n}": np.arange(50.0) for n in range(20)}, {"config": "{}"})
    content = path.read_bytes()
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read_arrays(path)


FUZZ = """
import random, resource, sys
import h5py, numpy as np
from pathlib import Path
from hpcrl.errors import CheckpointError
from hpcrl.storage.hdf5 import read_arrays
path, rng, refused, asked_for_more = Path(sys.argv[1]), random.Random(int(sys.argv[2])), 0, False
with h5py.File(path, "w", libver=sys.argv[3]) as file:
    for number in range(12):
        file.create_dataset(f"weights/{number}", data=np.arange(40.0), chunks=(8,), fletcher32=True)
        file[f"plain/{number}"] = np.arange(4.0)
        file.attrs[f"attribute{number}"] = np.bytes_(b"text")
content = path.read_bytes()
free = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
# What is more than the file can account for is not even asked for.
limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + (64 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for _ in range(400):
    damaged = bytearray(content)
    for _ in range(rng.choice([1, 1, 4, 30])):
        damaged[rng.randrange(len(damaged))] = rng.choice([0, 1, 0x7F, 0xFF, rng.randrange(256)])
    path.write_bytes(damaged)
    try:
        read_arrays(path)
    except CheckpointError as error:
        refused += 1
        asked_for_more |= isinstance(error.__cause__, MemoryError)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - free
print(refused > 20, asked_for_more, grown < 100_000)
"""


def run_python(program: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("libver", ["earliest", "v110"])
def test_fuzzed_bytes_neither_crash_nor_hang_nor_grow(tmp_path: Path, libver: str) -> None:
    """Random bytes in a file whose structures have checksums, and in one where they have none; memory is limited."""
    done = run_python(FUZZ, tmp_path / "x.h5", 0, libver)
    assert (done.returncode, done.stdout) == (0, "True False True\n"), done.stderr
