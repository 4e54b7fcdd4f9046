"""Synchronous advantage actor-critic: the loss, top to bottom.

Mnih et al. 2016, arXiv:1602.01783, with the gradients of all learners summed before one common step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hpcrl.algorithms.batch import Batch, evaluate
from hpcrl.algorithms.returns import generalised_advantages
from hpcrl.config import A2CConfig
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
)

#: Standardises advantages [T, B] over the valid steps of all learners.
Normaliser = Callable[[Tensor, Tensor], Tensor]


class Loss(NamedTuple):
    """A loss and what is reported of it.

    Attributes:
        total: scalar, summed over this learner's valid steps.
        statistics: float32 [len(STATISTICS)], detached sums over the same steps.
    """

    total: Tensor
    statistics: Tensor


def a2c_loss(
    policy: Policy, batch: Batch, config: A2CConfig, entropy_coef: float, normalise: Normaliser | None
) -> Loss:
    """L = sum over valid steps of -log pi(a|s) * A + value_coef * 1/2 (target - V)^2 - entropy_coef * H.

    The 1/2 of the value loss belongs to it. Advantages and targets are constants. A learner without steps gives 0.
    """
    parameters, values, next_values, continues = evaluate(policy, batch)
    advantages = generalised_advantages(
        batch.reward, values.detach(), next_values, continues, config.gamma, config.gae_lambda
    )
    advantages.masked_fill_(~batch.valid, 0.0)
    targets = advantages + values.detach()
    if normalise is not None:
        advantages = normalise(advantages, batch.valid)

    log_prob = policy.head.log_prob(parameters, batch.action)
    error = targets - values
    policy_loss = -log_prob * advantages
    value_loss = 0.5 * error.square()
    entropy = policy.head.entropy(parameters)
    loss = policy_loss + config.value_coef * value_loss - entropy_coef * entropy

    with torch.no_grad():
        log_ratio = log_prob - batch.behaviour_log_prob
        approx_kl = log_ratio.exp() - 1 - log_ratio  # Schulman 2020, "Approximating KL divergence", k3
        terms = (policy_loss, value_loss, entropy, approx_kl, targets, targets.square(), error, error.square())
        statistics = torch.stack([batch.valid.sum().float(), *(_masked_sum(term, batch.valid) for term in terms)])
    return Loss(_masked_sum(loss, batch.valid), statistics)


def _masked_sum(term: Tensor, valid: Tensor) -> Tensor:
    return torch.where(valid, term, 0.0).sum()
