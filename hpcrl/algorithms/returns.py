"""Returns and advantages. Time first; every function is pure, and what it returns is detached.

Ignored rows may hold anything, numbers or not: no other row reads them, and only they can come out as no number.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: A ratio beyond e^20 is as good as infinite, but still a number whose sums and products are numbers.
MAX_LOG_RATIO = 20.0


class VTrace(NamedTuple):
    """What V-trace makes of a batch.

    Attributes:
        targets: float32 [T, B], vs.
        advantages: float32 [T, B], of the policy gradient; not weighed by a ratio.
    """

    targets: Tensor
    advantages: Tensor


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
    deltas = torch.add(reward, next_values, alpha=gamma).sub_(values)
    stain = _take_stain(deltas)
    return _accumulate(deltas, continues * (gamma * lambda_)).add_(stain)


@torch.no_grad()
def vtrace(
    reward: Tensor,
    values: Tensor,
    next_values: Tensor,
    continues: Tensor,
    log_rhos: Tensor,
    gamma: float,
    lambda_: float,
    rho_bar: float,
    c_bar: float,
) -> VTrace:
    """V-trace (Espeholt et al. 2018, arXiv:1802.01561, eq. 1, with the lambda of its remark 2).

    rho_t = min(rho_bar, pi/mu), c_t = lambda * min(c_bar, pi/mu), delta_t = rho_t * (r_t + gamma * next_value_t - V_t)
    and vs_t - V_t = delta_t + gamma * c_t * continues_t * (vs_{t+1} - V_{t+1}).
    The advantage is r_t + gamma * q_{t+1} - V_t with q_{t+1} = lambda * vs_{t+1} + (1 - lambda) * V_{t+1}; where the
    episode does not go on, and in the last row, q_{t+1} is the next value. With mu = pi and clips of at least 1 both
    are generalised advantages.

    Args:
        reward, values: float32 [T, B].
        next_values: float32 [T, B], see `hpcrl.algorithms.batch.Outputs`.
        continues: bool [T, B], row t+1 belongs to the same episode; its last row is not read.
        log_rhos: float32 [T, B], log pi(a|s) - log mu(a|s).
        gamma: discount.
        lambda_: in [0, 1]; 1 is the paper's definition.
        rho_bar: clip of the ratios in the temporal differences: it decides which policy's value is learned.
        c_bar: clip of the ratios in the trace: it decides how fast.
    """
    ratios = importance_ratios(log_rhos)
    advantages = torch.add(reward, next_values, alpha=gamma).sub_(values)
    decay = continues * (gamma * lambda_)
    corrections = advantages * ratios.clamp(max=rho_bar)
    stain = _take_stain(corrections)
    _accumulate(corrections, ratios.clamp_(max=c_bar).nan_to_num_(0.0).mul_(decay))
    advantages[:-1].addcmul_(decay[:-1], corrections[1:])
    return VTrace(corrections.add_(stain).add_(values), advantages)


def importance_ratios(log_ratios: Tensor) -> Tensor:
    """exp(log ratio), float32 of the same shape, a new tensor; never infinite."""
    return log_ratios.clamp(max=MAX_LOG_RATIO).exp_()


def _take_stain(deltas: Tensor) -> Tensor:
    """Set what is no finite number to 0, in place; NaN there and 0 elsewhere, to be added again at the end.

    So a sum may multiply what it must not read by 0, and a reward that is no number still shows in its own row.
    """
    stain = deltas - deltas
    deltas.nan_to_num_(0.0, 0.0, 0.0)
    return stain


def _accumulate(deltas: Tensor, decay: Tensor) -> Tensor:
    """x_t += decay_t * x_{t+1}, from the last row to the first, in place: one operation a row."""
    rows = deltas.unbind()
    following = rows[-1]
    for row, factor in zip(rows[-2::-1], decay.unbind()[-2::-1], strict=True):
        following = row.addcmul_(factor, following)
    return deltas
