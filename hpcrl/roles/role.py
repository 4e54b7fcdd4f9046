"""What the loop of any rank offers to the trainer, and to reports."""

from __future__ import annotations

from typing import Protocol

from numpy.typing import NDArray

from hpcrl.cluster.weights import Control
from hpcrl.metrics import MeanReducer, Range
from hpcrl.roles.account import Account


class Role(Protocol):
    """The loop of one rank.

    Attributes:
        reducer: means over the updates that this rank reports; None where it reports none.
        unrolls_cut: that this rank reports, since the start.
    """

    @property
    def reducer(self) -> MeanReducer | None: ...

    @property
    def unrolls_cut(self) -> int: ...

    def start(self) -> Control:
        """Take or publish the first weights."""

    def advance(self) -> Control:
        """One step of the loop, up to a boundary at most."""

    def take_counts(self) -> dict[str, float]:
        """Columns of a report that are sums over the ranks, since the last call. Local."""

    def take_ranges(self) -> dict[str, Range]:
        """Parts of the columns PREFIX + "min", "mean" and "max" of a report, by prefix, since the last call. Local."""

    def take_episodes(self) -> NDArray:
        """Episodes that this rank reports, since the last call: dtype EPISODE. Local."""

    @property
    def account(self) -> Account:
        """What became of what this rank made or took. Local."""
