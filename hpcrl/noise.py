"""Counter-based random numbers: the same (seed, environment, step, purpose) gives the same number on any layout.

Nothing here has state, so a resumed run needs its counters only, and a run that is dealt out over another
number of ranks draws the same numbers.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_ROUNDS = 10
_PER_BLOCK = np.uint64(4)


class Purpose(IntEnum):
    """What a number is drawn for; each purpose is a stream of its own."""

    EPISODE_SEED = 0
    ACTION = 1
    EVALUATION_SEED = 2
    EVALUATION_ACTION = 3
    MINIBATCH = 4


def philox4x32(counter: NDArray[np.uint32], key: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 4).

    Args:
        counter: uint32 [..., 4].
        key: uint32 [..., 2], broadcast against the counter's leading axes.

    Returns:
        uint32 [..., 4], uniform and independent for distinct (counter, key).
    """
    shape = np.broadcast_shapes(counter.shape[:-1], key.shape[:-1])
    words = np.empty((4, *shape), np.uint64)
    words[:] = np.moveaxis(np.broadcast_to(counter, (*shape, 4)), -1, 0)
    return np.stack(_scramble(words, key.astype(np.uint64)), axis=-1).astype(np.uint32)


def _scramble(counter: NDArray[np.uint64], key: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], ...]:
    """Philox of words below 2**32: counters [4, ...], overwritten, and keys [..., 2] -> four arrays [...]."""
    x0, x1, x2, x3 = counter
    high = np.empty_like(x0)
    key0, key1 = key[..., 0], key[..., 1]
    for _ in range(_ROUNDS):
        x0 *= _MULTIPLIERS[0]
        x2 *= _MULTIPLIERS[1]
        np.right_shift(x2, _SHIFT, out=high)
        x1 ^= high
        x1 ^= key0
        np.right_shift(x0, _SHIFT, out=high)
        x3 ^= high
        x3 ^= key1
        x2 &= _LOW
        x0 &= _LOW
        x0, x1, x2, x3 = x1, x2, x3, x0
        key0, key1 = (key0 + _WEYL[0]) & _LOW, (key1 + _WEYL[1]) & _LOW
    return x0, x1, x2, x3


def _blocks(seed: int, stream: ArrayLike, block: ArrayLike, purpose: Purpose) -> tuple[NDArray[np.uint64], ...]:
    """Four words, uint64 [...] below 2**32, for every pair of the broadcast integer arrays `stream` and `block`."""
    stream, block = np.asarray(stream, np.uint64), np.asarray(block, np.uint64)
    counter = np.empty((4, *np.broadcast_shapes(stream.shape, block.shape)), np.uint64)
    counter[0] = block & _LOW
    counter[1] = block >> _SHIFT
    counter[2] = stream
    counter[3] = int(purpose) << 16
    return _scramble(counter, np.array([seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF], np.uint64))


def _open_unit(words: NDArray[np.uint32]) -> NDArray[np.float32]:
    """(word // 512 + 1/2) / 2**23, float32 in the open interval (0, 1); the words are overwritten.

    23 bits and a half keep both ends out, so that a logarithm is always finite.
    """
    words >>= np.uint32(9)
    # As the fraction of a float in [1, 2): the subtraction is exact, and cheaper than a conversion.
    words |= np.uint32(0x3F800000)
    numbers = words.view(np.float32)
    numbers -= np.float32(1 - 2.0**-24)
    return numbers


def uniforms(seed: int, stream: ArrayLike, step: ArrayLike, purpose: Purpose, count: int) -> NDArray[np.float32]:
    """Uniform numbers in the open interval (0, 1).

    A stream of one purpose is one sequence, of which step s takes the numbers s * count to (s + 1) * count - 1.

    Args:
        seed: the run's seed, 0 <= seed < 2**64.
        stream: global environment index (or episode index), integers below 2**32, broadcast against `step`.
        step: how often the stream was drawn from before, integers; (step + 1) * count at most 2**64.
        purpose: what they are for.
        count: how many for each (stream, step); the same at every step.

    Returns:
        float32 [..., count].
    """
    place = np.asarray(step, np.uint64)[..., None] * np.uint64(count) + np.arange(count, dtype=np.uint64)
    words = _blocks(seed, np.asarray(stream, np.uint64)[..., None], place // _PER_BLOCK, purpose)
    return _open_unit(np.choose((place % _PER_BLOCK).astype(np.intp), words).astype(np.uint32))


class UniformsAhead:
    """`uniforms` of B streams for one step after the other, made ahead for many steps at once.

    A call of the generator costs as much for one number as for a thousand, and neighbours in a stream share a block.
    """

    _NUMBERS = 16384

    def __init__(self, seed: int, stream: NDArray[np.int64], purpose: Purpose, count: int) -> None:
        self._seed, self._stream, self._purpose, self._count = seed, stream, purpose, count
        # A multiple of four, so that every table begins with a block.
        self._ahead = 4 * max(1, self._NUMBERS // (4 * max(1, len(stream) * count)))
        self._first = -self._ahead
        self._table = np.empty((0, len(stream), count), np.float32)

    def at(self, step: int) -> NDArray[np.float32]:
        """`uniforms(seed, stream, step, purpose, count)`: float32 [B, count], not to be written to."""
        if not 0 <= step - self._first < self._ahead:
            self._first = step - step % self._ahead
            self._table = self._draw()
        return self._table[step - self._first]

    def _draw(self) -> NDArray[np.float32]:
        """float32 [ahead, B, count] from step `first` on."""
        num_envs, num_blocks = len(self._stream), self._ahead * self._count // 4
        block = np.uint64(self._first * self._count // 4) + np.arange(num_blocks, dtype=np.uint64)
        words = np.empty((num_blocks, 4, num_envs), np.uint32)
        for number, word in enumerate(_blocks(self._seed, self._stream, block[:, None], self._purpose)):
            words[:, number] = word
        numbers = _open_unit(words).reshape(self._ahead, self._count, num_envs)
        return np.ascontiguousarray(numbers.transpose(0, 2, 1))


def seeds(seed: int, stream: ArrayLike, step: ArrayLike, purpose: Purpose) -> NDArray[np.int64]:
    """Seeds for `env.reset`: int64 [...] in [0, 2**63), one for every pair of `stream` and `step`."""
    low, high, _, _ = _blocks(seed, stream, step, purpose)
    return ((low | (high << _SHIFT)) >> np.uint64(1)).astype(np.int64)
