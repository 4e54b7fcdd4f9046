"""What both simulations are made of: events in the order of time, times that vary, and what is counted."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

#: Share of the batches that only fill the queues.
WARM_UP = 0.25
#: An unroll takes at least this part of its mean.
LEAST_SHARE = 0.1
_DRAWS = 4096


@dataclass(frozen=True)
class Simulated:
    """What was counted once the queues were filled.

    Attributes:
        env_steps_per_s, lag_mean, actor_utilisation, learner_utilisation: as of `Prediction`.
        dropped: share of the columns that were too old to learn from.
        events: that were simulated.
    """

    env_steps_per_s: float
    lag_mean: float
    actor_utilisation: float
    learner_utilisation: float
    dropped: float
    events: int


class Draws:
    """Seconds of unrolls: normal, and never below a tenth of the mean."""

    def __init__(self, seed: int, deviation: float) -> None:
        self._random, self._deviation = np.random.default_rng(seed), deviation
        self._numbers: list[float] = []

    def around(self, mean: float) -> float:
        if not self._deviation:
            return mean
        if not self._numbers:
            self._numbers = (self._random.standard_normal(_DRAWS) * self._deviation).tolist()
        return max(LEAST_SHARE * mean, mean + self._numbers.pop())


class Events:
    """What happens when."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[float, int], None], int]] = []
        self.count = 0

    def at(self, when: float, what: Callable[[float, int], None], who: int) -> None:
        self.count += 1
        heapq.heappush(self._heap, (when, self.count, what, who))

    def next(self) -> None:
        when, _, what, who = heapq.heappop(self._heap)
        what(when, who)
