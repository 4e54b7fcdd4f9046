"""Writes what one actor records: shards of whole unrolls, each of which counts once it is closed and renamed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpcrl.noise import Purpose
from hpcrl.spaces import Task
from hpcrl.storage.chunks import Compression
from hpcrl.storage.growing import GrowingFile, Series
from hpcrl.storage.segments import Segments
from hpcrl.storage.shard_table import FORMAT_VERSION, UNROLL_COLUMNS, About, Block, Row, series_of
from hpcrl.unroll import Memory

_SEEDED_FOR = {"training": Purpose.EPISODE_SEED, "evaluation": Purpose.EVALUATION_SEED}


@dataclass(frozen=True)
class ShardOptions:
    """How shards are written.

    Attributes:
        directory: where.
        shard_bytes: a shard that has so many is closed, and the next one begun.
        compression: of its chunks.
    """

    directory: Path
    shard_bytes: int = 256 << 20
    compression: Compression = "gzip"


class ShardWriter:
    """The shards of one actor, one after the other. Local.

    Args:
        options: how.
        about: the first shard; `number`, `first_env_step` and `env_steps` are those of each as it is begun.
        task, memory: of the run.
        env_index: int64 [B], global indices of the environments recorded.

    Attributes:
        stored_bytes: in closed shards.
        next_number: of the shard that is begun next.

    Raises:
        OSError: the disk refuses; on any call. The open shard is lost then, and the next call begins another.
    """

    def __init__(
        self,
        options: ShardOptions,
        about: About,
        task: Task,
        memory: Memory,
        env_index: NDArray[np.int64],
    ) -> None:
        self._options, self._about, self._env_index = options, about, env_index
        self._task, self._memory = task, memory
        self._shard: _OpenShard | None = None
        self.stored_bytes = 0

    @property
    def next_number(self) -> int:
        return self._about.number

    def append(self, block: Block, env_steps: int) -> None:
        """Add a block, of a run that has learned from `env_steps` steps."""
        try:
            if self._shard is None:
                self._shard = self._begin(block, env_steps)
            self._shard.append(block)
            if self._shard.stored_bytes >= self._options.shard_bytes:
                self.close()
        except OSError:
            self._give_up()
            raise

    def close(self) -> None:
        """Close the open shard, durably; nothing where there is none."""
        if self._shard is None:
            return
        try:
            self.stored_bytes += self._shard.commit()
        except OSError:
            self._give_up()
            raise
        self._shard = None

    def _begin(self, block: Block, env_steps: int) -> _OpenShard:
        self._options.directory.mkdir(parents=True, exist_ok=True)
        about = replace(self._about, first_env_step=block.header["first_env_step"], env_steps=env_steps)
        self._about = replace(self._about, number=self._about.number + 1)
        path = self._options.directory / shard_name(about)
        file = GrowingFile(path, self._options.compression)
        rows = series_of(self._task, self._memory, len(self._env_index), "row_version" in block.series)
        return _OpenShard(file, about, rows, self._memory, self._env_index, block)

    def _give_up(self) -> None:
        shard, self._shard = self._shard, None
        if shard is not None:
            shard.discard()


def shard_name(about: About) -> str:
    """Name of the file: `actor00003-0007.h5`, or `evaluation00003-0007.h5`."""
    role = "actor" if about.kind == "training" else "evaluation"
    return f"{role}{about.actor:05d}-{about.number:04d}.h5"


class _OpenShard:
    def __init__(
        self, file: GrowingFile, about: About, rows: list[Row], memory: Memory, env_index: NDArray, first: Block
    ) -> None:
        self._file, self._about, self._env_index = file, about, env_index
        self._series = {row.name: file.series(row.name, row.shape, row.dtype) for row in rows}
        finals = first.final_observation
        self._finals = file.series("finals/observation", finals.shape[1:], finals.dtype)
        self._core_state: Series | None = None
        if memory.state_size:
            self._core_state = file.series("unrolls/core_state", first.core_state.shape, np.dtype("float32"))
        # The frames before a later unroll are rows of the shard.
        self._history = first.history.copy()
        self._unrolls: list[list[int]] = []
        self._segments = Segments(first)
        self._num_rows, self._next_observation = 0, first.next_observation

    @property
    def stored_bytes(self) -> int:
        return self._file.stored_bytes

    def append(self, block: Block) -> None:
        for name, series in self._series.items():
            series.extend(block.series[name])
        self._finals.extend(block.final_observation)
        if self._core_state is not None:
            self._core_state.extend(block.core_state[None])
        self._segments.add(block)
        length = len(block.episode_number)
        self._unrolls.append([self._num_rows, length, *(block.header[name] for name in UNROLL_COLUMNS[2:])])
        self._num_rows += length
        self._next_observation = block.next_observation.copy()
        self._file.check()

    def commit(self) -> int:
        self._series["observation"].extend(self._next_observation[None])
        table = np.array(self._unrolls, np.int64).reshape(-1, len(UNROLL_COLUMNS))
        arrays: dict[str, NDArray] = {"env_index": self._env_index, "unrolls/first_history": self._history}
        arrays |= {f"unrolls/{name}": table[:, number] for number, name in enumerate(UNROLL_COLUMNS)}
        purpose = _SEEDED_FOR[self._about.kind]
        episodes = self._segments.table(self._env_index, int(self._about.config["seed"]), purpose)
        arrays |= {f"episodes/{name}": column for name, column in episodes._asdict().items()}
        self._file.commit(arrays, {"format_version": FORMAT_VERSION, "about": self._about.as_text()})
        return self._file.stored_bytes

    def discard(self) -> None:
        self._file.discard()
