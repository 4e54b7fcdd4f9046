"""Encoders: observations [..., *shape] of any number of leading axes to features float32 [..., F]."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcrl.spaces import Space

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu}


class MLP(nn.Module):
    """Fully connected layers over a flattened box or a one-hot discrete observation.

    Attributes:
        num_features: F, width of the output.
    """

    def __init__(self, space: Space, hidden_sizes: Sequence[int], activation: str) -> None:
        super().__init__()
        self._space = space
        widths = [space.num_choices if space.kind == "discrete" else space.size, *hidden_sizes]
        self._linears = [nn.Linear(fan_in, fan_out) for fan_in, fan_out in itertools.pairwise(widths)]
        self.layers = nn.ModuleList(self._linears)
        self._activation = _ACTIVATIONS[activation]
        self.num_features = widths[-1]

    def forward(self, observation: Tensor) -> Tensor:
        """Observation [..., *shape] -> features float32 [..., F]."""
        if self._space.kind == "discrete":
            flat = functional.one_hot(observation, self._space.num_choices).float()
        else:
            leading = observation.shape[: observation.dim() - len(self._space.shape)]
            flat = observation.reshape(*leading, self._space.size).to(torch.float32)
        for layer in self._linears:
            # The functions themselves: for a few environments the calls of modules cost as much as the products.
            flat = self._activation(functional.linear(flat, layer.weight, layer.bias))
        return flat
