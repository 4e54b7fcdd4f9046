"""One preset."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from hpcrl.config import TrainConfig


class Preset(NamedTuple):
    """A configuration that is known to learn.

    Attributes:
        name: as `--preset` takes it.
        make: makes the configuration; its docstring names the source of the values and the result that was measured.
        threshold: what `rollout/return_last_100` reaches; None where no return is promised.
    """

    name: str
    make: Callable[[], TrainConfig]
    threshold: float | None = None

    @property
    def algorithm(self) -> str:
        """The algorithm that it is for."""
        return self.make().algorithm

    @property
    def description(self) -> str:
        """What its docstring says, in one line."""
        return " ".join((self.make.__doc__ or "").split())
