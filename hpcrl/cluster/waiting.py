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

    Attributes:
        is_crowded: ranks of this node share CPUs (so it is taken to be until somebody knows better): even a short wait
            leaves the core to others.
        chores: what must go on whatever this rank waits for or works at: each is called often, and says whether it
            found something to do.
    """

    def __init__(self, activity: Activity, watch: Callable[[], None] = lambda: None) -> None:
        self.activity = activity
        self.watch = watch
        self.is_crowded = True
        self.chores: list[Callable[[], bool]] = []

    def tick(self) -> None:
        """For the loops of a rank at work: show that it lives, and look after the others. Local."""
        self.activity.beat()
        for chore in self.chores:
            chore()
        self.watch()

    def until(
        self, ready: Callable[[], bool], phase: Phase = Phase.WAITING, longest_sleep_s: float = _LONGEST_SLEEP_S
    ) -> None:
        """Return once `ready()`. Signal handlers run meanwhile."""
        for _ in range(_POLLS):
            if ready():
                return
        with self.activity.during(phase):
            delay = _FIRST_SLEEP_S
            while not ready():
                self.activity.beat()
                self.watch()
                # No chore is left out because another had something to do.
                if any([chore() for chore in self.chores]):
                    delay = _FIRST_SLEEP_S
                    continue
                time.sleep(delay)
                delay = min(delay * 1.5, longest_sleep_s)

    def request(self, request: Request, phase: Phase = Phase.WAITING) -> None:
        """Return once a non-blocking operation is complete."""
        self.until(request.Test, phase)
