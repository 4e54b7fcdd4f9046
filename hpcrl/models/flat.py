"""All parameters of a module as one flat vector, so that one buffer is published, reduced, clipped and stepped."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from hpcrl.errors import ShapeError


class FlatParameters:
    """Makes the parameters of `module` views of one vector, and their gradients views of another.

    Attributes:
        weights: float32 [N], a leaf whose `.grad` is `gradient`; the module's parameters are views of it.
        gradient: float32 [N].
        tail: float32 [num_extra], numbers that travel with the gradient.
        reduced: float32 [N + num_extra], gradient and tail in one piece of memory.
    """

    def __init__(self, module: nn.Module, num_extra: int = 0) -> None:
        self._shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
        parameters = list(module.parameters())
        if any(parameter.dtype != torch.float32 for parameter in parameters):
            raise ShapeError("all parameters must be float32 to share one vector")
        self.weights = nn.Parameter(torch.cat([parameter.detach().reshape(-1) for parameter in parameters]))
        self.reduced = torch.zeros(len(self) + num_extra, device=self.weights.device)
        self.gradient, self.tail = self.reduced[: len(self)], self.reduced[len(self) :]
        self.weights.grad = self.gradient
        weights, gradients = self.split(self.weights.detach()), self.split(self.gradient)
        for name, parameter in module.named_parameters():
            parameter.data = weights[name]
            parameter.grad = gradients[name]

    def __len__(self) -> int:
        return self.weights.numel()

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Views of a vector [N] by parameter name."""
        return dict(self._pieces(vector))

    def _pieces(self, vector: Tensor) -> Iterator[tuple[str, Tensor]]:
        offset = 0
        for name, shape in self._shapes.items():
            yield name, vector[offset : offset + shape.numel()].view(shape)
            offset += shape.numel()
