"""What a rank was doing when: the newest spans of its time, in a table of fixed size."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: Shorter spans are not kept; they and gaps like them do not part two spans of one phase.
SHORTEST_NS = 1000


class SpanTable(NamedTuple):
    """Spans of one rank, oldest first; they do not overlap.

    Attributes:
        phase, update: int64 [N]: what the rank was doing, and the learner updates it knew of when it began.
        begin, end: int64 [N], nanoseconds of the rank's monotonic clock.
        left_out: older spans that were kept no longer.
    """

    phase: NDArray[np.int64]
    begin: NDArray[np.int64]
    end: NDArray[np.int64]
    update: NDArray[np.int64]
    left_out: int


class Spans:
    """A ring of spans, made once and never grown.

    Args:
        capacity: spans that it keeps, of at least 1; then the newest replaces the oldest.
    """

    def __init__(self, capacity: int) -> None:
        self._rows = np.zeros((4, capacity), np.int64)
        # Single numbers go through memory views at a third of what numpy takes for them.
        self._phase, self._begin, self._end, self._update = (row.data for row in self._rows)
        self._capacity = capacity
        self._made = 0
        self._newest = -1
        self._phase[-1] = -1

    def add(self, phase: int, begin: int, end: int, update: int) -> None:
        """Keep a span that begins where the last one ended, or later. Local, under a microsecond."""
        if end - begin < SHORTEST_NS:
            return
        place = self._newest
        if phase == self._phase[place] and update == self._update[place] and begin - self._end[place] < SHORTEST_NS:
            self._end[place] = end
            return
        place = self._newest = place + 1 if place + 1 < self._capacity else 0
        self._phase[place] = phase
        self._begin[place] = begin
        self._end[place] = end
        self._update[place] = update
        self._made += 1

    def table(self) -> SpanTable:
        """A copy of what is kept. Local."""
        kept = min(self._made, self._capacity)
        places = np.arange(self._made - kept, self._made) % self._capacity
        phase, begin, end, update = self._rows[:, places]
        return SpanTable(phase, begin, end, update, self._made - kept)
