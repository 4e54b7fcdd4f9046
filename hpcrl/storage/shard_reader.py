"""Reads one shard of trajectories: HDF5 tells where its chunks lie, and they are taken apart here, without trust."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from h5py import h5d, h5g
from numpy.typing import NDArray

from hpcrl.errors import TrajectoryError
from hpcrl.storage.chunk_cache import ChunkCache
from hpcrl.storage.chunks import MAX_CHUNK_BYTES, Pipeline, pipeline_of
from hpcrl.storage.hdf5 import Attribute, plain_dtype, read_array, read_attributes, regular_size, stored_bytes, walk
from hpcrl.storage.shard_table import FORMAT_VERSION, UNROLL_COLUMNS, About, Episodes, Row, series_of
from hpcrl.unroll import Memory

_TABLES = ("env_index", "unrolls/", "episodes/")
#: What can't be packed is larger than it was, by less than this: checksum, headers, a word for every 16 KiB.
_PACKING_BYTES, _PACKING_SHARE = 1 << 10, 64
#: No episode has so many steps; sums of two such numbers still fit int64.
_MAX_STEPS = 1 << 62
#: Letters of a complaint.
_MAX_REASON = 300


class _Chunk(NamedTuple):
    """Where a chunk lies in the file, and whether it is compressed."""

    first: int
    size: int
    is_compressed: bool


@dataclass(frozen=True)
class SeriesIndex:
    """One dataset with a row for each step (or unroll, or end of an episode).

    Attributes:
        shape: of all of it.
        dtype: of its elements.
        chunk: shape of a chunk.
        pipeline: of its chunks.
        chunks: where they lie, by the number of their place along each axis.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    chunk: tuple[int, ...]
    pipeline: Pipeline
    chunks: Mapping[tuple[int, ...], _Chunk]

    @property
    def stored_bytes(self) -> int:
        """Bytes in the file."""
        return sum(chunk.size for chunk in self.chunks.values())

    @property
    def nbytes(self) -> int:
        """Bytes unpacked."""
        return math.prod(self.shape) * self.dtype.itemsize


