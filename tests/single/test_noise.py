"""The counter-based generator: known answers, a transcription in plain integers, and how it is dealt out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcrl.noise import Purpose, UniformsAhead, philox4x32, seeds, uniforms

word = st.integers(0, 2**32 - 1)

#: kat_vectors of Random123: counter, key, result.
KNOWN = (
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
)


def words(text: str) -> list[int]:
    return [int(part, 16) for part in text.split()]


def slow_philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 in plain integers."""
    x, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * x[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * x[2], 2**32)
        x = [high1 ^ x[1] ^ k[0], low1, high0 ^ x[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return x


def fast_philox(counter: list[int], key: list[int]) -> list[int]:
    return philox4x32(np.array(counter, np.uint32), np.array(key, np.uint32)).tolist()


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter: str, key: str, expected: str) -> None:
    assert fast_philox(words(counter), words(key)) == words(expected)
    assert slow_philox(words(counter), words(key)) == words(expected)


@settings(max_examples=100, deadline=None)
@given(st.lists(word, min_size=4, max_size=4), st.lists(word, min_size=2, max_size=2))
def test_equals_the_transcription(counter: list[int], key: list[int]) -> None:
    assert fast_philox(counter, key) == slow_philox(counter, key)


def test_many_counters_and_keys_at_once() -> None:
    rng = np.random.default_rng(0)
    counter, key = (
        rng.integers(2**32, size=(5, 3, 4), dtype=np.uint32),
        rng.integers(2**32, size=(3, 2), dtype=np.uint32),
    )
    got = philox4x32(counter, key)
    for i, j in np.ndindex(5, 3):
        assert got[i, j].tolist() == slow_philox(counter[i, j].tolist(), key[j].tolist())


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    first_step=st.integers(0, 2**40),
    cuts=st.tuples(st.integers(0, 8), st.integers(0, 5)),
    count=st.integers(1, 9),
)
def test_numbers_do_not_depend_on_how_they_are_dealt(
    seed: int, first_step: int, cuts: tuple[int, int], count: int
) -> None:
    envs, steps = np.arange(8), first_step + np.arange(5)[:, None]
    whole = uniforms(seed, envs, steps, Purpose.ACTION, count)
    blocks = [uniforms(seed, part, steps, Purpose.ACTION, count) for part in np.split(envs, [cuts[0]])]
    rows = [uniforms(seed, envs, part, Purpose.ACTION, count) for part in np.split(steps, [cuts[1]])]
    one_by_one = [uniforms(seed, envs, int(step), Purpose.ACTION, count) for step in steps[:, 0]]
    assert whole.shape == (5, 8, count) and whole.dtype == np.float32
    assert np.array_equal(np.concatenate(blocks, 1), whole)
    assert np.array_equal(np.concatenate(rows), whole)
    assert np.array_equal(np.stack(one_by_one), whole)
    ahead = UniformsAhead(seed, envs, Purpose.ACTION, count)
    assert np.array_equal(np.stack([ahead.at(int(step)) for step in steps[::-1, 0]])[::-1], whole)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    bit=st.integers(0, 62),
    step=st.integers(0, 2**60),
    step_bit=st.integers(0, 59),
)
def test_every_bit_of_seed_and_step_counts(seed: int, bit: int, step: int, step_bit: int) -> None:
    one = uniforms(seed, 3, step, Purpose.ACTION, 8)
    assert not np.array_equal(one, uniforms(seed ^ (1 << bit), 3, step, Purpose.ACTION, 8))
    assert not np.array_equal(one, uniforms(seed, 3, step ^ (1 << step_bit), Purpose.ACTION, 8))
    assert not np.array_equal(one, uniforms(seed, 4, step, Purpose.ACTION, 8))


def test_purposes_share_no_numbers() -> None:
    drawn = [seeds(7, np.arange(50)[:, None], np.arange(40), purpose) for purpose in Purpose]
    assert len(np.unique(drawn)) == len(Purpose) * 50 * 40


def test_more_than_one_block_repeats_nothing() -> None:
    numbers = uniforms(1, np.arange(4), 0, Purpose.ACTION, 64)
    assert len(np.unique(numbers)) == numbers.size


def test_a_block_serves_neighbours_in_its_stream() -> None:
    counter = np.array([5, 1, 77, Purpose.ACTION << 16], np.uint32)
    block = philox4x32(counter, np.array([9, 3], np.uint32))
    first = 4 * (5 + 2**32)
    expected = ((block >> 9) + 0.5) / 2**23
    seed = 9 + 3 * 2**32
    assert uniforms(seed, 77, first + np.arange(4), Purpose.ACTION, 1)[:, 0].tolist() == expected.tolist()
    assert uniforms(seed, 77, first // 2 + np.arange(2), Purpose.ACTION, 2).ravel().tolist() == expected.tolist()


@pytest.mark.parametrize(("num_streams", "count"), [(0, 1), (1, 1), (3, 2), (5000, 1), (1, 20000)])
def test_numbers_made_ahead_over_several_tables(num_streams: int, count: int) -> None:
    stream = 4 + np.arange(num_streams)
    ahead = UniformsAhead(6, stream, Purpose.EVALUATION_ACTION, count)
    for step in (0, 1, 3, 4, 2, 16383, 16384, 2**40 + 7, 5):
        got = ahead.at(step)
        assert got.dtype == np.float32 and got.flags.c_contiguous
        assert np.array_equal(got, uniforms(6, stream, step, Purpose.EVALUATION_ACTION, count))


@pytest.mark.parametrize("filling", [0, 2**32 - 1])
def test_the_interval_is_open(monkeypatch: pytest.MonkeyPatch, filling: int) -> None:
    monkeypatch.setattr("hpcrl.noise._scramble", lambda counter, _: tuple(np.full_like(counter, filling)))
    number = float(uniforms(0, 0, 0, Purpose.ACTION, 1)[0])
    assert 0 < number < 1 and np.isfinite(np.log(np.float32(number)))


def test_numbers_are_uniform() -> None:
    numbers = uniforms(5, np.arange(64), np.arange(500)[:, None], Purpose.ACTION, 2)
    for part in (numbers[..., 0], numbers[..., 1], numbers[:, :1], numbers[:1]):
        counts, _ = np.histogram(part, bins=16, range=(0, 1))
        expected = part.size / 16
        # Of 15 degrees of freedom: above 60 once in two million draws.
        assert ((counts - expected) ** 2 / expected).sum() < 60


def test_seeds_are_of_63_bits_and_broadcast() -> None:
    drawn = seeds(9, np.arange(100)[:, None], np.arange(30), Purpose.EPISODE_SEED)
    assert drawn.shape == (100, 30) and drawn.dtype == np.int64
    assert drawn.min() >= 0 and drawn.max() > 2**62
    assert np.bitwise_or.reduce(drawn.ravel()) == 2**63 - 1
    assert int(drawn[17, 3]) == int(seeds(9, 17, 3, Purpose.EPISODE_SEED))
