"""Asynchronous proximal policy optimisation: the clipped surrogate on V-trace targets, top to bottom.

Schulman et al. 2017, arXiv:1707.06347, eq. 7, with the ratio to the policy that acted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hpcrl.algorithms.batch import Batch, evaluate, evaluate_steps
from hpcrl.algorithms.impala import vtrace_targets
from hpcrl.algorithms.loss import Loss, Normaliser, Targets, predict, total_loss
from hpcrl.algorithms.returns import importance_ratios
from hpcrl.config import AppoConfig
from hpcrl.models.policy import Policy


def appo_loss(
    policy: Policy,
    batch: Batch,
    config: AppoConfig,
    entropy_coef: float,
    normalise: Normaliser | None,
    targets: Targets | None = None,
) -> Loss:
    """L = sum over valid steps of -min(ratio * A, clip(ratio) * A) + value_coef * 1/2 (vs - V)^2 - entropy_coef * H.

    ratio = pi(a|s) / mu(a|s), mu being what the actor recorded, and clip keeps it within 1 +- clip_range. A and vs are
    those of V-trace, constants; A is not weighed, as the ratio stands in front of it already. The first update from a
    batch makes them and hands them on in the result; a later one, which is given them, keeps to them and
    evaluates neither the bootstrap row nor final observations. A learner without steps gives 0.
    """
    if targets is None:
        outputs = evaluate(policy, batch)
        prediction = predict(policy, batch, outputs.parameters, outputs.values)
        targets = vtrace_targets(batch, outputs, prediction, config, normalise)
    else:
        prediction = predict(policy, batch, *evaluate_steps(policy, batch))

    ratio = importance_ratios(prediction.log_ratio)
    policy_loss = -clipped_surrogate(ratio, targets.advantages, config.clip_range).sum()
    loss = total_loss(policy_loss, prediction, targets, batch.valid, config, entropy_coef, config.pg_rho_bar)
    return loss._replace(targets=targets)


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """min(ratio * A, clip(ratio, 1 - clip_range, 1 + clip_range) * A), all float32 [T, B].

    Where the clip is the smaller one it is a constant, so that no gradient goes through it; what is no number is kept.
    """
    with torch.no_grad():
        clipped = ratio.clamp(1 - clip_range, 1 + clip_range) * advantages
    surrogate = ratio * advantages
    return torch.where(surrogate > clipped, clipped, surrogate)
