"""Action distributions as heads of a network: sampling from given noise, log-probabilities, entropies.

No distribution objects on the hot path: a head is a layer, and its methods are pure functions of its output.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from hpcrl.spaces import Space

_LOG_2PI = math.log(2 * math.pi)


class ActionHead(Protocol):
    """Maps features to the parameters of a distribution over actions.

    Attributes:
        noise_size: uniform numbers that sampling one action takes.
    """

    noise_size: int

    def __call__(self, features: Tensor) -> Tensor:
        """Features [..., F] -> parameters float32 [..., P]."""

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """Parameters [..., P] and uniform noise float32 [..., noise_size] in (0, 1) -> actions [...]."""

    def mode(self, parameters: Tensor) -> Tensor:
        """The most likely actions."""

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        """Log-probability or log-density of actions, float32 [...]: one number an action."""

    def entropy(self, parameters: Tensor) -> Tensor:
        """Entropy in nats, float32 [...]."""


class Categorical(nn.Linear):
    """One of n choices; parameters are logits [..., n], actions int64 [...]."""

    noise_size = 1

    def __init__(self, num_features: int, num_choices: int) -> None:
        super().__init__(num_features, num_choices)

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        # Inverse of the cumulative distribution: one uniform number an action. Its last value may round to a little
        # less than 1, so the noise is scaled by it: a choice of probability 0 is never drawn.
        cumulative = torch.softmax(parameters, -1).cumsum(-1)
        return (noise * cumulative[..., -1:] >= cumulative).sum(-1).clamp_(max=self.out_features - 1)

    def mode(self, parameters: Tensor) -> Tensor:
        return parameters.argmax(-1)

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        return torch.log_softmax(parameters, -1).gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        log_probs = torch.log_softmax(parameters, -1)
        return -(log_probs.exp() * log_probs).sum(-1)


class DiagonalGaussian(nn.Linear):
    """Independent normals; parameters are (mean, log standard deviation) [..., 2n], actions float32 [..., n].

    The standard deviation is a free parameter, the same in every state.
    """

    def __init__(self, num_features: int, size: int) -> None:
        super().__init__(num_features, size)
        self.noise_size = 2 * size
        self.log_std = nn.Parameter(torch.zeros(size))

    def forward(self, features: Tensor) -> Tensor:
        mean = super().forward(features)
        return torch.cat([mean, self.log_std.expand_as(mean)], -1)

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        mean, log_std = parameters.chunk(2, -1)
        radius, angle = noise.chunk(2, -1)
        # Box and Muller 1958: a normal number from two uniform ones.
        normal = torch.sqrt(-2 * torch.log(radius)) * torch.cos(2 * math.pi * angle)
        return mean + log_std.exp() * normal

    def mode(self, parameters: Tensor) -> Tensor:
        return parameters.chunk(2, -1)[0].clone()

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        mean, log_std = parameters.chunk(2, -1)
        standardised = (action - mean) * torch.exp(-log_std)
        return (-0.5 * (standardised.square() + _LOG_2PI) - log_std).sum(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        _, log_std = parameters.chunk(2, -1)
        return (0.5 * (1 + _LOG_2PI) + log_std).sum(-1)


def make_head(space: Space, num_features: int) -> Categorical | DiagonalGaussian:
    """The head for an action space."""
    if space.kind == "discrete":
        return Categorical(num_features, space.num_choices)
    return DiagonalGaussian(num_features, space.size)
