"""Calls that hang in this process, and how they are interrupted."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sized
from types import FrameType
from typing import Any, TypeVar

from hpcrl.errors import EnvironmentFailure

_T = TypeVar("_T")
_TICKS = 4


class Hung(BaseException):
    """Raised in the middle of a call that takes too long; no Exception, as many an environment catches all of those."""


class Watch:
    """Interrupts a call in this process that makes no progress, by a timer that is not touched from call to call.

    The timer ticks four times in `timeout_s`; a call that four ticks in a row find where it was is interrupted, so
    between 1 and 1.25 `timeout_s` after it began. Ticks are counted, not seconds, as a process that was stopped in
    between did not hang. The timer stops at the first tick that finds nothing to watch.

    Main thread only. What hangs in C code, without ever coming back to Python, is not interrupted. Watches may begin
    and stop one within the other: the timer and the handler of SIGALRM that were there go on afterwards.

    Args:
        timeout_s: None watches nothing.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._is_on = timeout_s is None  # one that watches nothing is never turned on
        self._progress: Sized | None = None
        self._end = 0
        self._seen: tuple[Sized | None, int] = None, 0
        self._ticks = 0
        self._before: tuple[Any, float, float] = None, 0.0, 0.0

    def begin(self, progress: Sized, end: int) -> None:
        """Expect `progress` to grow until its length is `end`; raises Hung where it does not."""
        self._end = end
        self._progress = progress
        if not self._is_on:
            self._turn_on()

    def pause(self) -> None:
        """Expect nothing."""
        self._progress = None

    def _turn_on(self) -> None:
        assert self._timeout_s is not None
        self._is_on = True
        handler = signal.signal(signal.SIGALRM, self._tick)
        interval = self._timeout_s / _TICKS
        self._before = (handler, *signal.setitimer(signal.ITIMER_REAL, interval, interval))

    def stop(self) -> None:
        """Expect nothing, and leave timer and handler as they were, unless another watch has begun since."""
        self._progress = None
        if self._timeout_s is None or signal.getsignal(signal.SIGALRM) != self._tick:
            return
        handler, rest_s, interval_s = self._before
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
        signal.setitimer(signal.ITIMER_REAL, rest_s, interval_s)
        self._is_on = False

    def _tick(self, _number: int, _frame: FrameType | None) -> None:
        progress = self._progress
        if progress is None:
            self.stop()
            return
        seen, self._seen = self._seen, (progress, len(progress))
        if progress is not seen[0] or len(progress) != seen[1]:
            self._ticks = 0
            return
        self._ticks += 1
        if self._ticks >= _TICKS and len(progress) < self._end:
            self._ticks = 0
            raise Hung(f"no answer within {self._timeout_s:g} s")


def guarded_call(function: Callable[[], _T], timeout_s: float | None) -> _T:
    """`function()`, interrupted where it takes longer than `timeout_s` seconds (None: no limit), as `Watch` does.

    Raises:
        EnvironmentFailure: it was interrupted; its cause says where.
    """
    done: list[_T] = []
    watch = Watch(timeout_s)
    watch.begin(done, 1)
    try:
        done.append(function())
    except Hung as hung:
        raise EnvironmentFailure(str(hung)) from hung
    finally:
        watch.stop()
    return done[0]
