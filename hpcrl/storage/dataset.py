"""What a run recorded, as a dataset of torch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from hpcrl.errors import TrajectoryError
from hpcrl.storage.chunk_cache import ChunkCache
from hpcrl.storage.run_directory import RunDirectory
from hpcrl.storage.shard_reader import Shard
from hpcrl.storage.shard_table import Kind
from hpcrl.storage.trajectories import open_shards

#: Names of an item that have a row for each step, but for its observations; the last two not in every run.
_STEPS = (
    "action",
    "reward",
    "terminated",
    "truncated",
    "ended",
    "valid",
    "behaviour_log_prob",
    "value",
    "row_version",
    "discounted_return",
)
_STARTS = ("terminated", "truncated", "valid")
_BY_ENVIRONMENT = ("core_state", "policy_version", "env_index")


class TrajectoryDataset(Dataset[dict[str, Tensor]]):
    """The unrolls in a run's whole shards, one environment's column at a time, as the learner got them.

    Items come shard by shard, in a shard unroll by unroll, in an unroll column by column. One item, T being the run's
    unroll length and `...` the stored form of an observation or action:

        observation          [T+1, ...]  what each action answers to, and what follows the last one
        action               [T, ...]
        reward               float32 [T], raw
        terminated           bool [T], of the transition that leaves row t; where a life was lost too
        truncated            bool [T]
        ended                bool [T], an episode ends; a lost life ends none
        valid                bool [T], False where no step was made: a reset, a broken environment, the padding
        behaviour_log_prob   float32 [T], of the distribution that was sampled
        value                float32 [T], that the policy gave the observation
        row_version          int64 [T], learner updates in the weights; [0] but under central inference
        discounted_return    float64 [T], see `hpcrl.unroll.Unroll`; [0] where rewards were not scaled by it
        core_state           float32 [S], recurrent state before row 0
        history              [h, ...], frames before row 0, oldest first, as a policy of h + 1 stacked frames sees them
        final_observation    [F, ...], last observations of episodes that were truncated and not terminated
        final_index          int64 [F], their rows
        policy_version       int64 [], learner updates in the weights
        env_index            int64 [], global index of the environment

    An unroll that was cut short is padded to T: its last observation again, zeros and False otherwise.

    An item takes some chunks of the files, in which its neighbours lie too. Those taken apart last are kept, so that
    reading in order is fast; a shuffled reader takes a chunk apart for nearly every item. Workers of a `DataLoader`,
    forked or spawned, each open the files and keep chunks of their own:

        DataLoader(TrajectoryDataset(run_dir), batch_size=32, num_workers=2, collate_fn=TrajectoryDataset.collate)

    Args:
        run_dir: of the run, which may be under way: shards that are closed later are not seen.
        kind: "training" or "evaluation".
        cache_bytes: of the chunks that are kept.

    Attributes:
        shards: where the columns lie.

    Raises:
        TrajectoryError: there is no shard, one is damaged, or one is of another run; an item whose chunk is damaged
            raises it too.
    """

    def __init__(self, run_dir: str | Path, kind: Kind = "training", cache_bytes: int = 64 << 20) -> None:
        shards = open_shards(RunDirectory(Path(run_dir)).trajectories, kind)
        cache = ChunkCache(cache_bytes)
        for shard in shards:
            _require_alike(shards[0], shard)
            shard.cache = cache
        self.shards = shards
        self._readers = [_UnrollReader(shard) for shard in shards]
        self._ends = list(accumulate(len(reader) for reader in self._readers))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        number, inside = self._locate(index % len(self))
        return {name: torch.from_numpy(array) for name, array in self._readers[number].item(inside).items()}

    def _locate(self, index: int) -> tuple[int, int]:
        """The number of an item's shard, and of the item in it."""
        number = bisect_right(self._ends, index)
        return number, index - (self._ends[number - 1] if number else 0)

    def place(self, index: int) -> tuple[Shard, int, int]:
        """Where an item lies: the shard, and the numbers of the unroll and of the column there."""
        number, inside = self._locate(index)
        shard = self.shards[number]
        return (shard, *divmod(inside, len(shard.env_index)))

    @staticmethod
    def collate(items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Items side by side, time first, as `hpcrl.algorithms.batch.Batch` has them.

        Args:
            items: B of them.

        Returns:
            rows of all items [T, B, ...] (history [h, B, ...]); core_state [B, S], policy_version and env_index [B];
            final_observation [F, ...] of all, by row and then item, with their (t, b) as final_index int64 [F, 2].
        """
        finals = ("final_observation", "final_index")
        batch = {
            name: torch.stack([item[name] for item in items], 0 if name in _BY_ENVIRONMENT else 1)
            for name in items[0]
            if name not in finals
        }
        row = torch.cat([item["final_index"] for item in items])
        column = torch.cat([torch.full_like(item["final_index"], b) for b, item in enumerate(items)])
        order = torch.argsort(row * len(items) + column)
        batch["final_observation"] = torch.cat([item["final_observation"] for item in items])[order]
        batch["final_index"] = torch.stack([row, column], 1)[order]
        return batch


class _UnrollReader:
    """The columns of all unrolls of one shard."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        found = shard.episodes
        # Where episodes end, column by column, to be searched.
        key = self._end_key(found.column, found.end_row)[found.is_over]
        order = np.argsort(key)
        self._end_keys, self._finals = key[order], found.final[found.is_over][order]

    def __len__(self) -> int:
        return len(self._shard.unrolls["length"]) * len(self._shard.env_index)

    def item(self, index: int) -> dict[str, NDArray]:
        """The arrays of an item."""
        shard = self._shard
        unroll, column = divmod(index, len(shard.env_index))
        first, length = (int(shard.unrolls[name][unroll]) for name in ("first_row", "length"))
        lead = min(shard.about.num_history, first)
        observation = shard.read("observation", first - lead, first + length + 1, column)
        time = shard.about.unroll_length
        steps = {name: self._steps(name, first, length, time, column) for name in _STEPS}
        final_index = np.flatnonzero(steps["truncated"] & ~steps["terminated"])
        return {
            "observation": np.concatenate([observation[lead:], observation[-1:].repeat(time - length, 0)]),
            **steps,
            "core_state": self._core_state(unroll, column),
            "history": self._history(observation[: lead + 1], first, column),
            "final_observation": self._final_observations(first + final_index, column),
            "final_index": final_index,
            "policy_version": np.array(shard.unrolls["policy_version"][unroll]),
            "env_index": np.array(shard.env_index[column]),
        }

    def _steps(self, name: str, first: int, length: int, time: int, column: int) -> NDArray:
        """Rows [time, ...] of a series, of which `length` were acted; [0] where the shard has none of it."""
        series = self._shard.series.get(name)
        if series is None:
            return np.zeros(0, "int64" if name == "row_version" else "float64")
        rows = np.zeros((time, *series.shape[2:]), series.dtype)
        rows[:length] = self._shard.read(name, first, first + length, column)
        return rows

    def _core_state(self, unroll: int, column: int) -> NDArray[np.float32]:
        if not self._shard.about.state_size:
            return np.zeros(0, np.float32)
        return self._shard.read("unrolls/core_state", unroll, unroll + 1, column)[0]

    def _history(self, frames: NDArray, first: int, column: int) -> NDArray:
        """What is stacked with row `first`, which is the last of the frames [lead + 1, ...]."""
        lead = len(frames) - 1
        known = np.concatenate([self._shard.first_history[lead:, column], frames[:lead]])
        flags = (self._shard.read(name, first - lead, first, column) for name in _STARTS)
        terminated, truncated, valid = flags
        starts = np.flatnonzero(terminated | truncated | ~valid) + 1
        if len(starts):
            # Before the first frame of an episode there is that frame.
            begin = int(starts[-1])
            known[: len(known) - lead + begin] = frames[begin]
        return known

    def _final_observations(self, rows: NDArray[np.int64], column: int) -> NDArray:
        """[F, ...] of episodes that ended in these rows of the shard."""
        wanted = self._end_key(np.full_like(rows, column), rows + 1)
        places = np.searchsorted(self._end_keys, wanted)
        found = self._end_keys[np.minimum(places, len(self._end_keys) - 1)] if len(self._end_keys) else wanted[:0]
        if not np.array_equal(found, wanted):
            raise TrajectoryError(f"{self._shard.path} lacks the end of an episode that was truncated.")
        finals = [self._shard.read("finals/observation", place, place + 1) for place in self._finals[places].tolist()]
        observation = self._shard.about.observation
        return np.concatenate([np.zeros((0, *observation.shape), observation.dtype), *finals])

    def _end_key(self, column: NDArray[np.int64], end_row: NDArray[np.int64]) -> NDArray[np.int64]:
        return column * (self._shard.num_rows + 1) + end_row


def _require_alike(first: Shard, other: Shard) -> None:
    """TrajectoryError where items of two shards would not fit beside one another."""
    for name in ("observation", "action", "unroll_length"):
        mine, theirs = getattr(first.about, name), getattr(other.about, name)
        if mine != theirs:
            raise TrajectoryError(f"{other.path} has {name} {theirs}, {first.path.name} beside it has {mine}.")
    if first.memory != other.memory:
        raise TrajectoryError(
            f"{other.path} has the memory {other.memory}, {first.path.name} beside it has {first.memory}."
        )
