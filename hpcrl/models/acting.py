"""The policy's network as those use it who act: prepared once for a version of the weights, then called many times."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcrl.models.encoders import MLP
from hpcrl.models.policy import Policy


class ActingNetwork:
    """Parameters of action distributions for observations, without gradients.

    Args:
        policy: whose weights it takes over, at first and at every `refresh`.
        with_value: whether it tells the values of observations too.

    Attributes:
        value: float32 [B], of the observations of the last step; None unless it was asked for.
    """

    def __init__(self, policy: Policy, with_value: bool = False) -> None:
        self._policy, self._with_value = policy, with_value
        self._is_folded = isinstance(policy.encoder, MLP) and policy.core is None
        self.value: Tensor | None = None
        self.refresh()

    def refresh(self) -> None:
        """Take over the policy's weights as they are now."""
        encoder = self._policy.encoder
        if self._is_folded:
            assert isinstance(encoder, MLP)
            self._network = encoder.fold(self._policy.head)
            if self._with_value:
                self._value_network = _value_encoder(self._policy).fold(self._policy.value_head)
        else:
            self._features = encoder.fold_features()

    def step(self, observation: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """`Policy.step` up to rounding. To be called under `torch.inference_mode`."""
        seen = self._policy.inputs(observation)
        if not self._is_folded:
            parameters, state, features = self._policy.step_on(self._features(seen), seen, state)
            if self._with_value:
                self.value = self._policy.value_on(features, seen)
            return parameters, state
        parameters = self._policy.head.parameters_of(self._network(seen.rows).t())
        if self._with_value:
            self.value = self._value_network(seen.rows)[0]
        return parameters if seen.mask is None else self._policy.head.masked(parameters, seen.mask), state


def can_value_later(policy: Policy) -> bool:
    """Whether values need nothing that acting computes, or little: then they are cheaper for many rows at once."""
    return isinstance(policy.encoder, MLP) and policy.core is None and policy.num_history == 0


@torch.inference_mode()
def value_later(policy: Policy, observation: Tensor) -> Tensor:
    """The values float32 [T, B] of observations [T, B, *shape], under a policy that `can_value_later`."""
    seen = policy.inputs(observation.flatten(0, 1))
    return _value_encoder(policy)(seen, policy.value_head)[0].view(observation.shape[:2])


def _value_encoder(policy: Policy) -> MLP:
    encoder = policy.encoder if policy.value_encoder is None else policy.value_encoder
    assert isinstance(encoder, MLP)
    return encoder
