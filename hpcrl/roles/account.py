"""Where unrolls and gradients went: none is lost without a word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self


class Account(Protocol):
    """Of one rank, or the sum over ranks."""

    def __add__(self, other: Self) -> Self: ...

    def describe(self) -> str:
        """One line for people."""


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

    def describe(self) -> str:
        """One line for people."""
        return (
            f"unrolls: {self.acted:,} filled, {self.learned:,} learned from, {self.dropped:,} dropped as too old, "
            f"{self.under_way:,} under way at the end"
        )


@dataclass(frozen=True)
class GradientAccount:
    """What became of gradients: each is applied once to every shard, or dropped before any shard got it.

    Attributes:
        pushed: gradients that workers made.
        dropped: as too old, by their workers.
        applied: by the owner of each shard.
    """

    pushed: int
    dropped: int
    applied: tuple[int, ...]

    def __add__(self, other: GradientAccount) -> GradientAccount:
        applied = tuple(mine + theirs for mine, theirs in zip(self.applied, other.applied, strict=True))
        return GradientAccount(self.pushed + other.pushed, self.dropped + other.dropped, applied)

    @property
    def under_way(self) -> tuple[int, ...]:
        """Neither applied nor dropped, of each shard: none once a run is over."""
        return tuple(self.pushed - self.dropped - applied for applied in self.applied)

    def describe(self) -> str:
        """One line for people."""
        applied, shards = " + ".join(f"{count:,}" for count in self.applied), ""
        if len(self.applied) > 1:
            shards = f" (on {len(self.applied)} shards)"
            if len(set(self.applied)) == 1:
                applied, shards = f"{self.applied[0]:,}", f" (on each of {len(self.applied)} shards)"
        return f"gradients: {self.pushed:,} pushed, {applied} applied{shards}, {self.dropped:,} dropped as too old"
