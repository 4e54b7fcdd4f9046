"""How the run of a peer goes: its rate, measured as hpcrl's own, and when it reaches a goal; what all scripts take."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

_PARTS = 10
_EPISODES = 100


def parser(description: str | None) -> argparse.ArgumentParser:
    """Of NUM_ENVS, SECONDS, --goal and --seed."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("num_envs", type=int)
    parser.add_argument(
        "seconds", type=float, help="from the first env step; with --goal from the start of the process"
    )
    parser.add_argument("--goal", type=float, help="end once the mean return of the last 100 episodes reaches this")
    parser.add_argument("--seed", type=int, default=1)
    return parser


def last_100(returns: Iterable[float]) -> float | None:
    """Mean of the last 100 returns; None before there are 100."""
    newest = list(returns)[-_EPISODES:]
    return statistics.fmean(newest) if len(newest) == _EPISODES else None


class Progress:
    """Env steps over time, until the time is over or the goal is reached.

    Args:
        seconds: how long the run may take, from its first env step; from the start of the process where it has a goal.
        goal: mean return of the last 100 episodes.
    """

    def __init__(self, seconds: float, goal: float | None = None) -> None:
        self._seconds, self._goal = seconds, goal
        self._born = time.perf_counter() - _age_s()
        self._first = self._end = self._last = float("nan")
        self._points: list[tuple[float, int]] = []
        self._mean: float | None = None
        self._reached: tuple[float, int] | None = None

    def begin(self, at: float | None = None) -> None:
        """The first env step is due, or was made `at` that time of `time.perf_counter`."""
        self._first = time.perf_counter() if at is None else at
        self._end = self._seconds + (self._first if self._goal is None else self._born)

    @property
    def is_over(self) -> bool:
        """Whether the time is over or the goal is reached."""
        return self._reached is not None or time.perf_counter() >= self._end

    def add(self, env_steps: int, mean: float | None = None) -> None:
        """Env steps made and learned from so far, and the mean return of the last 100 episodes."""
        now = self._last = time.perf_counter()
        if not self._points or env_steps > self._points[-1][1]:
            self._points.append((now, env_steps))
        self._mean = mean
        if self._goal is not None and mean is not None and mean >= self._goal and now < self._end:
            self._reached = self._reached or (now, env_steps)

    def print(self) -> None:
        """One JSON line.

        It has the median rate over the parts after the first, each of a tenth of the time; with a goal also whether it
        was reached, and the seconds from the start of the process to the first env step and to the goal.
        """
        line: dict[str, float] = {"env_steps": self._points[-1][1]}
        if rates := self._rates():
            line["env_steps_per_s"] = statistics.median(rates)
        if self._goal is not None:
            line |= {"reached": int(self._reached is not None), "first_step_s": self._first - self._born}
            if self._mean is not None:
                line["return_last_100"] = self._mean
            if self._reached is not None:
                line |= {"reached_s": self._reached[0] - self._born, "env_steps": self._reached[1]}
        print(json.dumps(line), flush=True)

    def _rates(self) -> list[float]:
        """Of equal parts of the time after the first; some libraries count in steps that are longer than a part."""
        start = self._points[0][0]
        part = (self._last - start) / _PARTS
        steps = [self._steps_at(start + number * part) for number in range(1, _PARTS + 1)]
        return [(after - before) / part for before, after in itertools.pairwise(steps)] if part > 0 else []

    def _steps_at(self, time_: float) -> float:
        """On the line between the counts before and after."""
        for (before, low), (after, high) in itertools.pairwise(self._points):
            if time_ <= after:
                return low + (high - low) * (time_ - before) / (after - before)
        return self._points[-1][1]


def _age_s() -> float:
    """Seconds since this process started."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
