"""The trace of a run: what every rank did when, on rank 0's clock, as chrome://tracing and Perfetto read it."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpcrl.activity import Activity, Phase
from hpcrl.cluster.clocks import clock_offsets
from hpcrl.cluster.collectives import gather
from hpcrl.cluster.layout import Layout
from hpcrl.cluster.ranks import Ranks
from hpcrl.cluster.waiting import Waiter
from hpcrl.spans import Spans, SpanTable
from hpcrl.storage.durable import write_durably

#: Spans that a rank keeps, and all ranks together: at some 110 bytes each, what a browser still opens.
SPANS_OF_A_RANK = 100_000
SPANS_OF_A_RUN = 2_000_000
_PHASES = [phase.name.lower() for phase in Phase]
_EVENTS_A_TICK = 1000


class RankTrace(NamedTuple):
    """What one rank brings to the trace: its host, when it began, its spans, and its clock at the end."""

    host: str
    began: int
    spans: SpanTable
    ended: int

    def shifted(self, first: int, last: int) -> RankTrace:
        """The same on another clock, which is `first` nanoseconds ahead when the trace began and `last` at its end."""

        def shift(times: NDArray[np.int64]) -> NDArray[np.int64]:
            share = (times - self.began) / max(self.ended - self.began, 1)
            return times + first + np.rint(share * (last - first)).astype(np.int64)

        spans = self.spans._replace(begin=shift(self.spans.begin), end=shift(self.spans.end))
        return RankTrace(self.host, self.began + first, spans, self.ended + last)


class Tracing:
    """Keeps spans from when it is made. Collective over the world to make, and where told.

    Args:
        ranks, activity, waiter: of this rank.
    """

    def __init__(self, ranks: Ranks, activity: Activity, waiter: Waiter) -> None:
        self._ranks, self._activity, self._waiter = ranks, activity, waiter
        self._began = time.monotonic_ns()
        activity.enter(Phase.STARTING)
        activity.spans = Spans(max(1, min(SPANS_OF_A_RANK, SPANS_OF_A_RUN // ranks.size)))
        self._offsets, self._errors = clock_offsets(ranks.world, ranks.layout.node_of, waiter)

    def write(self, path: Path, about: Mapping[str, Any]) -> Path | None:
        """Rank 0 writes the trace; its path, None elsewhere and where the disk refuses. Collective over the world.

        Args:
            path: the file, on rank 0.
            about: what the trace says of the run.
        """
        world, waiter = self._ranks.world, self._waiter
        # Clocks drift apart by some microseconds a second: measured at both ends, and taken as even in between.
        offsets, errors = clock_offsets(world, self._ranks.layout.node_of, waiter)
        self._activity.enter(Phase.SAVING)
        spans, self._activity.spans = self._activity.spans, None
        assert spans is not None
        mine = RankTrace(os.uname().nodename, self._began, spans.table(), time.monotonic_ns())
        traces = gather(world, mine, waiter)
        if self._ranks.rank != 0:
            return None
        shifts = zip(traces, self._offsets.tolist(), offsets.tolist(), strict=True)
        aligned = [trace.shifted(first, last) for trace, first, last in shifts]
        facts = dict(about) | {
            "spans_left_out": {str(rank): trace.spans.left_out for rank, trace in enumerate(traces)},
            "clock_error_us": float(max(self._errors.max(), errors.max())) * 1e-3,
        }
        try:
            write_durably(path, lambda temporary: self._dump(temporary, aligned, facts))
        except OSError as error:
            warnings.warn(f"TRACE NOT WRITTEN: {path}: {error}", RuntimeWarning, stacklevel=2)
            return None
        return path

    def _dump(self, path: Path, traces: list[RankTrace], facts: dict[str, Any]) -> None:
        with path.open("w") as file:
            file.write(f'{{"displayTimeUnit": "ms", "otherData": {json.dumps(facts)}, "traceEvents": [')
            separator = "\n"
            for number, event in enumerate(trace_events(traces, self._ranks.layout)):
                file.write(separator + json.dumps(event, separators=(",", ":")))
                separator = ",\n"
                if number % _EVENTS_A_TICK == 0:
                    self._waiter.tick()
            file.write("\n]}\n")


def trace_events(traces: list[RankTrace], layout: Layout) -> Iterator[dict[str, Any]]:
    """Events of all ranks, whose times are of one clock; the first rank to begin does so at 0."""
    origin = min(trace.began for trace in traces)
    for rank, trace in enumerate(traces):
        roles = [role for role, ranks in (("learner", layout.learners), ("actor", layout.actors)) if rank in ranks]
        yield from _names(rank, trace, ", ".join(roles))
        yield from _complete_events(rank, trace.spans, ",".join(roles), origin)
        if rank in layout.learners:
            changed = np.flatnonzero(np.diff(trace.spans.update, prepend=-1))
            yield from _counter(
                rank, "learner updates", trace.spans.begin[changed], trace.spans.update[changed], origin
            )
        else:
            yield from _counter(rank, "updates behind", *_behind(trace.spans, traces[0].spans), origin)


def _names(rank: int, trace: RankTrace, roles: str) -> Iterator[dict[str, Any]]:
    left_out = f", {trace.spans.left_out:,} earlier spans left out" if trace.spans.left_out else ""
    for name, args in (
        ("process_name", {"name": f"rank {rank} ({roles})"}),
        ("process_labels", {"labels": f"{trace.host}{left_out}"}),
        ("process_sort_index", {"sort_index": rank}),
        ("thread_name", {"name": "main thread"}),
    ):
        yield {"name": name, "ph": "M", "pid": rank, "tid": 0, "args": args}


def _complete_events(rank: int, spans: SpanTable, category: str, origin: int) -> Iterator[dict[str, Any]]:
    columns = (spans.phase, spans.begin - origin, spans.end - spans.begin, spans.update)
    for phase, begin, length, update in zip(*(column.tolist() for column in columns), strict=True):
        yield {
            "name": _PHASES[phase],
            "cat": category,
            "ph": "X",
            "pid": rank,
            "tid": 0,
            "ts": begin / 1000,
            "dur": length / 1000,
            "args": {"update": update},
        }


def _counter(
    rank: int, name: str, times: NDArray[np.int64], values: NDArray[np.int64], origin: int
) -> Iterator[dict[str, Any]]:
    for at, value in zip((times - origin).tolist(), values.tolist(), strict=True):
        yield {"name": name, "ph": "C", "pid": rank, "tid": 0, "ts": at / 1000, "args": {"updates": value}}


def _behind(actor: SpanTable, learner: SpanTable) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Times at which the actor's weights came to be other updates behind the learner's, and how many."""
    places = np.searchsorted(learner.begin, actor.begin, side="right") - 1
    known = places >= 0
    behind = np.maximum(learner.update[places[known]] - actor.update[known], 0)
    changed = np.flatnonzero(np.diff(behind, prepend=-1))
    return actor.begin[known][changed], behind[changed]
