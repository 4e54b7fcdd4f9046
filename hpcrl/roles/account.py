"""Where unrolls went: none is lost without a word."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class UnrollAccount:
    """What became of unrolls: each is learned from once, or dropped, or still under way when a run ends."""

    acted: int = 0
    learned: int = 0
    dropped: int = 0

    def __add__(self, other: UnrollAccount) -> UnrollAccount:
        return UnrollAccount(self.acted + other.acted, self.learned + other.learned, self.dropped + other.dropped)

    @property
    def under_way(self) -> int:
        """Neither learned from nor dropped."""
        return self.acted - self.learned - self.dropped
