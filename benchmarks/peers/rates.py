"""The rate of a peer's run, measured as hpcrl's own: a median over equal parts after the first."""

from __future__ import annotations

import itertools
import json
import statistics
import time

_PARTS = 10


class Progress:
    """Env steps over time, from when training begins."""

    def __init__(self) -> None:
        self._points: list[tuple[float, int]] = []

    def add(self, env_steps: int) -> None:
        """Env steps made and learned from so far."""
        self._points.append((time.perf_counter(), env_steps))

    def print_rate(self) -> None:
        """One JSON line: the median rate over the parts after the first, each of a tenth of the time."""
        (start, _), (end, steps) = self._points[0], self._points[-1]
        edges = [self._points[0]]
        for point in self._points[1:]:
            if point[0] >= start + (end - start) * len(edges) / _PARTS:
                edges.append(point)
        rates = [(after[1] - before[1]) / (after[0] - before[0]) for before, after in itertools.pairwise(edges)]
        print(json.dumps({"env_steps_per_s": statistics.median(rates[1:]), "env_steps": steps}), flush=True)
