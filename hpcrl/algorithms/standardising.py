"""Advantages with mean 0 and deviation 1 over the valid steps of all learners."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcrl.algorithms.moments import Total

#: Added to a deviation before it divides.
_EPSILON = 1e-8


def standardise(advantages: Tensor, valid: Tensor, total: Total) -> Tensor:
    """Advantages by the mean and deviation over valid steps, in float64: float32 [T, B].

    Args:
        advantages: float32 [T, B].
        valid: bool [T, B].
        total: sums float64 [n] over whoever shares the statistics.

    Returns:
        float32 [T, B], on the device of the advantages; no numbers where nobody has a valid step.
    """
    chosen = advantages.double().masked_fill_(~valid, 0.0)
    sums = total(torch.stack([valid.sum(), chosen.sum(), chosen.square().sum()]))
    mean, deviation = _mean_and_deviation(sums)
    return ((advantages - mean) / deviation).float()


@dataclass(frozen=True)
class Standardiser:
    """A `hpcrl.algorithms.loss.Normaliser` that knows its mean and deviation, so that nothing is summed for it.

    Attributes:
        mean, deviation: no numbers where nobody has a valid step.
    """

    mean: float
    deviation: float

    def __call__(self, advantages: Tensor, valid: Tensor) -> Tensor:
        """Of advantages float32 [T, B] and `valid`, bool [T, B]: float32 [T, B]. Local."""
        return (advantages - self.mean) / self.deviation


def standardisers(advantages: Tensor, valid: Tensor, dealt: Tensor, parts: int, total: Total) -> list[Standardiser]:
    """Those of the parts that the steps are dealt out to, by one sum. Collective over whoever `total` sums over.

    Args:
        advantages: float32 [T, B], on the host as all others are.
        valid: bool [T, B].
        dealt: int64 [T, B] or [B], the part of each step.
        parts: how many there are.
        total: sums float64 [3, parts].
    """
    chosen = advantages.double().masked_fill_(~valid, 0.0)
    part = dealt.expand(valid.shape).flatten()
    sums = [torch.bincount(part, each.flatten(), parts) for each in (valid.double(), chosen, chosen.square())]
    means, deviations = _mean_and_deviation(total(torch.stack(sums)))
    return list(map(Standardiser, means.tolist(), deviations.tolist()))


def _mean_and_deviation(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Of counts, sums and sums of squares, float64 [3, ...]; the deviation with what keeps it from 0."""
    count, summed, squares = sums.unbind()
    mean = summed / count
    return mean, (squares / count - mean * mean).clamp(min=0.0).sqrt() + _EPSILON
