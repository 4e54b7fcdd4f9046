"""Proximal policy optimisation: the targets of a batch and the loss of each minibatch, top to bottom.

Schulman et al. 2017, arXiv:1707.06347, algorithm 1, with the gradients of all learners summed before every common step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from hpcrl.algorithms.appo import clipped_surrogate
from hpcrl.algorithms.batch import Batch, continues, evaluate, evaluate_steps
from hpcrl.algorithms.loss import STATISTICS, Loss, Normaliser, Targets, make_targets, predict, total_loss
from hpcrl.algorithms.minibatches import columns
from hpcrl.algorithms.optimizers import linear
from hpcrl.algorithms.returns import generalised_advantages, importance_ratios
from hpcrl.config import PPOConfig
from hpcrl.models.policy import Policy

#: Numbers that the network sees at once where no gradient needs them; small observations count as the hidden layers.
_NUMBERS_AT_ONCE = 2**24
_LEAST_NUMBERS = 256

#: An update may find the policy so much further away than `target_kl`, as the estimate is noisy.
_KL_MARGIN = 1.5


@torch.no_grad()
def ppo_targets(policy: Policy, batch: Batch, config: PPOConfig) -> Targets:
    """Generalised advantages, not standardised, and values + advantages: constants for all epochs of a batch."""
    values, next_values = _values(policy, batch)
    advantages = generalised_advantages(
        batch.reward, values, next_values, continues(batch), config.gamma, config.gae_lambda
    )
    return make_targets(advantages, advantages + values, batch.valid, None)


def _values(policy: Policy, batch: Batch) -> tuple[Tensor, Tensor]:
    """Values and next values, float32 [T, B], of some columns after the other, so that memory stays bounded."""
    outputs = [evaluate(policy, part) for part in _parts(policy, batch)]
    return torch.cat([out.values for out in outputs], 1), torch.cat([out.next_values for out in outputs], 1)


def _parts(policy: Policy, batch: Batch) -> Iterator[Batch]:
    time, num_envs = batch.reward.shape
    width = max(1, _NUMBERS_AT_ONCE // (time * max(policy.space.size, _LEAST_NUMBERS)))
    if num_envs <= width:
        yield batch
        return
    for first in range(0, num_envs, width):
        yield columns(batch, slice(first, first + width))


def ppo_loss(
    policy: Policy,
    batch: Batch,
    config: PPOConfig,
    entropy_coef: float,
    normalise: Normaliser | None,
    targets: Targets | None = None,
    clip_range: float | None = None,
) -> Loss:
    """L = sum over valid steps of -min(r * A, clip(r) * A) + value_coef * 1/2 (target - V)^2 - entropy_coef * H.

    r = pi(a|s) / mu(a|s) (eq. 7), mu being the policy that acted. With `value_clip_range` the squared error of a step
    is the larger one of V's and of V_old + clip(V - V_old), V_old being what the targets were made with.

    Args:
        policy: that learns.
        batch: a minibatch.
        config: of the run.
        entropy_coef: of this update.
        normalise: standardises the advantages of this minibatch.
        targets: of the minibatch, as `ppo_targets` made them (default: it makes them).
        clip_range: of this update (default: the configuration's).

    Returns:
        the loss; of a learner without steps 0. `rho_clipped` counts ratios outside the range, on either side.
    """
    clip_range = config.clip_range if clip_range is None else clip_range
    targets = ppo_targets(policy, batch, config) if targets is None else targets
    prediction = predict(policy, batch, *evaluate_steps(policy, batch))
    advantages = targets.advantages
    if normalise is not None:
        advantages = normalise(advantages, batch.valid).masked_fill(~batch.valid, 0.0)
    ratio = importance_ratios(prediction.log_ratio)
    policy_loss = -clipped_surrogate(ratio, advantages, clip_range).sum()
    loss = total_loss(policy_loss, prediction, targets, batch.valid, config, entropy_coef)

    loss.statistics[STATISTICS.index("rho_clipped")] = ((ratio.detach() - 1).abs() > clip_range).sum()
    if config.value_clip_range is None:
        return loss
    values = prediction.values.masked_fill(~batch.valid, 0.0)
    excess = clipped_value_excess(values, targets, config.value_clip_range).sum()
    loss.statistics[STATISTICS.index("value_loss")] += excess.detach()
    return loss._replace(total=loss.total + config.value_coef * excess)


def clipped_value_excess(values: Tensor, targets: Targets, clip_range: float) -> Tensor:
    """By how much 1/2 (target - V)^2 with V clipped exceeds the one with V, or 0; float32 [T, B].

    V is clipped to V_old +- clip_range, and V_old is target - A.
    """
    old = targets.values - targets.advantages
    clipped = old + (values - old).clamp(-clip_range, clip_range)
    return 0.5 * ((targets.values - clipped).square() - (targets.values - values).square()).clamp(min=0.0)


def clip_range_at(config: PPOConfig, env_steps: int) -> float:
    """The clip of the ratio for a batch that begins when `env_steps` have been learned from."""
    end = config.clip_range if config.clip_range_final is None else config.clip_range_final
    return linear(config.clip_range, end, env_steps / config.total_env_steps)


def is_too_far(config: PPOConfig, sums: Mapping[str, float]) -> bool:
    """Whether the policy has come too far from the one that acted, by the sums of an update over all learners."""
    return config.target_kl is not None and sums["approx_kl"] > _KL_MARGIN * config.target_kl * sums["steps"]
