"""A loss of your own, in place of an algorithm's: advantage-weighted regression on top of a2c.

Peng et al. 2019, arXiv:1910.00177: instead of following the policy gradient, imitate the actions that were taken, the
more the better they turned out. Actors, learners, their sums and checkpoints stay a2c's.

    cd examples
    hpcrl train a2c --env CartPole-v1 --loss own_loss:advantage_weighted --normalise-advantages
    hpcrl train a2c --env CartPole-v1 --loss own_loss:advantage_weighted --normalise-advantages --ranks 4 --learners 2
"""

from __future__ import annotations

from hpcrl.algorithms.batch import Batch, evaluate
from hpcrl.algorithms.loss import Loss, Normaliser, Targets, dot, make_targets, predict, total_loss
from hpcrl.algorithms.returns import generalised_advantages
from hpcrl.config import ActorCriticConfig
from hpcrl.models.policy import Policy

_TEMPERATURE = 0.5
_MOST = 20.0  # of a weight


def advantage_weighted(
    policy: Policy,
    batch: Batch,
    config: ActorCriticConfig,
    entropy_coef: float,
    normalise: Normaliser | None,
    targets: Targets | None = None,
) -> Loss:
    """L = sum over valid steps of -log pi(a|s) * min(exp(A / temperature), 20), and a2c's value loss and entropy.

    Everything is time first, [T, B]: T steps of B environments side by side.
    """
    # One pass over the batch: parameters of the action distributions, and values.
    outputs = evaluate(policy, batch)
    values = outputs.values.detach()
    advantages = generalised_advantages(
        batch.reward, values, outputs.next_values, outputs.continues, config.gamma, config.gae_lambda
    )
    # Standardised over all learners under --normalise-advantages; 0 where there was no step.
    targets = make_targets(advantages, advantages + values, batch.valid, normalise)
    weights = (targets.advantages / _TEMPERATURE).exp().clamp(max=_MOST) * batch.valid

    prediction = predict(policy, batch, outputs.parameters, outputs.values)
    policy_loss = -dot(prediction.log_prob, weights)
    # A sum over this rank's steps: hpcrl adds those of all learners and divides. Fills in what metrics.csv reports.
    return total_loss(policy_loss, prediction, targets, batch.valid, config, entropy_coef)
