"""Encoders: observations [..., *shape] of any number of leading axes to features float32 [..., F]."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hpcrl.spaces import Space

_ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


class MLP(nn.Module):
    """Fully connected layers over a flattened box or a one-hot discrete observation.

    Attributes:
        num_features: F, width of the output.
    """

    def __init__(self, space: Space, hidden_sizes: Sequence[int], activation: str) -> None:
        super().__init__()
        self._space = space
        widths = [space.num_choices if space.kind == "discrete" else space.size, *hidden_sizes]
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), _ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers)
        self.num_features = widths[-1]

    def forward(self, observation: Tensor) -> Tensor:
        """Observation [..., *shape] -> features float32 [..., F]."""
        if self._space.kind == "discrete":
            flat = nn.functional.one_hot(observation, self._space.num_choices).float()
        else:
            leading = observation.shape[: observation.dim() - len(self._space.shape)]
            flat = observation.reshape(*leading, self._space.size).to(torch.float32)
        return self.layers(flat)
