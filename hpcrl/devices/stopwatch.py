"""How long the parts of a piece of work take, on the host or in an accelerator's queue."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar


class Stamp(Protocol):
    """A moment, now or soon."""

    def has_come(self) -> bool:
        """Whether it is over."""

    def seconds_since(self, earlier: Any) -> float:
        """Time between two moments of the same kind that have come."""


S = TypeVar("S", bound=Stamp)


class HostStamp:
    """Now, on the host."""

    def __init__(self) -> None:
        self._at = time.perf_counter()

    def has_come(self) -> bool:
        return True

    def seconds_since(self, earlier: HostStamp) -> float:
        return self._at - earlier._at


class Stopwatch(Generic[S]):
    """Seconds of every part, over all pieces of work.

    Args:
        now: the present moment; of a queue the one when all that is in it will be done.
    """

    def __init__(self, now: Callable[[], S]) -> None:
        self._now = now
        self._seconds: dict[str, float] = defaultdict(float)
        self._pieces: list[list[tuple[str, S]]] = []

    def begin(self) -> None:
        """A piece of work begins."""
        self._settle()
        self._pieces.append([("", self._now())])

    def lap(self, part: str) -> None:
        """A part of the piece ends here, and the next one begins."""
        self._pieces[-1].append((part, self._now()))

    def seconds(self) -> dict[str, float]:
        """Of every part of all pieces so far that are over."""
        self._settle()
        return dict(self._seconds)

    def _settle(self) -> None:
        """Count the pieces that are over. They come in order."""
        while self._pieces and self._pieces[0][-1][1].has_come():
            stamps = self._pieces.pop(0)
            for (_, start), (part, end) in itertools.pairwise(stamps):
                self._seconds[part] += end.seconds_since(start)
