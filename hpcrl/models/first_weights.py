"""The first weights of layers: functions of a generator alone. Biases are zero."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

#: How layers get their first weights: `orthogonal` or `scaled_normal`.
FirstWeights = Literal["orthogonal", "scaled_normal"]

#: Gain of layers with an activation behind them.
HIDDEN_GAIN = math.sqrt(2)


def orthogonal(layer: nn.Linear | nn.Conv2d, gain: float, generator: torch.Generator) -> None:
    """Orthogonal weights (Saxe et al. 2014, arXiv:1312.6120), times `gain`."""
    nn.init.orthogonal_(layer.weight, gain, generator)
    _zero_biases(layer)


def scaled_normal(layer: nn.Linear | nn.Conv2d, generator: torch.Generator) -> None:
    """Normal weights cut off at two deviations, the deviation being 1 / sqrt(numbers that an output is a sum over).

    So did the code of Espeholt et al. 2018 (the defaults of Sonnet 1). Behind residual blocks orthogonal weights with a
    gain of sqrt(2) would make values and gradients many times as large.
    """
    deviation = 1 / math.sqrt(layer.weight[0].numel())
    nn.init.trunc_normal_(layer.weight, 0.0, deviation, -2 * deviation, 2 * deviation, generator)
    _zero_biases(layer)


def _zero_biases(layer: nn.Linear | nn.Conv2d) -> None:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
