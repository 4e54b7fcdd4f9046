"""Encoders: observations [..., *shape] of any number of leading axes, through hidden layers, to heads."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcrl.models.fused import Folded, Layer, fold, perceptron
from hpcrl.spaces import Space


class MLP(nn.Module):
    """Fully connected layers over a flattened box or a one-hot discrete observation.

    Attributes:
        num_features: F, width of the last hidden layer.
    """

    def __init__(self, space: Space, hidden_sizes: Sequence[int], activation: str) -> None:
        super().__init__()
        self._space = space
        widths = [space.num_choices if space.kind == "discrete" else space.size, *hidden_sizes]
        linears = [nn.Linear(fan_in, fan_out) for fan_in, fan_out in itertools.pairwise(widths)]
        self.layers = nn.ModuleList(linears)
        # Kept: for a few environments a module's search for its parameters takes as long as a product.
        self._hidden = [Layer(linear.weight, linear.bias) for linear in linears]
        self._activation = activation
        self.num_features = widths[-1]

    def forward(self, observation: Tensor, *heads: nn.Linear) -> tuple[Tensor, ...]:
        """Observation [..., *shape] -> what each head makes of its features, float32 [..., out_features].

        The heads share one product, and lie in memory column after column.
        """
        leading = observation.shape[: observation.dim() - len(self._space.shape)]
        columns = perceptron(self.rows_of(observation), self._hidden, _joined(heads), self._activation)
        pieces = columns.split([head.out_features for head in heads]) if len(heads) > 1 else (columns,)
        if len(leading) == 1:
            return tuple(piece.t() for piece in pieces)
        return tuple(piece.t().reshape(*leading, len(piece)) for piece in pieces)

    def fold(self, head: nn.Linear) -> Folded:
        """The layers and one head, prepared for many calls with the weights of now; maps `rows_of` observations."""
        return fold(self._hidden, _joined([head]), self._activation)

    def rows_of(self, observation: Tensor) -> Tensor:
        """What the first layer sees of observations [..., *shape]: float32 [N, in]."""
        if self._space.kind == "discrete":
            return functional.one_hot(observation.reshape(-1), self._space.num_choices).float()
        return observation.reshape(-1, self._space.size).to(torch.float32)


def _joined(heads: Sequence[nn.Linear]) -> Layer:
    if len(heads) == 1:
        return Layer(heads[0].weight, heads[0].bias)
    return Layer(torch.cat([head.weight for head in heads]), torch.cat([head.bias for head in heads]))
