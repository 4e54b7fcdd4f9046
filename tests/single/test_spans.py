"""The recorder of spans: bounded, the newest kept, no two at once, and nothing where nobody asks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcrl.activity import Activity, Phase
from hpcrl.spans import SHORTEST_NS, Spans

_MS = 1_000_000


def _rows(spans: Spans) -> list[tuple[int, ...]]:
    table = spans.table()
    return list(zip(*(column.tolist() for column in table[:4]), strict=True))


def test_spans_come_back_in_order() -> None:
    spans = Spans(10)
    assert _rows(spans) == [] and spans.table().left_out == 0
    spans.add(1, 0, _MS, 0)
    spans.add(2, _MS, 3 * _MS, 7)
    assert _rows(spans) == [(1, 0, _MS, 0), (2, _MS, 3 * _MS, 7)]


@pytest.mark.parametrize("capacity", [1, 2, 5])
def test_a_full_ring_keeps_the_newest_and_counts_the_rest(capacity: int) -> None:
    spans = Spans(capacity)
    for number in range(12):
        spans.add(number % 3, number * _MS, (number + 1) * _MS, number)
    table = spans.table()
    assert table.update.tolist() == list(range(12 - capacity, 12))
    assert table.begin.tolist() == [number * _MS for number in range(12 - capacity, 12)]
    assert table.left_out == 12 - capacity


def test_one_phase_in_pieces_is_one_span() -> None:
    spans = Spans(10)
    spans.add(4, 0, _MS, 3)
    spans.add(4, _MS, 2 * _MS, 3)
    spans.add(5, 2 * _MS, 2 * _MS + SHORTEST_NS - 1, 3)
    spans.add(4, 2 * _MS + SHORTEST_NS - 1, 4 * _MS, 3)
    assert _rows(spans) == [(4, 0, 4 * _MS, 3)]


@pytest.mark.parametrize(("phase", "gap", "update"), [(5, 0, 3), (4, SHORTEST_NS, 3), (4, 0, 4)])
def test_another_phase_a_gap_or_an_update_parts_spans(phase: int, gap: int, update: int) -> None:
    spans = Spans(10)
    spans.add(4, 0, _MS, 3)
    spans.add(phase, _MS + gap, 2 * _MS, update)
    assert len(_rows(spans)) == 2


def test_what_is_too_short_is_not_kept() -> None:
    spans = Spans(10)
    for number in range(100):
        spans.add(number % 2, number * 10, number * 10 + 10, 0)
    assert _rows(spans) == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3 * SHORTEST_NS))), st.integers(1, 20))
def test_spans_never_overlap_and_lose_no_more_than_the_short_ones(turns: list[tuple[int, int]], capacity: int) -> None:
    spans, now = Spans(capacity), 0
    for phase, length in turns:
        spans.add(phase, now, now + length, 0)
        now += length
    table = spans.table()
    assert len(table.begin) <= capacity
    assert (table.begin[1:] >= table.end[:-1]).all()
    assert (table.end - table.begin >= SHORTEST_NS).all()
    if not table.left_out:
        short = sum(length for _, length in turns if length < SHORTEST_NS)
        assert (table.end - table.begin).sum() >= now - short


class Clock:
    """Time passes only where a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0
        monkeypatch.setattr("hpcrl.activity.time.monotonic_ns", lambda: self.now)


def test_an_activity_keeps_spans_only_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    activity = Activity()
    clock.now = 5 * _MS
    activity.enter(Phase.ACTING)
    activity.spans = spans = Spans(100)
    for update in (1, 2):
        clock.now += _MS
        activity.take_seconds()
        clock.now += _MS
        with activity.during(Phase.WAITING):
            clock.now += 3 * _MS
        activity.beat(update=update)
        activity.enter(Phase.LEARNING)
        clock.now += _MS
        activity.enter(Phase.ACTING)
    activity.spans = None
    clock.now += _MS
    activity.enter(Phase.LEAVING)
    acting, waiting, learning = Phase.ACTING, Phase.WAITING, Phase.LEARNING
    assert [(phase, begin / _MS, end / _MS, update) for phase, begin, end, update in _rows(spans)] == [
        (acting, 5, 7, 0),
        (waiting, 7, 10, 0),
        (learning, 10, 11, 1),
        (acting, 11, 13, 1),
        (waiting, 13, 16, 1),
        (learning, 16, 17, 2),
    ]


def test_seconds_are_those_of_the_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    activity = Activity()
    with activity.during(Phase.LEARNING):
        clock.now += 20 * _MS
    seconds = activity.take_seconds()
    assert seconds.dtype == np.float64 and seconds.shape == (len(Phase),)
    assert seconds[Phase.LEARNING] == pytest.approx(0.02) and seconds.sum() == pytest.approx(0.02)
    assert not activity.take_seconds().any()
