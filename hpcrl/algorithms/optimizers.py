"""Optimizers by name, and RMSProp with the conventions of the papers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from hpcrl.config import TrainConfig


class RMSProp(torch.optim.Optimizer):
    """RMSProp (Tieleman and Hinton 2012) with both conventions for epsilon and the first mean square.

    g = decay * g + (1 - decay) * grad^2; step = lr * grad / sqrt(g + epsilon) inside, or / (sqrt(g) + epsilon) outside.
    The papers (A3C, IMPALA) and TensorFlow put epsilon inside; PyTorch outside. TensorFlow starts g at 1, PyTorch at 0.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        decay: float,
        epsilon: float,
        epsilon_inside: bool,
        initial_square: float,
    ) -> None:
        defaults = {"lr": lr, "decay": decay, "epsilon": epsilon, "epsilon_inside": epsilon_inside}
        super().__init__(parameters, defaults)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["square_avg"] = torch.full_like(parameter, initial_square)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step with the gradients that the parameters hold."""
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient, square = parameter.grad, self.state[parameter]["square_avg"]
                square.mul_(group["decay"]).addcmul_(gradient, gradient, value=1 - group["decay"])
                if group["epsilon_inside"]:
                    denominator = square.add(group["epsilon"]).sqrt_()
                else:
                    denominator = square.sqrt().add_(group["epsilon"])
                parameter.addcdiv_(gradient, denominator, value=-group["lr"])


def make_optimizer(weights: nn.Parameter, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer that the configuration names, over one flat vector."""
    if config.optimizer == "adam":
        return torch.optim.Adam([weights], lr=config.learning_rate, eps=config.optimizer_epsilon, foreach=False)
    return RMSProp(
        [weights],
        config.learning_rate,
        config.rmsprop_decay,
        config.optimizer_epsilon,
        config.rmsprop_epsilon_inside,
        config.rmsprop_initial_square,
    )


def linear(start: float, end: float, progress: float) -> float:
    """From `start` to `end` as `progress` goes from 0 to 1; beyond that `end`."""
    return start + (end - start) * min(max(progress, 0.0), 1.0)
