"""Where unrolls went: none is lost without a word."""

from __future__ import annotations

from typing import NamedTuple


class UnrollAccount(NamedTuple):
    """What became of unrolls: each is learned from once, or dropped, or still under way when a run ends."""

    acted: int
    learned: int
    dropped: int

    @property
    def under_way(self) -> int:
        """Neither learned from nor dropped."""
        return self.acted - self.learned - self.dropped
