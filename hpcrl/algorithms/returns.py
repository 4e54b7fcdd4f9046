"""Returns and advantages. Time first; every function is pure, and what it returns is detached."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def generalised_advantages(
    reward: Tensor, values: Tensor, next_values: Tensor, continues: Tensor, gamma: float, lambda_: float
) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438, eq. 16).

    delta_t = r_t + gamma * next_value_t - V_t and A_t = delta_t + gamma * lambda * continues_t * A_{t+1}.
    With lambda = 1 and the sum cut at the last row it is the n-step advantage of A3C (Mnih et al. 2016,
    arXiv:1602.01783, algorithm S3). A truncation bootstraps, in `next_values`, and cuts the sum; a
    termination does both with value 0.

    Args:
        reward, values: float32 [T, B].
        next_values: float32 [T, B], see `hpcrl.algorithms.batch.Outputs`.
        continues: bool [T, B], row t+1 belongs to the same episode; its last row is not read.
        gamma: discount.
        lambda_: in [0, 1]; 0 is one-step temporal difference.

    Returns:
        float32 [T, B].
    """
    deltas = (reward + gamma * next_values - values).unbind()
    advantages = [deltas[-1]]
    for delta, goes_on in zip(reversed(deltas[:-1]), reversed(continues.unbind()[:-1]), strict=True):
        # Chosen, not multiplied by 0: what an ignored row holds may be no number.
        longer = torch.add(delta, advantages[-1], alpha=gamma * lambda_)
        advantages.append(torch.where(goes_on, longer, delta))
    advantages.reverse()
    return torch.stack(advantages)
