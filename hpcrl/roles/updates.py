"""What every gradient goes through between the loss and the optimizer, and what is reported of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from hpcrl.algorithms.optimizers import linear
from hpcrl.config import ActorCriticConfig
from hpcrl.errors import HpcrlError


class Coefficients(NamedTuple):
    """What changes linearly while a run goes on."""

    entropy_coef: float
    learning_rate: float


def coefficients(config: ActorCriticConfig, env_steps: int) -> Coefficients:
    """Those of an update that begins when `env_steps` have been learned from."""
    progress = env_steps / config.total_env_steps
    entropy_end = config.entropy_coef if config.entropy_coef_final is None else config.entropy_coef_final
    return Coefficients(
        linear(config.entropy_coef, entropy_end, progress),
        linear(config.learning_rate, config.learning_rate_final, progress),
    )


def scale_and_clip(gradient: Tensor, steps: float, config: ActorCriticConfig, where: str) -> tuple[float, bool]:
    """Divide a summed gradient once, and clip its norm, in place; the norm before, and whether it was clipped.

    Args:
        gradient: float32 [N].
        steps: valid steps that it is a sum over.
        config: `loss_reduction` and `max_grad_norm`.
        where: the update, for the message.

    Raises:
        HpcrlError: the norm is no finite number.
    """
    if config.loss_reduction == "mean":
        gradient.div_(steps)
    # GPUs of several kinds add in other orders; rounded from float64 the clip is the same on all.
    exact = None if gradient.is_cpu else torch.float64
    norm = float(torch.linalg.vector_norm(gradient, dtype=exact).float())
    if not math.isfinite(norm):
        raise HpcrlError(f"{where} has a gradient norm of {norm}: a lower --learning-rate may help")
    clipped = 0 < config.max_grad_norm < norm
    if clipped:
        gradient.mul_(config.max_grad_norm / norm)
    return norm, clipped


def update_metrics(sums: Mapping[str, float], norm: float, clipped: bool, learning_rate: float) -> tuple[float, ...]:
    """The numbers that `UPDATE_METRICS` names, from sums over the steps of one update by the names of `STATISTICS`."""
    steps = sums["steps"]
    target_variance = sums["target_squared"] / steps - (sums["target"] / steps) ** 2
    error_variance = sums["error_squared"] / steps - (sums["error"] / steps) ** 2
    explained = 1 - error_variance / target_variance if target_variance > 0 else 0.0
    losses = (sums["policy_loss"] / steps, sums["value_loss"] / steps, sums["entropy"] / steps)
    ratios = (sums["approx_kl"] / steps, sums["rho"] / steps, sums["rho_clipped"] / steps)
    return (*losses, explained, norm, float(clipped), *ratios, learning_rate)
