"""Shards of the weights: they cover the vector, and each arrives whole, as new as it was seen, on its own."""

from __future__ import annotations

import tests.no_mpi  # noqa: F401

# isort: split
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import hpcrl.cluster.weights as weights_module
from hpcrl.cluster.shards import ShardedWeights, split_weights
from hpcrl.cluster.weights import WeightsSubscriber, pack
from tests.asynchronous import Published
from tests.single.test_weights_ring import (
    NUM_WEIGHTS,
    PASSING_OVER,
    Writer,
    control_of,
    make_memory,
    make_ring,
    read_piece_by_piece,
    weights_of,
)


@pytest.mark.parametrize("num_shards", range(1, 10))
def test_shards_cover_the_vector_in_order_at_cache_lines_and_are_nearly_equal(num_shards: int) -> None:
    for num_weights in (*range(201), 9155):
        shards = split_weights(num_weights, num_shards)
        assert len(shards) == num_shards and all(shard.step is None for shard in shards)
        assert [number for shard in shards for number in range(shard.start, shard.stop)] == list(range(num_weights))
        assert all(shard.start % 16 == 0 for shard in shards)
        sizes = [shard.stop - shard.start for shard in shards]
        assert min(sizes) >= 0 and max(sizes) - min(sizes) <= 16


class Sharded:
    """Three shards of a vector, the second one without weights, each with publications of its own."""

    def __init__(self) -> None:
        self.weights = np.full(7, -1, np.float32)
        self.shards = [slice(0, 3), slice(3, 3), slice(3, 7)]
        self.published = [Published(shard.stop - shard.start) for shard in self.shards]
        self.copy = ShardedWeights(self.weights, self.shards, [each.subscriber() for each in self.published])

    def publish(self, shard: int, version: int) -> None:
        size = self.shards[shard].stop - self.shards[shard].start
        weights = np.full(size, 100 * shard + version, np.float32)
        self.published[shard].write(version, weights, env_steps=1000 * shard + version, boundaries=shard)


def test_every_shard_is_brought_to_its_own_newest_version() -> None:
    sharded = Sharded()
    for shard, version in enumerate((4, 9, 6)):
        assert not sharded.copy.has(0)
        sharded.publish(shard, version)
    assert sharded.copy.has(0) and sharded.copy.has(4) and not sharded.copy.has(5)
    assert (sharded.weights == -1).all()
    sharded.copy.fetch()
    assert sharded.weights.tolist() == [4, 4, 4, 206, 206, 206, 206]
    assert sharded.copy.versions == [4, 9, 6] and sharded.copy.spread() == 5 and sharded.copy.lag() == 0
    assert [control.env_steps for control in sharded.copy.held] == [4, 1009, 2006]
    assert [control.boundaries for control in sharded.copy.held] == [0, 1, 2]


def test_the_lag_is_that_of_the_shard_furthest_behind_and_fetching_ends_it() -> None:
    sharded = Sharded()
    for shard in range(3):
        sharded.publish(shard, 0)
    sharded.copy.fetch()
    assert (sharded.copy.lag(), sharded.copy.spread()) == (0, 0)
    for shard, version, lag in ((2, 1, 1), (0, 5, 5), (2, 4, 5), (1, 7, 7)):
        sharded.publish(shard, version)
        assert sharded.copy.lag() == lag and sharded.copy.versions == [0, 0, 0] and sharded.copy.spread() == 0
    sharded.copy.fetch()
    assert (sharded.copy.lag(), sharded.copy.versions, sharded.copy.spread()) == (0, [5, 7, 4], 3)
    assert sharded.weights.tolist() == [5, 5, 5, 204, 204, 204, 204]


def test_a_shard_that_is_at_hand_is_not_copied_again() -> None:
    sharded = Sharded()
    for shard in range(3):
        sharded.publish(shard, 2)
    sharded.copy.fetch()
    held = sharded.copy.held
    sharded.weights[:] = 77
    sharded.publish(2, 3)
    sharded.copy.fetch()
    assert sharded.weights.tolist() == [77, 77, 77, 203, 203, 203, 203]
    assert sharded.copy.held[0] is held[0] and sharded.copy.held[2] is not held[2]


class ShardWriter(Writer):
    """A writer of one of two shards: what it publishes differs from what the other does under the same number."""

    def __init__(self, shard: int, memory: NDArray[np.uint8], publications: list[int]) -> None:
        self._shard = shard
        super().__init__(memory, publications, None)

    def _fill(self, message: NDArray[np.uint8], number: int) -> None:
        whole = np.zeros_like(message)
        pack(whole, control_of(number), shard_of(self._shard, number))
        for first in range(0, len(message), 4):
            if not np.array_equal(message[first : first + 4], whole[first : first + 4]):
                message[first : first + 4] = whole[first : first + 4]
                self._pause()


def shard_of(shard: int, number: int) -> NDArray[np.float32]:
    return weights_of(number) + np.float32(1000 * shard)


STEPS = st.sampled_from([0, 0, 0, 1, 2, 5, 12, 25])
MOVES = st.lists(st.tuples(STEPS, STEPS), min_size=8, max_size=40)
STARTS = st.tuples(st.integers(12, 60), st.integers(12, 60))


@settings(max_examples=250, deadline=None)
@given(publications=st.tuples(PASSING_OVER, PASSING_OVER), starts=STARTS, moves=MOVES)
def test_no_interleaving_tears_a_shard_or_brings_an_older_one(
    publications: tuple[list[int], list[int]], starts: tuple[int, int], moves: list[tuple[int, int]]
) -> None:
    memories, remaining = [make_memory(), make_memory()], iter(moves)
    writers = [ShardWriter(shard, memories[shard], publications[shard]) for shard in range(2)]

    def move(steps: tuple[int, int]) -> None:
        for writer, count in zip(writers, steps, strict=True):
            for _ in range(count):
                writer.advance()

    def pause() -> None:
        move(next(remaining, (0, 0)))

    move(starts)
    subscribers = [WeightsSubscriber(make_ring(memory, pause), None) for memory in memories]
    weights, shards = (
        np.zeros(2 * NUM_WEIGHTS, np.float32),
        [slice(0, NUM_WEIGHTS), slice(NUM_WEIGHTS, 2 * NUM_WEIGHTS)],
    )
    sharded = ShardedWeights(weights, shards, subscribers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights_module, "unpack", read_piece_by_piece(pause))
        for _ in range(4):
            if not sharded.has(0):
                pause()
                continue
            seen = [subscriber.newest for subscriber in subscribers]
            sharded.fetch()
            for shard, version in enumerate(sharded.versions):
                assert version >= seen[shard] and version in publications[shard]
                assert sharded.held[shard] == control_of(version)
                assert np.array_equal(weights[shards[shard]], shard_of(shard, version))
    for writer in writers:
        writer.finish()
    sharded.fetch()
    assert sharded.versions == [numbers[-1] for numbers in publications] and sharded.lag() == 0
    assert sharded.spread() == abs(publications[0][-1] - publications[1][-1])
