"""Running mean and variance of numbers that several learners see parts of."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

#: Added to a variance before its root.
_EPSILON = 1e-8

#: Sums float64 [n] over all learners. Collective over them.
Total = Callable[[Tensor], Tensor]


class RunningMoments:
    """Mean and variance of N numbers over all that was seen, in float64.

    Batches are merged as in Chan, Golub and LeVeque 1983 ("Algorithms for computing the sample variance", eq. 2.1),
    from sums around the mean so far (at first that of the first batch), which lose no digits where it is far from 0.

    Attributes:
        count: seen so far.
        mean, variance: float64 [N]; 0 and 1 before there is anything.
    """

    def __init__(self, size: int) -> None:
        self.count = 0.0
        self.mean = torch.zeros(size, dtype=torch.float64)
        self._squares = torch.zeros(size, dtype=torch.float64)

    @property
    def variance(self) -> Tensor:
        return self._squares / self.count if self.count else torch.ones_like(self.mean)

    @property
    def scale(self) -> Tensor:
        """One over the standard deviation, float64 [N]."""
        return (self.variance + _EPSILON).rsqrt()

    def add(self, rows: Tensor, total: Total) -> None:
        """Take in rows [M, N] of this learner and those of all others. Collective over the learners."""
        rows = rows.to(torch.float64)
        if not self.count:
            count, summed = _totals(total, len(rows), rows.sum(0))
            self.mean = summed / max(1.0, count)
        distance = rows - self.mean
        added, sums = _totals(total, len(rows), torch.cat([distance.sum(0), distance.square().sum(0)]))
        if not added:
            return
        first, second = sums.split([len(self.mean)] * 2)
        shift = first / added
        # Of the new numbers around their own mean, and of both groups around the common one.
        self._squares += second - added * shift.square()
        self._squares += shift.square() * (self.count * added / (self.count + added))
        self.mean += shift * (added / (self.count + added))
        self.count += added

    def state(self) -> dict[str, Tensor]:
        """Arrays for a checkpoint, float64."""
        return {
            "count": torch.tensor([self.count], dtype=torch.float64),
            "mean": self.mean.clone(),
            "squares": self._squares.clone(),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to what `state` returned."""
        self.count = float(state["count"][0])
        self.mean.copy_(state["mean"])
        self._squares.copy_(state["squares"])


def _totals(total: Total, count: int, sums: Tensor) -> tuple[float, Tensor]:
    """A count and float64 [n] over all learners. Collective over them."""
    both = total(torch.cat([torch.tensor([count], dtype=torch.float64), sums]))
    return float(both[0]), both[1:]
