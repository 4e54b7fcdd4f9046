"""Counter-based random numbers: the same (seed, environment, step, purpose) gives the same number on any layout.

Nothing here has state, so a resumed run needs its counters only, and a run that is dealt out over another
number of ranks draws the same numbers.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_ROUNDS = 10


class Purpose(IntEnum):
    """What a number is drawn for; each purpose is a stream of its own."""

    EPISODE_SEED = 0
    ACTION = 1
    EVALUATION_SEED = 2
    EVALUATION_ACTION = 3


def philox4x32(counter: NDArray[np.uint32], key: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 4).

    Args:
        counter: uint32 [..., 4].
        key: uint32 [..., 2], broadcast against the counter's leading axes.

    Returns:
        uint32 [..., 4], uniform and independent for distinct (counter, key).
    """
    x0, x1, x2, x3 = (counter[..., i].astype(np.uint64) for i in range(4))
    key0, key1 = key[..., 0].astype(np.uint64), key[..., 1].astype(np.uint64)
    for _ in range(_ROUNDS):
        product0, product1 = x0 * _MULTIPLIERS[0], x2 * _MULTIPLIERS[1]
        x0, x1 = (product1 >> _SHIFT) ^ x1 ^ key0, product1 & _LOW
        x2, x3 = (product0 >> _SHIFT) ^ x3 ^ key1, product0 & _LOW
        key0, key1 = (key0 + np.uint64(_WEYL[0])) & _LOW, (key1 + np.uint64(_WEYL[1])) & _LOW
    return np.stack(np.broadcast_arrays(x0, x1, x2, x3), axis=-1).astype(np.uint32)


def _blocks(seed: int, stream: ArrayLike, step: ArrayLike, purpose: Purpose, num_blocks: int) -> NDArray[np.uint32]:
    """uint32 [..., num_blocks * 4] for every pair of the broadcast integer arrays `stream` and `step`."""
    stream, step = np.broadcast_arrays(np.asarray(stream, np.uint64), np.asarray(step, np.uint64))
    counter = np.empty((*stream.shape, num_blocks, 4), np.uint32)
    counter[..., 0] = (step & _LOW)[..., None]
    counter[..., 1] = (step >> _SHIFT)[..., None]
    counter[..., 2] = stream[..., None]
    # Purpose and block share a word: 16 bits of purpose leave 65536 blocks of four numbers a step.
    counter[..., 3] = (int(purpose) << 16) + np.arange(num_blocks, dtype=np.uint32)
    key = np.array([seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF], np.uint32)
    return philox4x32(counter, key).reshape(*stream.shape, num_blocks * 4)


def uniforms(seed: int, stream: ArrayLike, step: ArrayLike, purpose: Purpose, count: int) -> NDArray[np.float32]:
    """Uniform numbers in the open interval (0, 1).

    Args:
        seed: the run's seed, 0 <= seed < 2**64.
        stream: global environment index (or episode index), integers below 2**32, broadcast against `step`.
        step: how many numbers the stream has used before, integers below 2**64.
        purpose: what they are for.
        count: how many for each (stream, step), at most 262144.

    Returns:
        float32 [..., count].
    """
    words = _blocks(seed, stream, step, purpose, -(-count // 4))[..., :count]
    # 23 bits and a half keep both ends out after rounding to float32, so that a logarithm is always finite.
    return ((words >> np.uint32(9)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)


def seeds(seed: int, stream: ArrayLike, step: ArrayLike, purpose: Purpose) -> NDArray[np.int64]:
    """Seeds for `env.reset`: int64 [...] in [0, 2**63), one for every pair of `stream` and `step`."""
    words = _blocks(seed, stream, step, purpose, 1).astype(np.uint64)
    return ((words[..., 0] | (words[..., 1] << _SHIFT)) >> np.uint64(1)).astype(np.int64)
