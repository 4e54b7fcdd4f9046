"""Polite waiting: poll briefly, then sleep. A rank that spins steals the core of the one it waits for."""

from __future__ import annotations

import time
from collections.abc import Callable

from hpcrl.activity import Activity, Phase
from hpcrl.cluster.mpi import Request

_POLLS = 20
_FIRST_SLEEP_S = 20e-6
_LONGEST_SLEEP_S = 5e-4


class Waiter:
    """Waits on the main thread, shows that it lives, and looks after what must go on meanwhile.

    Args:
        activity: gets the time as WAITING and the signs of life.
        watch: called now and then while waiting; raises where the wait is in vain (a stuck rank).
    """

    def __init__(self, activity: Activity, watch: Callable[[], None] = lambda: None) -> None:
        self.activity = activity
        self.watch = watch
        self._background: list[Request] = []

    def in_background(self, request: Request) -> None:
        """A request whose progress must not stop while this rank waits for something else."""
        self._background = [pending for pending in self._background if not pending.Test()]
        self._background.append(request)

    def tick(self) -> None:
        """For the loops of a rank at work: show that it lives, and look after the others. Local."""
        self.activity.beat()
        self.watch()

    def until(self, ready: Callable[[], bool], phase: Phase = Phase.WAITING) -> None:
        """Return once `ready()`. Signal handlers run meanwhile."""
        for _ in range(_POLLS):
            if ready():
                return
        with self.activity.during(phase):
            delay = _FIRST_SLEEP_S
            while not ready():
                for pending in self._background:
                    pending.Test()
                time.sleep(delay)
                delay = min(delay * 1.5, _LONGEST_SLEEP_S)
                self.tick()

    def request(self, request: Request, phase: Phase = Phase.COMMUNICATING) -> None:
        """Return once a non-blocking operation is complete."""
        self.until(request.Test, phase)
