"""Spans of several ranks as one trace: named, on one clock, with the updates that each rank knew of."""

from __future__ import annotations

import numpy as np

from hpcrl.activity import Phase
from hpcrl.cluster.layout import Layout, plan_layout
from hpcrl.roles.tracing import RankTrace, trace_events
from hpcrl.spans import SpanTable

_LAYOUT = plan_layout(["left", "right"], "auto", "split", 4)


def _trace(*spans: tuple[Phase, int, int, int], left_out: int = 0, began: int = 1000) -> RankTrace:
    phase, begin, end, update = np.array(spans, np.int64).T
    return RankTrace("host", began, SpanTable(phase, begin, end, update, left_out), int(end[-1]))


def _events(kind: str, traces: list[RankTrace], layout: Layout = _LAYOUT) -> list[dict]:
    return [event for event in trace_events(traces, layout) if event["ph"] == kind]


_LEARNER = _trace((Phase.LEARNING, 3000, 7000, 0), (Phase.PUBLISHING, 7000, 8000, 1), (Phase.LEARNING, 8000, 20_000, 1))
_ACTOR = _trace((Phase.ACTING, 2000, 7500, 0), (Phase.WAITING, 7500, 9000, 0), (Phase.ACTING, 9000, 12_000, 1))


def test_spans_are_complete_events_in_microseconds() -> None:
    events = _events("X", [_LEARNER, _ACTOR])
    assert events[0] == {
        "name": "learning",
        "cat": "learner",
        "ph": "X",
        "pid": 0,
        "tid": 0,
        "ts": 2.0,
        "dur": 4.0,
        "args": {"update": 0},
    }
    assert [(event["pid"], event["name"]) for event in events[3:]] == [(1, "acting"), (1, "waiting"), (1, "acting")]


def test_ranks_are_named_by_what_they_do() -> None:
    left_out = _trace((Phase.ACTING, 2000, 7000, 0), left_out=1234)
    names = {(event["pid"], event["name"]): event["args"] for event in _events("M", [_LEARNER, left_out])}
    assert names[0, "process_name"] == {"name": "rank 0 (learner)"}
    assert names[1, "process_name"] == {"name": "rank 1 (actor)"}
    assert names[0, "process_labels"] == {"labels": "host"}
    assert names[1, "process_labels"] == {"labels": "host, 1,234 earlier spans left out"}
    colocated = plan_layout(["left"], "auto", "split", 4)
    assert _events("M", [_LEARNER], colocated)[0]["args"] == {"name": "rank 0 (learner, actor)"}


def test_counters_tell_updates_and_how_far_an_actor_is_behind() -> None:
    learner, actor = ([e for e in _events("C", [_LEARNER, _ACTOR]) if e["pid"] == rank] for rank in (0, 1))
    assert [(e["name"], e["ts"], e["args"]["updates"]) for e in learner] == [
        ("learner updates", 2.0, 0),
        ("learner updates", 6.0, 1),
    ]
    # Before its first span nobody knows what the learner had.
    assert [(e["name"], e["ts"], e["args"]["updates"]) for e in actor] == [
        ("updates behind", 6.5, 1),
        ("updates behind", 8.0, 0),
    ]


def test_a_clock_that_drifts_is_put_right() -> None:
    origin = 10**15
    spans = [(Phase.ACTING, origin + 10**9 * second, origin + 10**9 * (second + 1), 0) for second in range(10)]
    shifted = _trace(*spans, began=origin).shifted(500, 1500)
    assert (shifted.began, shifted.ended) == (origin + 500, origin + 10**10 + 1500)
    expected = [origin + 10**9 * second + 500 + 100 * second for second in range(10)]
    assert shifted.spans.begin.tolist() == expected
    assert shifted.spans.end[:-1].tolist() == expected[1:]
