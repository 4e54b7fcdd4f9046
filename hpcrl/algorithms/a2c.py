"""Synchronous advantage actor-critic: the loss, top to bottom.

Mnih et al. 2016, arXiv:1602.01783, with the gradients of all learners summed before one common step.
"""

from __future__ import annotations

from hpcrl.algorithms.batch import Batch, evaluate
from hpcrl.algorithms.loss import Loss, Normaliser, Targets, dot, make_targets, predict, total_loss
from hpcrl.algorithms.returns import generalised_advantages
from hpcrl.config import ActorCriticConfig
from hpcrl.models.policy import Policy


def a2c_loss(
    policy: Policy,
    batch: Batch,
    config: ActorCriticConfig,
    entropy_coef: float,
    normalise: Normaliser | None,
    targets: Targets | None = None,
) -> Loss:
    """L = sum over valid steps of -log pi(a|s) * A + value_coef * 1/2 (target - V)^2 - entropy_coef * H.

    Advantages and targets are constants, made anew for every update: those handed in are not used. A learner without
    steps gives 0.
    """
    outputs = evaluate(policy, batch)
    values = outputs.values.detach()
    advantages = generalised_advantages(
        batch.reward, values, outputs.next_values, outputs.continues, config.gamma, config.gae_lambda
    )
    targets = make_targets(advantages, advantages + values, batch.valid, normalise)

    prediction = predict(policy, batch, outputs.parameters, outputs.values)
    policy_loss = -dot(prediction.log_prob, targets.advantages)
    return total_loss(policy_loss, prediction, targets, batch.valid, config, entropy_coef)
