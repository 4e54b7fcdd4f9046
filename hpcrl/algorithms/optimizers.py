"""Optimizers over one flat vector of weights.

torch's own do the same, but their base class imports the compiler, a second and a half of every start; over one vector
an optimizer is a few lines. The tests hold them against torch's.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from hpcrl.config import TrainConfig


class Optimizer(Protocol):
    """Steps a vector of weights, float32 [N], with its `.grad`.

    Attributes:
        learning_rate: of the next step.
        state: what it remembers: vectors [N], and single numbers [].
    """

    learning_rate: float
    state: dict[str, Tensor]

    def step(self) -> None:
        """Move the weights."""


class Adam:
    """Adam (Kingma and Ba 2015, arXiv:1412.6980, algorithm 1), epsilon outside the root as there."""

    _BETAS = (0.9, 0.999)

    def __init__(self, weights: Tensor, learning_rate: float, epsilon: float) -> None:
        self._weights, self._epsilon = weights, epsilon
        self.learning_rate = learning_rate
        self.state = {
            "step": torch.zeros((), dtype=torch.int64),
            "exp_avg": torch.zeros_like(weights.detach()),
            "exp_avg_sq": torch.zeros_like(weights.detach()),
        }

    @torch.no_grad()
    def step(self) -> None:
        """One step with the gradient at hand."""
        gradient, (beta1, beta2) = self._weights.grad, self._BETAS
        assert gradient is not None
        self.state["step"] += 1
        step = int(self.state["step"])
        mean = self.state["exp_avg"].lerp_(gradient, 1 - beta1)
        square = self.state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        denominator = square.sqrt().div_(math.sqrt(1 - beta2**step)).add_(self._epsilon)
        self._weights.addcdiv_(mean, denominator, value=-self.learning_rate / (1 - beta1**step))


class RMSProp:
    """RMSProp (Tieleman and Hinton 2012) with both conventions for epsilon and the first mean square.

    g = decay * g + (1 - decay) * grad^2; step = lr * grad / sqrt(g + epsilon) inside, or / (sqrt(g) + epsilon) outside.
    The papers (A3C, IMPALA) and TensorFlow put epsilon inside; PyTorch outside. TensorFlow starts g at 1, PyTorch at 0.
    """

    def __init__(
        self,
        weights: Tensor,
        learning_rate: float,
        decay: float,
        epsilon: float,
        epsilon_inside: bool,
        initial_square: float,
    ) -> None:
        self._weights, self._decay = weights, decay
        self._epsilon, self._epsilon_inside = epsilon, epsilon_inside
        self.learning_rate = learning_rate
        self.state = {"square_avg": torch.full_like(weights.detach(), initial_square)}

    @torch.no_grad()
    def step(self) -> None:
        """One step with the gradient at hand."""
        gradient = self._weights.grad
        assert gradient is not None
        square = self.state["square_avg"].mul_(self._decay).addcmul_(gradient, gradient, value=1 - self._decay)
        denominator = square.add(self._epsilon).sqrt_() if self._epsilon_inside else square.sqrt().add_(self._epsilon)
        self._weights.addcdiv_(gradient, denominator, value=-self.learning_rate)


def make_optimizer(weights: Tensor, config: TrainConfig) -> Optimizer:
    """The optimizer that the configuration names."""
    if config.optimizer == "adam":
        return Adam(weights, config.learning_rate, config.optimizer_epsilon)
    return RMSProp(
        weights,
        config.learning_rate,
        config.rmsprop_decay,
        config.optimizer_epsilon,
        config.rmsprop_epsilon_inside,
        config.rmsprop_initial_square,
    )


def linear(start: float, end: float, progress: float) -> float:
    """From `start` to `end` as `progress` goes from 0 to 1; beyond that `end`."""
    return start + (end - start) * min(max(progress, 0.0), 1.0)
