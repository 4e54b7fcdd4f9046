"""Action heads: the last layer of a policy, and what the numbers that it gives mean."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hpcrl.errors import ConfigError
from hpcrl.models.distributions import Distribution, make_distribution
from hpcrl.spaces import ACTION_MASK, Space


class ActionHead(nn.Linear):
    """Maps features to the parameters of a distribution over actions.

    Attributes:
        distribution: what the parameters mean.
        log_std: float32 [num_log_stds], log standard deviations of all normal numbers of an action, in its order; only
            where there are any.
        noise_size, mask_size, can_explore: of the distribution.
    """

    def __init__(self, num_features: int, distribution: Distribution) -> None:
        super().__init__(num_features, distribution.num_outputs)
        self.distribution = distribution
        self.noise_size, self.mask_size = distribution.noise_size, distribution.mask_size
        self.can_explore = distribution.can_explore
        self._has_log_std = distribution.num_log_stds > 0
        if self._has_log_std:
            self.log_std = nn.Parameter(torch.zeros(distribution.num_log_stds))

    def forward(self, features: Tensor) -> Tensor:
        """Features [..., F] -> parameters float32 [..., P]."""
        return self.parameters_of(super().forward(features))

    def parameters_of(self, output: Tensor) -> Tensor:
        """Output of the layer alone [..., out_features] -> parameters [..., P]."""
        return self.distribution.parameters_of(output, self.log_std) if self._has_log_std else output

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """Parameters [..., P] and uniform noise float32 [..., noise_size] in (0, 1) -> actions [..., *shape]."""
        return self.distribution.sample(parameters, noise)

    def mode(self, parameters: Tensor) -> Tensor:
        """The most likely actions [..., *shape]."""
        return self.distribution.mode(parameters)

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        """Log-probability or log-density of actions [..., *shape], float32 [...]: one number an action."""
        return self.distribution.log_prob(parameters, action)

    def entropy(self, parameters: Tensor) -> Tensor:
        """Entropy in nats, float32 [...]."""
        return self.distribution.entropy(parameters)

    def log_prob_and_entropy(self, parameters: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Both, with what they have in common computed once."""
        return self.distribution.log_prob_and_entropy(parameters, action)

    def masked(self, parameters: Tensor, mask: Tensor) -> Tensor:
        """Parameters of the distribution without the choices that are not allowed.

        Args:
            parameters: float32 [..., mask_size].
            mask: int8 [..., *mask.shape] of `mask_size` numbers, 0 for each choice that is not allowed, in the order of
                the parameters. A number of the action that has no choice left keeps them all.

        Returns:
            float32 [..., mask_size]: probabilities of what is not allowed are exactly 0, its log-probabilities finite.

        Raises:
            ConfigError: the head takes no masks.
        """
        return self.distribution.masked(parameters, mask)

    def explore(self, parameters: Tensor, epsilon: float) -> Tensor:
        """Parameters of the mixture that takes each number of an action uniformly with probability `epsilon`.

        Args:
            parameters: float32 [..., P], masked or not; what is not allowed stays without probability.
            epsilon: in [0, 1].

        Returns:
            float32 [..., P].

        Raises:
            ConfigError: the head has no such mixture (`can_explore`).
        """
        return self.distribution.explore(parameters, epsilon)


def make_head(space: Space, num_features: int) -> ActionHead:
    """The head for an action space; ConfigError where there is none."""
    return ActionHead(num_features, make_distribution(space))


def check_mask(space: Space, mask: Space) -> None:
    """Look whether a leaf of the observation can be the mask of an action space.

    Args:
        space: of actions.
        mask: of the leaf.

    Raises:
        ConfigError: actions that take no masks, or a mask of another kind or size.
    """
    size = make_distribution(space).mask_size
    if not size:
        raise ConfigError(f"{ACTION_MASK!r} needs discrete or multi-discrete actions, got {space.kind} actions")
    if mask.kind not in ("multi_binary", "box") or mask.dtype != "int8" or mask.size != size:
        got = f"{mask.kind} {mask.dtype} {list(mask.shape)}"
        raise ConfigError(f"{ACTION_MASK!r} must be int8 with {size} numbers, one a choice, got {got}")
