"""Changes to the logits of choices before one is drawn: choices that are not allowed, and uniformly random ones."""

from __future__ import annotations

import torch
from torch import Tensor

#: Logit of a choice that is not allowed. Its probability is exactly 0 beside any logit of a network; it is finite, so
#: that 0 times it is 0, in entropies and in gradients.
FORBIDDEN = -1e30


def forbidden_choices(mask: Tensor, dim: int) -> Tensor:
    """The choices to forbid.

    Args:
        mask: [...], 0 where a choice is not allowed; the choices of one number lie along `dim`.
        dim: an axis.

    Returns:
        bool [...]; none of a number that has no choice left, since something must be drawn.
    """
    # Contiguous, and as int8: their maximum takes less than a quarter of the time of `any` of bools.
    allowed = (mask != 0).contiguous().view(torch.int8)
    return allowed < allowed.amax(dim, keepdim=True)


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
