"""Action distributions as heads of a network: sampling from given noise, log-probabilities, entropies.

No distribution objects on the hot path: a head is a layer, and its methods are pure functions of its output.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from hpcrl.spaces import Space

_LOG_2PI = math.log(2 * math.pi)


class ActionHead(nn.Linear, ABC):
    """Maps features to the parameters of a distribution over actions.

    Attributes:
        noise_size: uniform numbers that sampling one action takes.
    """

    noise_size: int

    def forward(self, features: Tensor) -> Tensor:
        """Features [..., F] -> parameters float32 [..., P]."""
        return self.parameters_of(super().forward(features))

    def parameters_of(self, output: Tensor) -> Tensor:
        """Output of the layer alone [..., out_features] -> parameters [..., P]."""
        return output

    @abstractmethod
    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """Parameters [..., P] and uniform noise float32 [..., noise_size] in (0, 1) -> actions [...]."""

    @abstractmethod
    def mode(self, parameters: Tensor) -> Tensor:
        """The most likely actions."""

    @abstractmethod
    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        """Log-probability or log-density of actions, float32 [...]: one number an action."""

    @abstractmethod
    def entropy(self, parameters: Tensor) -> Tensor:
        """Entropy in nats, float32 [...]."""

    def log_prob_and_entropy(self, parameters: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Both, with what they have in common computed once."""
        return self.log_prob(parameters, action), self.entropy(parameters)


class Categorical(ActionHead):
    """One of n choices; parameters are logits [..., n], actions int64 [...].

    The choices are put first: sums over few of them are vectorised over all the rest.
    """

    noise_size = 1

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        # Inverse of the cumulative distribution: one uniform number an action. Its last value may round to a little
        # less than 1, so the noise is scaled by it: a choice of probability 0 is never drawn.
        cumulative = torch.softmax(parameters.movedim(-1, 0), 0).cumsum(0)
        return (noise.squeeze(-1) * cumulative[-1] >= cumulative[:-1]).sum(0)

    def mode(self, parameters: Tensor) -> Tensor:
        return parameters.argmax(-1)

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        return _chosen(_log_probs(parameters), action)

    def entropy(self, parameters: Tensor) -> Tensor:
        return _entropy(_log_probs(parameters))

    def log_prob_and_entropy(self, parameters: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = _log_probs(parameters)
        return _chosen(log_probs, action), _entropy(log_probs)


def _log_probs(logits: Tensor) -> Tensor:
    """[..., n] -> [n, ...]."""
    return torch.log_softmax(logits.movedim(-1, 0), 0)


def _chosen(log_probs: Tensor, action: Tensor) -> Tensor:
    return log_probs.gather(0, action.unsqueeze(0)).squeeze(0)


def _entropy(log_probs: Tensor) -> Tensor:
    return -(log_probs.exp() * log_probs).sum(0)


class DiagonalGaussian(ActionHead):
    """Independent normals; parameters are (mean, log standard deviation) [..., 2n], actions float32 [..., n].

    The standard deviation is a free parameter, the same in every state.
    """

    def __init__(self, num_features: int, size: int) -> None:
        super().__init__(num_features, size)
        self.noise_size = 2 * size
        self.log_std = nn.Parameter(torch.zeros(size))

    def parameters_of(self, output: Tensor) -> Tensor:
        return torch.cat([output, self.log_std.expand_as(output)], -1)

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


def make_head(space: Space, num_features: int) -> ActionHead:
    """The head for an action space."""
    if space.kind == "discrete":
        return Categorical(num_features, space.num_choices)
    return DiagonalGaussian(num_features, space.size)
