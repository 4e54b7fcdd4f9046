"""The policy: an encoder, an action head and a value head, the same object in actors and learners."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hpcrl.models.distributions import make_head
from hpcrl.models.encoders import MLP
from hpcrl.spaces import Task


class Policy(nn.Module):
    """Actor and critic, with encoders of their own or a shared one.

    Attributes:
        head: the distribution over actions.
    """

    def __init__(self, task: Task, hidden_sizes: Sequence[int], activation: str, shared_encoder: bool) -> None:
        super().__init__()
        self.encoder = MLP(task.observation, hidden_sizes, activation)
        self.value_encoder = None if shared_encoder else MLP(task.observation, hidden_sizes, activation)
        self.head = make_head(task.action, self.encoder.num_features)
        self.value_head = nn.Linear(self.encoder.num_features, 1)

    def initialise(self, seed: int) -> None:
        """Orthogonal weights (Saxe et al. 2014), nearly uniform actions, zero biases; a function of `seed` alone."""
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                gain = 0.01 if module is self.head else 1.0 if module is self.value_head else math.sqrt(2)
                nn.init.orthogonal_(module.weight, gain, generator)
                nn.init.zeros_(module.bias)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Observation [..., *shape] -> (action parameters [..., P], value float32 [...])."""
        if self.value_encoder is None:
            output, value = self.encoder(observation, self.head, self.value_head)
        else:
            (output,), (value,) = self.encoder(observation, self.head), self.value_encoder(observation, self.value_head)
        return self.head.parameters_of(output), value.squeeze(-1)

    @torch.inference_mode()
    def act(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Sample actions.

        Args:
            observation: [B, *shape].
            noise: uniform float32 [B, noise_size].

        Returns:
            actions [B, ...] and the parameters [B, P] of the distribution that they were drawn from.
        """
        parameters = self.parameters_of(observation)
        return self.head.sample(parameters, noise), parameters

    @torch.inference_mode()
    def act_greedily(self, observation: Tensor) -> Tensor:
        """The most likely actions [B, ...]."""
        return self.head.mode(self.parameters_of(observation))

    @torch.inference_mode()
    def parameters_of(self, observation: Tensor) -> Tensor:
        """The parameters [B, P] of the action distributions for observations [B, *shape]."""
        (output,) = self.encoder(observation, self.head)
        return self.head.parameters_of(output)
