"""Behaviour policies that differ from the one that learns."""

from __future__ import annotations

import torch
from torch import Tensor


def mix_uniform(logits: Tensor, epsilon: float) -> Tensor:
    """Logits of the mixture that takes a uniformly random one of n choices with probability `epsilon`.

    Args:
        logits: float32 [..., n].
        epsilon: in [0, 1].

    Returns:
        float32 [..., n], normalised: log((1 - epsilon) * softmax(logits) + epsilon / n).
    """
    return torch.log((1 - epsilon) * torch.softmax(logits, -1) + epsilon / logits.shape[-1])
