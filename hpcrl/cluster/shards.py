"""The flat vector of weights in shards, each with an owner and a version of its own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hpcrl.cluster.weights import Control, WeightsSubscriber

#: Shards begin at a cache line of the vector, so that owners and workers compute on equal alignments.
_GRAIN = 16


def split_weights(num_weights: int, num_shards: int) -> list[slice]:
    """Contiguous shards of a vector [N] that differ by at most 16 numbers; some are empty where N is tiny."""
    grains = -(-num_weights // _GRAIN)
    edges = [min(_GRAIN * (grains * place // num_shards), num_weights) for place in range(num_shards + 1)]
    return [slice(first, end) for first, end in pairwise(edges)]


class ShardedWeights:
    """A rank's copy of all weights, fetched shard by shard. All of it is local.

    Args:
        weights: float32 [N], the copy.
        shards: where each shard lies in it.
        subscribers: the newest of each shard.

    Attributes:
        held: the control word of each shard of the copy.
    """

    def __init__(
        self, weights: NDArray[np.float32], shards: Sequence[slice], subscribers: Sequence[WeightsSubscriber]
    ) -> None:
        self._views = [weights[shard] for shard in shards]
        self._subscribers = list(subscribers)
        self.held: list[Control] = []

    def has(self, version: int) -> bool:
        """Whether every shard is published in this version or a later one."""
        return all([subscriber.has(version) for subscriber in self._subscribers])

    def fetch(self) -> None:
        """Bring every shard of the copy up to its newest version."""
        before: Sequence[Control | None] = self.held or [None] * len(self._subscribers)
        parts = zip(self._subscribers, self._views, before, strict=True)
        self.held = [subscriber.fetch_newest(view, held) for subscriber, view, held in parts]

    @property
    def versions(self) -> list[int]:
        """The version of each shard of the copy."""
        return [control.publication for control in self.held]

    def lag(self) -> int:
        """Updates that the copy's oldest shard is behind the newest that is published of it."""
        return max(sub.newest - held.publication for sub, held in zip(self._subscribers, self.held, strict=True))

    def spread(self) -> int:
        """Updates between the newest and the oldest shard of the copy."""
        return max(self.versions) - min(self.versions)
