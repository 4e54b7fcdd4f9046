"""An encoder of your own, in place of the fully connected layers: what is observed becomes features.

The heads behind it (policy and value) and a recurrent core are hpcrl's.

    cd examples
    hpcrl train ppo --env CartPole-v1 --model own_model:Residual
    hpcrl train ppo --env CartPole-v1 --model own_model:Residual --core lstm --ranks 4
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_WIDTH = 64


class Residual(nn.Module):
    """Two residual blocks over the numbers of an observation.

    Args:
        num_inputs: numbers of an observation that are in no image; one-hot where they are discrete.
        image_shapes: of its images; here there are none.
    """

    def __init__(self, num_inputs: int, image_shapes: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        if image_shapes:
            raise ValueError("Residual is for observations without images")
        # So many numbers go on to policy and value.
        self.num_features = _WIDTH
        self.first = nn.Linear(num_inputs, _WIDTH)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(_WIDTH, _WIDTH), nn.Tanh()) for _ in range(2))

    def forward(self, rows: Tensor, *images: Tensor) -> Tensor:
        """Features float32 [N, 64] of rows float32 [N, num_inputs]."""
        features = torch.tanh(self.first(rows))
        for block in self.blocks:
            features = features + block(features)
        return features
