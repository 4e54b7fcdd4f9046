"""Importance-weighted actor-learner: the loss, top to bottom.

Espeholt et al. 2018, arXiv:1802.01561, section 4.2.
"""

from __future__ import annotations

from hpcrl.algorithms.batch import Batch, Outputs, evaluate
from hpcrl.algorithms.loss import Loss, Normaliser, Prediction, Targets, dot, make_targets, predict, total_loss
from hpcrl.algorithms.returns import importance_ratios, vtrace
from hpcrl.config import ImpalaConfig
from hpcrl.models.policy import Policy


def impala_loss(
    policy: Policy,
    batch: Batch,
    config: ImpalaConfig,
    entropy_coef: float,
    normalise: Normaliser | None,
    targets: Targets | None = None,
) -> Loss:
    """L = sum over valid steps of -log pi(a|s) * rho * A + value_coef * 1/2 (vs - V)^2 - entropy_coef * H.

    rho = min(pg_rho_bar, pi(a|s) / mu(a|s)), mu being what the actor recorded; A and vs are those of V-trace. All three
    are constants, made anew for every update, as they depend on pi: targets handed in are not used.

    A is standardised before it is weighed: rho * (A - mean) has the mean as a baseline, which leaves the expected
    gradient as it is, because the expectation under mu of rho * grad log pi is 0 where no ratio is clipped; that of
    grad log pi alone is not. A learner without steps gives 0.
    """
    outputs = evaluate(policy, batch)
    prediction = predict(policy, batch, outputs.parameters, outputs.values)
    targets = vtrace_targets(batch, outputs, prediction, config, normalise)

    rho = importance_ratios(prediction.log_ratio.detach()).clamp_(max=config.pg_rho_bar)
    policy_loss = -dot(prediction.log_prob, rho.mul_(targets.advantages))
    return total_loss(policy_loss, prediction, targets, batch.valid, config, entropy_coef, config.pg_rho_bar)


def vtrace_targets(
    batch: Batch, outputs: Outputs, prediction: Prediction, config: ImpalaConfig, normalise: Normaliser | None
) -> Targets:
    """The targets of V-trace for the policy that gave `outputs`, from which `prediction` was made."""
    trace = vtrace(
        batch.reward,
        outputs.values.detach(),
        outputs.next_values,
        outputs.continues,
        prediction.log_ratio.detach(),
        config.gamma,
        config.gae_lambda,
        config.rho_bar,
        config.c_bar,
    )
    return make_targets(trace.advantages, trace.targets, batch.valid, normalise)
