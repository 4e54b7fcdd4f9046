"""What the losses of all actor-critics share: their parts, their sums and what is reported of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hpcrl.algorithms.batch import Batch
from hpcrl.algorithms.returns import MAX_LOG_RATIO
from hpcrl.config import ActorCriticConfig
from hpcrl.models.policy import Policy

#: Sums over valid steps that every learner adds to the allreduce, in this order.
STATISTICS = (
    "steps",
    "policy_loss",
    "value_loss",
    "entropy",
    "approx_kl",
    "target",
    "target_squared",
    "error",
    "error_squared",
    "rho",
    "rho_clipped",
)

#: Standardises advantages float32 [T, B] over the steps of all learners that are valid, bool [T, B]. A new tensor or
#: the first one. Collective: a loss that makes targets calls it once, on every learner, also on one without steps.
Normaliser = Callable[[Tensor, Tensor], Tensor]

#: Log of how far a ratio must exceed its clip to count as clipped: the same weights give ratios of nearly 1.
_CLIP_MARGIN = 1e-4


class Targets(NamedTuple):
    """Constants that an update learns towards; 0 in ignored rows.

    Attributes:
        advantages: float32 [T, B], standardised if that was asked for.
        values: float32 [T, B].
    """

    advantages: Tensor
    values: Tensor


class Loss(NamedTuple):
    """A loss and what is reported of it.

    Attributes:
        total: scalar, summed over this learner's valid steps.
        statistics: float32 [len(STATISTICS)], detached sums over the same steps.
        targets: for the next update from the same batch; None: that one makes its own.
    """

    total: Tensor
    statistics: Tensor
    targets: Targets | None


class Prediction(NamedTuple):
    """What the policy says of the steps of a batch; all float32 [T, B].

    Attributes:
        log_prob: log pi(a|s).
        log_ratio: log pi(a|s) - log mu(a|s); 0 in ignored rows.
        entropy: of pi(.|s).
        values: V(s).
    """

    log_prob: Tensor
    log_ratio: Tensor
    entropy: Tensor
    values: Tensor


def predict(policy: Policy, batch: Batch, parameters: Tensor, values: Tensor) -> Prediction:
    """What a loss reads, from the network's outputs: parameters float32 [T, B, P], values float32 [T, B]."""
    log_prob, entropy = policy.head.log_prob_and_entropy(parameters, batch.action)
    log_ratio = (log_prob - batch.behaviour_log_prob).masked_fill(~batch.valid, 0.0)
    return Prediction(log_prob, log_ratio, entropy, values)


def make_targets(advantages: Tensor, values: Tensor, valid: Tensor, normalise: Normaliser | None) -> Targets:
    """Targets of advantages and values float32 [T, B], which it overwrites; `valid` is bool [T, B]."""
    ignored = ~valid
    values.masked_fill_(ignored, 0.0)
    advantages.masked_fill_(ignored, 0.0)
    if normalise is not None:
        advantages = normalise(advantages, valid).masked_fill_(ignored, 0.0)
    return Targets(advantages, values)


def dot(left: Tensor, right: Tensor) -> Tensor:
    """Sum of the products, scalar."""
    return torch.dot(left.reshape(-1), right.reshape(-1))


def total_loss(
    policy_loss: Tensor,
    prediction: Prediction,
    targets: Targets,
    valid: Tensor,
    config: ActorCriticConfig,
    entropy_coef: float | Tensor,
    ratio_clip: float = math.inf,
) -> Loss:
    """L = policy_loss + sum over valid steps of value_coef * 1/2 (target - V)^2 - entropy_coef * H.

    The 1/2 of the value loss belongs to it.

    Args:
        policy_loss: scalar, summed over valid steps.
        prediction, targets: of the batch.
        valid: bool [T, B].
        config: `value_coef`.
        entropy_coef: of this update; a compiled loss gets a scalar, which it can't ask for its value.
        ratio_clip: ratios beyond it are counted.

    Returns:
        the loss; its `targets` are None.
    """
    counts = valid.float()
    error = (targets.values - prediction.values).masked_fill(~valid, 0.0)
    error_squared = dot(error, error)
    entropy = dot(prediction.entropy, counts)
    total = policy_loss + (0.5 * config.value_coef) * error_squared
    if isinstance(entropy_coef, Tensor) or entropy_coef:
        total = total - entropy_coef * entropy

    with torch.no_grad():
        steps, log_ratio = counts.sum(), prediction.log_ratio.detach()
        excess = log_ratio.clamp(max=MAX_LOG_RATIO).expm1_().sum()  # of the ratios over 1; of an ignored row 0
        sums = {
            "steps": steps,
            "policy_loss": policy_loss,
            "value_loss": 0.5 * error_squared,
            "entropy": entropy,
            # Schulman 2020, "Approximating KL divergence", k3: ratio - 1 - log ratio
            "approx_kl": excess - log_ratio.sum(),
            "target": targets.values.sum(),
            "target_squared": dot(targets.values, targets.values),
            "error": error.sum(),
            "error_squared": error_squared,
            "rho": steps + excess,
            "rho_clipped": ((log_ratio > math.log(ratio_clip) + _CLIP_MARGIN) & valid).sum(),
        }
        statistics = torch.stack([sums[name].float() for name in STATISTICS])
    return Loss(total, statistics, None)
