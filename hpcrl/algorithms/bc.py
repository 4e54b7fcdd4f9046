"""Behaviour cloning: the loss, top to bottom.

Maximum likelihood of recorded actions (Pomerleau 1991, "Efficient training of artificial neural networks for autonomous
navigation"), beside the value loss of the actor-critics, so that they can go on from its weights.
"""

from __future__ import annotations

import torch

from hpcrl.algorithms.batch import Batch, evaluate
from hpcrl.algorithms.loss import Loss, Normaliser, Targets, dot, make_targets, predict, total_loss
from hpcrl.algorithms.returns import generalised_advantages
from hpcrl.config import ActorCriticConfig
from hpcrl.models.policy import Policy


def bc_loss(
    policy: Policy,
    batch: Batch,
    config: ActorCriticConfig,
    entropy_coef: float,
    normalise: Normaliser | None,
    targets: Targets | None = None,
) -> Loss:
    """L = sum over valid steps of -log pi(a|s) + value_coef * 1/2 (target - V)^2 - entropy_coef * H.

    Targets of values are lambda-returns of the recorded rewards, constants that are made anew for every update: those
    handed in are not used. A learner without steps gives 0.
    """
    outputs = evaluate(policy, batch)
    values = outputs.values.detach()
    advantages = generalised_advantages(
        batch.reward, values, outputs.next_values, outputs.continues, config.gamma, config.gae_lambda
    )
    # Every recorded action counts the same.
    targets = make_targets(torch.ones_like(values), advantages + values, batch.valid, None)

    prediction = predict(policy, batch, outputs.parameters, outputs.values)
    policy_loss = -dot(prediction.log_prob, targets.advantages)
    return total_loss(policy_loss, prediction, targets, batch.valid, config, entropy_coef)
