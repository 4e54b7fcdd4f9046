"""Times of parts of work, on the host and in a queue that is behind."""

from __future__ import annotations

import time

from hpcrl.devices.stopwatch import HostStamp, Stopwatch


class Clock:
    """Moments at 0, 1, 3, 6, 10 ... seconds, of which only the first few have come."""

    def __init__(self) -> None:
        self.given, self.come = 0, 0

    def now(self) -> Moment:
        self.given += 1
        return Moment(self, self.given - 1)


class Moment:
    def __init__(self, clock: Clock, number: int) -> None:
        self._clock, self.number = clock, number

    def has_come(self) -> bool:
        return self.number < self._clock.come

    def seconds_since(self, earlier: Moment) -> float:
        assert self.has_come() and earlier.has_come()
        return float(sum(range(earlier.number + 1, self.number + 1)))


def test_parts_are_added_over_all_pieces_that_are_over() -> None:
    clock = Clock()
    watch = Stopwatch(clock.now)
    assert watch.seconds() == {}
    for parts in (("forward", "backward"), ("forward", "step"), ("forward",)):
        watch.begin()
        for part in parts:
            watch.lap(part)
    assert watch.seconds() == {}
    clock.come = 5
    assert watch.seconds() == {"forward": 1, "backward": 2}
    clock.come = 6
    assert watch.seconds() == {"forward": 1 + 4, "backward": 2, "step": 5}
    clock.come = 8
    assert watch.seconds() == {"forward": 1 + 4 + 7, "backward": 2, "step": 5}


def test_what_lies_between_two_pieces_is_no_part() -> None:
    watch = Stopwatch(HostStamp)
    for _ in range(2):
        watch.begin()
        watch.lap("quick")
        time.sleep(0.02)
        watch.begin()
        time.sleep(0.02)
        watch.lap("slow")
    seconds = watch.seconds()
    assert seconds["slow"] >= 0.04 > seconds["quick"]
