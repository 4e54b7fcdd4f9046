"""Shards made to harm are refused: no other file is read, nothing huge allocated, nothing hangs."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from h5py import h5s

from hpcrl.storage.chunks import fletcher32, zstandard
from hpcrl.storage.shard_reader import Shard
from tests.recordings import make_shard
from tests.single.test_hostile_files import CORPUS, SECRET, run_python

Attack = Callable[[h5py.File, Path], None]


def in_place(place: str, make: Attack) -> Attack:
    """What `make` calls weights, under a name that is looked for."""

    def attack(file: h5py.File, secret: Path) -> None:
        make(file, secret)
        if "weights" in file.keys():  # noqa: SIM118, links that lead nowhere are keys too
            del file[place]
            file.move("weights", place)

    return attack


def put(name: str, value: Any, at: int = 0) -> Attack:
    """A number in a table."""

    def attack(file: h5py.File, secret: Path) -> None:
        file[name][at] = value

    return attack


def put_all(**columns: list[int]) -> Attack:
    """The first numbers of columns of the table of unrolls."""

    def attack(file: h5py.File, secret: Path) -> None:
        for name, values in columns.items():
            file[f"unrolls/{name}"][: len(values)] = values

    return attack


def replaced(name: str, **changes: Any) -> Attack:
    """A dataset of another shape or dtype."""

    def attack(file: h5py.File, secret: Path) -> None:
        old = file[name]
        options = {"dtype": old.dtype, "chunks": old.chunks, "fletcher32": True, "maxshape": old.maxshape}
        if old.compression:
            options |= {"compression": old.compression, "compression_opts": 1, "shuffle": old.shuffle}
        data = changes.pop("data")(old[...])
        del file[name]
        file.create_dataset(name, data=data, **(options | changes))

    return attack


def resized(name: str, rows: int) -> Attack:
    def attack(file: h5py.File, secret: Path) -> None:
        file[name].resize(rows, axis=0)

    return attack


def said(**changes: Any) -> Attack:
    """What the shard says of itself."""

    def attack(file: h5py.File, secret: Path) -> None:
        told(json.dumps(json.loads(file.attrs["about"]) | changes))(file, secret)

    return attack


def told(text: str) -> Attack:
    def attack(file: h5py.File, secret: Path) -> None:
        file.attrs["about"] = np.bytes_(text.encode())

    return attack


def stored(packed: bytes, mask: int = 0) -> Attack:
    """The first chunk of the rewards, with a checksum that fits."""

    def attack(file: h5py.File, secret: Path) -> None:
        checksum = fletcher32(packed).to_bytes(4, "little")
        file["reward"].id.write_direct_chunk((0, 0), packed + checksum, filter_mask=mask)

    return attack


def no_about(file: h5py.File, secret: Path) -> None:
    del file.attrs["about"]


def another_format(file: h5py.File, secret: Path) -> None:
    file.attrs["format_version"] = np.int64(2)


def missing(file: h5py.File, secret: Path) -> None:
    del file["value"]


def missing_table(file: h5py.File, secret: Path) -> None:
    del file["episodes/seed"]


def more(file: h5py.File, secret: Path) -> None:
    file["episodes/more"] = SECRET


def ended_nowhere(file: h5py.File, secret: Path) -> None:
    over = np.flatnonzero(file["episodes/is_over"][:])
    file["episodes/final"][over[0]] = file["episodes/final"][over[1]]


def third_bool(file: h5py.File, secret: Path) -> None:
    data = np.full((60, 3), 77, np.uint8).view(np.bool_)
    file["ended"].id.write(h5s.ALL, h5s.ALL, data)


HUGE, LEAST = (1 << 63) - 1, -(1 << 63)
#: A megabyte, and a quarter of a gigabyte, of nothing; a chunk of the rewards has 12 KiB.
BOMB, GREAT_BOMB = zlib.compress(bytes(1 << 20)), zlib.compress(bytes(1 << 28))

ATTACKS: dict[str, tuple[Attack, str]] = {
    **{f"{make.__name__} for a series": (in_place("reward", make), "") for make in CORPUS},
    **{f"{make.__name__} for a table": (in_place("episodes/seed", make), "") for make in CORPUS},
    "no about": (no_about, "about"),
    "another format": (another_format, "format version 2"),
    "missing series": (missing, "value"),
    "missing table": (missing_table, "seed"),
    "more": (more, "episodes/more"),
    "huge series": (resized("reward", 1 << 50), "more data than the file can hold"),
    "large series": (resized("reward", 1 << 20), "not stored whole"),
    "short series": (resized("value", 1), "value is"),
    "no last observations": (resized("finals/observation", 0), "finals/observation is"),
    "wide series": (replaced("reward", data=lambda old: np.zeros((60, 4), "f4"), maxshape=(None, 4)), "reward is"),
    "flat series": (replaced("reward", data=lambda old: old[:, 0], chunks=(1024,), maxshape=(None,)), "reward is"),
    "double series": (replaced("reward", data=lambda old: old, dtype="f8"), "reward is"),
    "other end first": (replaced("reward", data=lambda old: old, dtype=">f4"), "reward is"),
    "strange chunks": (replaced("observation", data=lambda old: old, chunks=(16, 3, 2)), "cut otherwise"),
    "great chunks": (replaced("reward", data=lambda old: old, chunks=(1 << 23, 3)), "too large"),
    "narrow table": (replaced("episodes/seed", data=lambda old: old, dtype="i4"), "episodes/seed is"),
    "square table": (replaced("episodes/seed", data=lambda old: old[:, None], chunks=(1, 1), maxshape=None), "is"),
    "short table": (replaced("episodes/seed", data=lambda old: old[1:], chunks=(1,)), "rows, expected"),
    "contiguous series": (in_place("reward", lambda file, secret: file.update(weights=SECRET)), "in chunks"),
    "third bool": (third_bool, "neither true nor false"),
    "small bomb": (stored(BOMB), "does not end"),
    "bomb": (stored(GREAT_BOMB), "bytes for"),
    "short chunk": (stored(zlib.compress(bytes(100))), "has 100 bytes"),
    "cut chunk": (stored(zlib.compress(bytes(1024 * 12))[:-6]), "does not end"),
    "chunk with more behind it": (stored(zlib.compress(bytes(1024 * 12)) + b"more"), "does not end"),
    "no deflate": (stored(b"\xff" * 50), "can't be unpacked"),
    "chunk without its filters": (stored(bytes(100), mask=7), "not its own"),
    "nothing": (stored(b""), "unpacked|end"),
    "unroll of nothing": (put("unrolls/length", 0), "wrong length"),
    "unroll backwards": (put("unrolls/length", -1), "wrong length"),
    "unroll that is too long": (put("unrolls/length", 17), "wrong length"),
    "endless unroll": (put("unrolls/length", HUGE), "wrong length"),
    "unroll elsewhere": (put("unrolls/first_row", HUGE), "rows that the shard has not"),
    "unroll before the first": (put("unrolls/first_row", LEAST), "rows that the shard has not"),
    "unroll twice": (put("unrolls/first_row", 0, at=1), "not its rows|has not"),
    "version below 0": (put("unrolls/policy_version", -1), "below 0"),
    "step below 0": (put("unrolls/first_env_step", LEAST), "below 0"),
    "environment below 0": (put("env_index", -4), "environments"),
    "environment twice": (put("env_index", 5), "environments|another environment"),
    "episode of no column": (put("episodes/column", -1), "no column"),
    "episode of a far column": (put("episodes/column", HUGE), "no column"),
    "episode of another": (put("episodes/env_index", 99), "another environment"),
    "episode before the first row": (put("episodes/first_row", LEAST), "no rows"),
    "episode behind the last row": (put("episodes/end_row", HUGE), "no rows"),
    "episode of no rows": (put("episodes/end_row", 0), "no rows"),
    "episodes that overlap": (put("episodes/first_row", 0, at=1), "not in order"),
    "steps without end": (put("episodes/first_step", HUGE), "can't be"),
    "steps below 0": (put("episodes/first_step", -1), "can't be"),
    "episode below 0": (put("episodes/number", -1), "can't be"),
    "seed below 0": (put("episodes/seed", -1), "can't be"),
    "last observation too far": (put("episodes/final", HUGE), "don't belong"),
    "last observation below 0": (put("episodes/final", -2), "don't belong"),
    "last observation of two": (ended_nowhere, "don't belong"),
    "no JSON": (told("hello"), "Expecting"),
    "deep JSON": (told("[" * 100_000), "recursion"),
    "a long number": (told("1" * 5000), ""),
    "a list": (told("[]"), ""),
    "unknown word": (said(**{"\x1b[2J\n" + "x" * 100_000: 1}), "unexpected keyword"),
    "strange kind": (said(kind="else"), "recorded in"),
    "strange number": (said(actor="\x1b[2J"), "no number"),
    "true number": (said(number=True), "no number"),
    "number below 0": (said(env_steps=-1), "no number"),
    "number beyond all": (said(first_env_step=1 << 62), "no number"),
    "strange length": (said(unroll_length=None), "no number"),
    "strange config": (said(config=[]), "recorded in"),
    "strange memory": (said(state_size=8), "core_state"),
    "strange history": (said(num_history=2), "first_history"),
    "no space": (said(observation={}), ""),
    "object space": (said(observation=dict(kind="box", shape=[3], dtype="O", low=[], high=[], nvec=[], leaves=[])), ""),
    "space of -1": (
        said(observation=dict(kind="box", shape=[-1], dtype="f4", low=[], high=[], nvec=[], leaves=[])),
        "shape that is none",
    ),
    "vast space": (
        said(observation=dict(kind="box", shape=[1 << 40], dtype="f4", low=[], high=[], nvec=[], leaves=[])),
        "is",
    ),
}


def frames() -> dict[str, tuple[Attack, str]]:
    """Chunks in the place of one of zstd."""
    size = 1024 * 12
    compress = zstandard.ZstdCompressor().compress
    whole = compress(bytes(size))
    stream = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(size))
    vast = b"\x28\xb5\x2f\xfd\xe0" + (1 << 43).to_bytes(8, "little") + whole[6:]
    liar = b"\x28\xb5\x2f\xfd\x60" + (size - 256).to_bytes(2, "little") + compress(bytes(1 << 24))[9:]
    return {
        "frame of no size": (stored(stream), "declares another size"),
        "frame of 8 TiB": (stored(vast), "declares another size"),
        "frame of a megabyte": (stored(compress(bytes(1 << 20))), "declares another size"),
        "frame that says less": (stored(liar), "can't be unpacked"),
        "frame that is cut": (stored(whole[:-2]), "can't be unpacked"),
        "no frame": (stored(b"\xff" * 20), "can't be unpacked"),
        "zstd of nothing": (stored(b""), "can't be unpacked"),
    }


def old_index(path: Path) -> dict[str, int]:
    """Make a shard one whose chunk index has no checksums; where the first chunk of each series lies."""
    source = path.with_suffix(".source")
    path.rename(source)
    with h5py.File(source) as old, h5py.File(path, "w", libver="earliest") as new:
        for name, dataset in visit(old):
            options = {key: getattr(dataset, key) for key in ("chunks", "maxshape", "shuffle", "fletcher32")}
            options |= {"compression": "gzip", "compression_opts": 1} if dataset.compression else {}
            new.create_dataset(name, data=dataset[...], dtype=dataset.dtype, **(options if dataset.chunks else {}))
        new.attrs["format_version"] = old.attrs["format_version"]
        new.attrs["about"] = np.bytes_(old.attrs["about"])
    source.unlink()
    return {name: next(iter(series.chunks.values())).first for name, series in Shard(path).series.items()}


def visit(file: h5py.File) -> list[tuple[str, h5py.Dataset]]:
    found: list[tuple[str, h5py.Dataset]] = []
    file.visititems(lambda name, node: found.append((name, node)) if isinstance(node, h5py.Dataset) else None)
    return found


def point_elsewhere(path: Path, to: Callable[[dict[str, int]], int]) -> None:
    places = old_index(path)
    address = places["reward"].to_bytes(8, "little")
    content = path.read_bytes()
    assert content.count(address) == 1
    path.write_bytes(content.replace(address, to(places).to_bytes(8, "little")))


POINTERS: dict[str, tuple[Callable[[dict[str, int]], int], str]] = {
    "chunk behind the end": (lambda places: 1 << 40, "not its own"),
    "chunk at the end of all": (lambda places: (1 << 63) + 5, "not its own"),
    "chunk of another": (lambda places: places["value"], "at the same place"),
    "chunk within another": (lambda places: places["value"] + 8, "at the same place"),
    "chunk that is none": (lambda places: 0, "checksum"),
}

REFUSE_ALL = """
import json, resource, sys
from pathlib import Path
from hpcrl.errors import TrajectoryError
from hpcrl.storage.shard_reader import Shard
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (300 << 20),) * 2)
said = {}
for path in sorted(Path(sys.argv[1]).glob("*.h5")):
    try:
        Shard(path).verify()
        said[path.stem] = "accepted"
    except TrajectoryError as error:
        said[path.stem] = str(error)
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a process with little memory says of every attack; whoever opened the other file would wait for ever."""
    folder, outside = tmp_path_factory.mktemp("hostile"), tmp_path_factory.mktemp("outside")
    secret = outside / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["secret"] = SECRET
    whole = {name: make_shard(outside, compression=name).read_bytes() for name in compressions()}
    attacks = {name: (whole["gzip"], attack) for name, (attack, _) in ATTACKS.items()}
    if zstandard is not None:
        attacks |= {name: (whole["zstd"], attack) for name, (attack, _) in frames().items()}
    for name, (content, attack) in attacks.items():
        path = folder / f"{name}.h5"
        path.write_bytes(content)
        with h5py.File(path, "r+", libver="v110") as file:
            attack(file, secret)
    for name, (to, _) in POINTERS.items():
        (folder / f"{name}.h5").write_bytes(whole["gzip"])
        point_elsewhere(folder / f"{name}.h5", to)
    secret.unlink()
    os.mkfifo(secret)
    done = run_python(REFUSE_ALL, folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def compressions() -> list[str]:
    return ["gzip", *(["zstd"] if zstandard is not None else [])]


def expected() -> dict[str, str]:
    more = frames() if zstandard is not None else {}
    return {name: message for name, (_, message) in (ATTACKS | more | POINTERS).items()}


@pytest.mark.parametrize("name", expected())
def test_hostile_shard_is_refused(refusals: dict[str, str], name: str) -> None:
    message = refusals[name]
    assert f"{name}.h5" in message
    assert message.isprintable()
    assert len(message) < 600
    assert re.search(expected()[name], message), message
    assert "allocate" not in message


def test_the_unharmed_shard_is_accepted(tmp_path: Path) -> None:
    path = make_shard(tmp_path)
    Shard(path).verify()
    old_index(path)
    Shard(path).verify()
