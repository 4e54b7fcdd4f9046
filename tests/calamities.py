"""Environments that break in more than one way, for tests of the command line: `--env tests.calamities:calamity`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from tests.environments import Breaking

#: How the episodes of seeds break whose remainder by 30 is the key.
_HOW = {7: "raise", 17: "sleep", 27: "crash"}
#: Steps of an episode that breaks, until then, and of all others.
STEPS_BEFORE, STEPS = 2, 10


class Calamity(Breaking):
    """Breaks in the third step of the episodes of seeds that end in 7: raises, sleeps for ever or crashes.

    Args:
        spared: ways in which it does not break; such episodes raise.
    """

    def __init__(self, spared: Collection[str] = ()) -> None:
        super().__init__("step")
        self._spared = spared

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        how = _HOW.get((seed or 0) % 30, "raise")
        self._how = "raise" if how in self._spared else how
        return super().reset(seed=seed, options=options)

    def _observe(self) -> np.ndarray:
        return np.array([self._seed % 7, self._steps], np.float32)


def calamity() -> Calamity:
    """Raises, sleeps or crashes."""
    return Calamity()


def trouble() -> Calamity:
    """Raises or sleeps."""
    return Calamity(spared={"crash"})


def mishap() -> Calamity:
    """Raises."""
    return Calamity(spared={"crash", "sleep"})


def is_broken(seed: int) -> bool:
    """Whether the episode of a seed breaks."""
    return seed % 10 == 7
