"""Which columns of a dataset are learned from, and which of their steps."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcrl.storage.dataset import TrajectoryDataset
from hpcrl.storage.shard_reader import Shard
from hpcrl.storage.stitching import WholeEpisodes


class Selection:
    """The columns with steps of episodes that are whole and good enough; all columns and steps where all will do.

    Args:
        dataset: of the columns.
        min_return: that an episode has at least; None for all there is.

    Attributes:
        items: int64 [M], numbers of the columns in the dataset.

    Raises:
        TrajectoryError: a chunk of a shard is damaged.
    """

    def __init__(self, dataset: TrajectoryDataset, min_return: float | None) -> None:
        self._dataset = dataset
        self._masks: dict[int, NDArray[np.bool_]] | None = None
        self.items = np.arange(len(dataset))
        if min_return is not None:
            self._masks = _masks(dataset.shards, min_return)
            rows = [_any_in_unroll(shard, self._masks[id(shard)]) for shard in dataset.shards]
            self.items = np.flatnonzero(np.concatenate(rows))

    def chosen(self, item: int) -> Tensor:
        """Bool [T]: steps of a column of the dataset that are learned from, if they are valid."""
        shard, unroll, column = self._dataset.place(item)
        chosen = torch.ones(shard.about.unroll_length, dtype=torch.bool)
        if self._masks is not None:
            first, length = (int(shard.unrolls[name][unroll]) for name in ("first_row", "length"))
            chosen[:length] = torch.from_numpy(self._masks[id(shard)][first : first + length, column])
        return chosen


def _masks(shards: list[Shard], min_return: float) -> dict[int, NDArray[np.bool_]]:
    """Rows of good episodes, bool [N, B] for each shard."""
    masks = {id(shard): np.zeros((shard.num_rows, len(shard.env_index)), np.bool_) for shard in shards}
    for episode in WholeEpisodes(shards):
        if episode.episode_return >= min_return:
            for part in episode.parts:
                masks[id(part.shard)][part.first_row : part.end_row, part.column] = True
    return masks


def _any_in_unroll(shard: Shard, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether an unroll has such a row in a column: bool [U * B], in the order of the dataset's items."""
    return np.logical_or.reduceat(mask, shard.unrolls["first_row"], axis=0).reshape(-1)


def most_ends(shards: list[Shard]) -> int:
    """Most episodes that end in one column of one unroll."""
    most = 0
    for shard in shards:
        over, first_row = shard.episodes.is_over, shard.unrolls["first_row"]
        unroll = np.searchsorted(first_row, shard.episodes.end_row[over] - 1, "right") - 1
        column = unroll * len(shard.env_index) + shard.episodes.column[over]
        most = max(most, int(np.bincount(column).max(initial=0)))
    return most
