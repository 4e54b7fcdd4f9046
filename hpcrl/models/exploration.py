"""Uniformly random choices, mixed with those of a policy."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcrl.models.masks import FORBIDDEN


def mix_uniform(logits: Tensor, epsilon: float) -> Tensor:
    """Logits of the mixture that takes, with probability `epsilon`, a uniformly random one of the allowed choices.

    Args:
        logits: float32 [..., n]; those of choices that are not allowed are `FORBIDDEN`.
        epsilon: in [0, 1].

    Returns:
        float32 [..., n], normalised: log((1 - epsilon) * softmax(logits) + epsilon / number of allowed choices), and
        `FORBIDDEN` as before.
    """
    probabilities = (1 - epsilon) * torch.softmax(logits, -1)
    forbidden = logits <= FORBIDDEN
    if not forbidden.any():
        return torch.log(probabilities + epsilon / logits.shape[-1])
    # In float64 and rounded once, as above: no row depends on the masks of others.
    share = (epsilon / (~forbidden).sum(-1, keepdim=True, dtype=torch.float64)).to(logits.dtype)
    return torch.log(probabilities + share).masked_fill_(forbidden, FORBIDDEN)
