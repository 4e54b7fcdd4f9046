"""What a rank is doing: its phase, the seconds spent in each, and the sign of life that others watch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from hpcrl.spans import Spans


class Phase(IntEnum):
    """What the main thread of a rank is busy with."""

    STARTING = 0
    ACTING = 1  # environments and what is written of them
    INFERENCE = 2  # the network of an actor, or a learner's answers to its actors
    WAITING = 3
    TRANSPORT = 4  # unrolls and weights, in and out
    LEARNING = 5  # loss, gradient, step
    REDUCING = 6  # sums over the learners
    PUBLISHING = 7
    EVALUATING = 8
    SAVING = 9
    REPORTING = 10
    LEAVING = 11


class Activity:
    """Phase, update and time stamp of one rank's main thread.

    The stamp is an int64 [4] row of (phase, update, monotonic nanoseconds, process id) that the rank alone writes;
    `stamp` may be moved into shared memory, where the other ranks of the node read it.

    Attributes:
        spans: keeps every span of a phase from when it is set; None keeps none.
    """

    def __init__(self) -> None:
        self.stamp: NDArray[np.int64] = np.zeros(4, np.int64)
        self.spans: Spans | None = None
        self._nanoseconds = [0] * len(Phase)
        self._phase = int(Phase.STARTING)
        self._update = 0
        self._since = time.monotonic_ns()
        self.enter(Phase.STARTING)

    @property
    def phase(self) -> Phase:
        """The phase that the rank is in."""
        return Phase(self._phase)

    def enter(self, phase: Phase) -> None:
        """Count the time up to now for the phase that ends, and begin `phase`."""
        now = time.monotonic_ns()
        self._nanoseconds[self._phase] += now - self._since
        if self.spans is not None:
            self.spans.add(self._phase, self._since, now, self._update)
            self._update = int(self.stamp[1])
        self._since = now
        self._phase = phase
        self.stamp[0] = phase
        self.stamp[2] = now

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Be in `phase` for a while, then in the one before."""
        before = self.phase
        self.enter(phase)
        yield
        self.enter(before)

    def beat(self, update: int | None = None) -> None:
        """Show that the main thread lives; Local, some hundred nanoseconds."""
        if update is not None:
            self.stamp[1] = update
        self.stamp[2] = time.monotonic_ns()

    def take_seconds(self) -> NDArray[np.float64]:
        """Seconds in each phase since the last call, float64 [len(Phase)]."""
        self.enter(self.phase)
        taken, self._nanoseconds = self._nanoseconds, [0] * len(Phase)
        return np.array(taken) * 1e-9