class Shard:
    """One closed shard. Its tables are in memory, its rows are read as they are asked for; it can be pickled.

    Attributes:
        path: of the file.
        about: what it says of itself.
        env_index: int64 [B], global indices of the environments.
        series: by name.
        unrolls: columns int64 [U] by the names of `UNROLL_COLUMNS`.
        episodes: parts of episodes.
        first_history: [num_history, B, ...], frames before row 0.
        nbytes: of the file.
        cache: keeps chunks that were read, maybe those of other shards as well; None at first.

    Raises:
        TrajectoryError: the file is missing, damaged, or no shard.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self.cache: ChunkCache | None = None
        self._lock = threading.Lock()
        try:
            self.nbytes = regular_size(path)
            with h5py.File(path, "r") as file:
                arrays, self.series, attributes = _read_index(h5g.open(file.id, b"/"), self.nbytes)
            self._take(arrays, attributes)
        except Exception as error:  # a damaged file makes h5py raise nearly every built-in exception
            raise TrajectoryError(f"{path} can't be read as a shard of trajectories: {_reason(error)}.") from error

    def _take(self, arrays: dict[str, NDArray], attributes: dict[str, Attribute]) -> None:
        version = attributes.get("format_version")
        _require(version == FORMAT_VERSION, f"it has format version {version!r}, expected {FORMAT_VERSION}")
        self.about = About.parse(str(attributes["about"]))
        self.env_index = _column(arrays, "env_index", "int64")
        self.unrolls = {name: _column(arrays, f"unrolls/{name}", "int64") for name in UNROLL_COLUMNS}
        kinds = {"episode_return": "float64", "is_over": "bool"}
        columns = {name: _column(arrays, f"episodes/{name}", kinds.get(name, "int64")) for name in Episodes._fields}
        self.episodes = Episodes(**columns)
        self.first_history = arrays["unrolls/first_history"]
        self._check_names(arrays)
        self._check_series()
        self._check_tables()

    @property
    def num_rows(self) -> int:
        """N."""
        return self.series["reward"].shape[0]

    @property
    def num_steps(self) -> int:
        """Environment steps, of all columns, in episodes."""
        return int((self.episodes.end_row - self.episodes.first_row).sum())

    @property
    def memory(self) -> Memory:
        """Of its unrolls."""
        return Memory(self.about.state_size, self.about.num_history, "discounted_return" in self.series)

    def _check_names(self, arrays: Mapping[str, NDArray]) -> None:
        """That there is nothing beside what a shard holds; what is missing is found as it is looked for."""
        tables = {"env_index", "unrolls/first_history", *(f"unrolls/{name}" for name in UNROLL_COLUMNS)}
        tables |= {f"episodes/{name}" for name in Episodes._fields}
        series = {row.name for row in self._rows()} | {"finals/observation"}
        series |= {"unrolls/core_state"} if self.about.state_size else set()
        unknown = sorted((arrays.keys() - tables) | (self.series.keys() - series))
        _require(not unknown, f"it holds {', '.join(unknown)}, which no shard does")

    def _check_series(self) -> None:
        """That rows are what the shard's own spaces say."""
        rows, num_columns = self.num_rows, len(self.env_index)
        for name, shape, dtype in self._rows():
            extra = name == "observation"
            self._expect(name, (rows + extra, *shape), dtype)
        observation = self.about.observation
        num_finals = int(self.episodes.is_over.sum())
        self._expect("finals/observation", (num_finals, *observation.shape), np.dtype(observation.dtype))
        if self.about.state_size:
            unrolls = len(self.unrolls["length"])
            shape = (unrolls, num_columns, self.about.state_size)
            self._expect("unrolls/core_state", shape, np.dtype("float32"))
        history = (self.about.num_history, num_columns, *observation.shape)
        _require_alike("unrolls/first_history", self.first_history, history, np.dtype(observation.dtype))

    def _rows(self) -> list[Row]:
        spaces: Any = self.about
        return series_of(spaces, self.memory, len(self.env_index), "row_version" in self.series)

    def _expect(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        _require_alike(name, self.series[name], shape, dtype)

    def _check_tables(self) -> None:
        """That tables name rows and columns which exist."""
        rows, num_columns = self.num_rows, len(self.env_index)
        distinct = (self.env_index >= 0).all() and (np.diff(self.env_index) > 0).all()
        _require(bool(distinct), "its environments are not in order")
        lengths, first_rows = self.unrolls["length"], self.unrolls["first_row"]
        fits = (lengths > 0) & (lengths <= self.about.unroll_length)
        _require(bool(fits.all()), "an unroll has a wrong length")
        # Each by itself: a sum of lengths could overflow.
        inside = (first_rows >= 0) & (first_rows < rows) & (lengths <= rows - first_rows)
        _require(bool(inside.all()), "an unroll has rows that the shard has not")
        behind = np.append(np.zeros(1, np.int64), first_rows + lengths)
        _require(bool((behind == np.append(first_rows, rows)).all()), "its unrolls are not its rows")
        counts = (self.unrolls["policy_version"] >= 0) & (self.unrolls["first_env_step"] >= 0)
        _require(bool(counts.all()), "an unroll has a count below 0")
        self._check_episodes(rows, num_columns)

    def _check_episodes(self, rows: int, num_columns: int) -> None:
        found = self.episodes
        _require(bool(((found.column >= 0) & (found.column < num_columns)).all()), "an episode has no column")
        ours = self.env_index[found.column] == found.env_index
        _require(bool(ours.all()), "an episode is of another environment")
        fits = (found.first_row >= 0) & (found.first_row < found.end_row) & (found.end_row <= rows)
        _require(bool(fits.all()), "an episode has no rows")
        next_column, same = np.diff(found.column) > 0, np.diff(found.column) == 0
        apart = next_column | (same & (found.first_row[1:] >= found.end_row[:-1]))
        _require(bool(apart.all()), "its episodes are not in order")
        counts = (found.number >= 0) & (found.seed >= 0) & (found.first_step >= 0) & (found.first_step < _MAX_STEPS)
        _require(bool(counts.all()), "an episode has a count that can't be")
        finals = np.sort(found.final[found.is_over])
        one_each = (finals == np.arange(len(finals))).all() and (found.final[~found.is_over] == -1).all()
        _require(bool(one_each), "its episodes and their last observations don't belong together")

    # Reading

    def read(self, name: str, first: int, end: int, column: int | None = None) -> NDArray:
        """Rows [first, end) of a series, of one column or of all.

        Args:
            name: of the series.
            first, end: 0 <= first <= end <= its rows.
            column: a column alone, whose axis is dropped; None for all.

        Returns:
            [end - first, B, ...] or [end - first, ...]: a copy.

        Raises:
            TrajectoryError: a chunk is damaged.
        """
        series = self.series[name]
        if not 0 <= first <= end <= series.shape[0]:
            raise IndexError(f"rows {first} to {end} of {name}, which has {series.shape[0]}")
        if column is not None and not 0 <= column < series.shape[1]:
            raise IndexError(f"column {column} of {name}, which has {series.shape[1]}")
        result = np.empty((end - first, *series.shape[1:]), series.dtype)
        if column is not None:
            result = np.empty((end - first, *series.shape[2:]), series.dtype)
        if not result.size:
            return result
        height = series.chunk[0]
        for number in range(first // height, -(-end // height)):
            low, high = max(first, number * height), min(end, (number + 1) * height)
            self._read_rows(name, number, low, high, column, result[low - first : high - first])
        return result

    def _read_rows(self, name: str, number: int, low: int, high: int, column: int | None, into: NDArray) -> None:
        """Rows [low, high), which lie in chunks with that number along the first axis."""
        series = self.series[name]
        rows = slice(low - number * series.chunk[0], high - number * series.chunk[0])
        rest = (0,) * (len(series.chunk) - 2)
        if len(series.chunk) == 1:
            into[...] = self._chunk(name, (number,))[rows]
            return
        width = series.chunk[1]
        if column is not None:
            into[...] = self._chunk(name, (number, column // width, *rest))[rows, column % width]
            return
        for place in range(-(-series.shape[1] // width)):
            first, end = place * width, min((place + 1) * width, series.shape[1])
            into[:, first:end] = self._chunk(name, (number, place, *rest))[rows, : end - first]

    def _chunk(self, name: str, place: tuple[int, ...]) -> NDArray:
        if self.cache is None:
            return self._decoded(name, place)
        return self.cache.get((self.path, name, place), lambda: self._decoded(name, place))

    def _decoded(self, name: str, place: tuple[int, ...]) -> NDArray:
        series = self.series[name]
        where, nbytes = series.chunks[place], math.prod(series.chunk) * series.dtype.itemsize
        try:
            stored = os.pread(self._open(), where.size, where.first)
            unpacked = series.pipeline.decode(stored, nbytes, where.is_compressed)
            if series.dtype == np.bool_ and unpacked.max() > 1:
                raise ValueError("a bool is neither true nor false")
        except OSError as error:
            raise TrajectoryError(f"{self.path} can't be read any more: {error}.") from error
        except ValueError as error:
            raise TrajectoryError(f"{self.path} is damaged: in {name} {error}.") from error
        return unpacked.view(series.dtype).reshape(series.chunk)

    def _open(self) -> int:
        """The descriptor, which processes may share: it has no place of its own that reading would move."""
        if self._descriptor is None:
            with self._lock:
                if self._descriptor is None:
                    self._descriptor = os.open(self.path, os.O_RDONLY)
        return self._descriptor

    def verify(self) -> None:
        """Read all of it; TrajectoryError where a checksum is wrong."""
        for name, series in self.series.items():
            for place in series.chunks:
                self._decoded(name, place)

    def close(self) -> None:
        """Let go of the file, which the next read opens again; no other thread may be reading."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_descriptor", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._descriptor, self._lock = None, threading.Lock()

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            self.close()


def _read_index(
    root: h5g.GroupID, budget: int
) -> tuple[dict[str, NDArray], dict[str, SeriesIndex], dict[str, Attribute]]:
    """The tables, and where the chunks of the series lie; refuses all that is stored outside the file."""
    arrays: dict[str, NDArray] = {}
    series: dict[str, SeriesIndex] = {}
    nbytes = budget
    for name, dataset in walk(root):
        if name.startswith(_TABLES) and name != "unrolls/core_state":
            budget -= stored_bytes(name, dataset)
            _require(budget >= 0, f"{name} declares more data than the file can hold")
            arrays[name] = read_array(name, dataset)
        else:
            series[name] = _index(name, dataset, nbytes)
    _require_apart(chunk for index in series.values() for chunk in index.chunks.values())
    return arrays, series, read_attributes(root)


def _index(name: str, dataset: h5d.DatasetID, nbytes: int) -> SeriesIndex:
    plist = dataset.get_create_plist()
    # Before the shape is asked for, which opens the sources of a virtual dataset.
    _require(plist.get_layout() == h5d.CHUNKED, f"{name} is not stored in chunks")
    _require(plist.get_external_count() == 0, f"{name} is stored outside the file")
    dtype, shape, chunk = plain_dtype(name, dataset), tuple(dataset.shape), tuple(plist.get_chunk())
    _require(math.prod(chunk) * dtype.itemsize <= MAX_CHUNK_BYTES, f"{name} has chunks that are too large")
    # Only the first two axes are cut, and a row of nothing has no chunks.
    _require(all(size <= step for size, step in zip(shape[2:], chunk[2:], strict=True)), f"{name} is cut otherwise")
    counts = [-(-size // step) for size, step in zip(shape, chunk, strict=True)]
    expected = math.prod(counts) if math.prod(shape) else 0
    _require(expected <= nbytes, f"{name} declares more data than the file can hold")
    try:
        pipeline = pipeline_of(plist, dtype.itemsize)
    except ValueError as error:
        raise ValueError(f"of {name}: {error}") from error
    found: list[h5d.StoreInfo] = []

    def collect(info: h5d.StoreInfo) -> bool | None:
        found.append(info)
        return True if len(found) > expected else None

    if dataset.get_space().get_simple_extent_npoints():
        dataset.chunk_iter(collect)
    chunks = {}
    unpacked = math.prod(chunk) * dtype.itemsize
    for info in found:
        inside = info.byte_offset >= 0 and 0 < info.size <= nbytes - info.byte_offset
        _require(info.filter_mask in (0, pipeline.skipping) and inside, f"{name} has a chunk that is not its own")
        packed = info.size <= unpacked + unpacked // _PACKING_SHARE + _PACKING_BYTES
        _require(packed, f"{name} has a chunk of {info.size} bytes for {unpacked}")
        place = tuple(offset // step for offset, step in zip(info.chunk_offset, chunk, strict=True))
        known = all(number < count for number, count in zip(place, counts, strict=True))
        _require(known, f"{name} has a chunk beyond its end")
        chunks[place] = _Chunk(info.byte_offset, info.size, info.filter_mask == 0)
    _require(len(chunks) == expected, f"{name} is not stored whole")
    return SeriesIndex(shape, dtype, chunk, pipeline, chunks)


def _column(arrays: Mapping[str, NDArray], name: str, dtype: str) -> NDArray:
    """A column of a table, all of which are equally long."""
    column = arrays[name]
    _require(column.ndim == 1 and column.dtype == dtype, f"{name} is {list(column.shape)} {column.dtype}")
    first = {"unrolls": "unrolls/length", "episodes": "episodes/column"}.get(name.partition("/")[0], name)
    _require(len(column) == len(arrays[first]), f"{name} has {len(column)} rows, expected {len(arrays[first])}")
    return column


def _require_alike(name: str, found: SeriesIndex | NDArray, shape: tuple[int, ...], dtype: np.dtype) -> None:
    theirs, ours = f"{list(found.shape)} {found.dtype}", f"{list(shape)} {dtype}"
    _require(theirs == ours, f"{name} is {theirs}, expected {ours}")


def _require_apart(chunks: Iterable[_Chunk]) -> None:
    """That no two chunks share bytes: a small file could else unpack to as much as it likes."""
    end = 0
    for chunk in sorted(chunks):
        _require(chunk.first >= end, "two of its chunks lie at the same place")
        end = chunk.first + chunk.size


def _reason(error: Exception) -> str:
    """An error in one line that a terminal can show: it may quote what the file says."""
    line = " ".join((str(error) or type(error).__name__).split())
    return "".join(letter if letter.isprintable() else "?" for letter in line[:_MAX_REASON])


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)
