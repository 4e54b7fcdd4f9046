"""The policy's network as those use it who act: prepared once for a version of the weights, then called many times."""

from __future__ import annotations

from torch import Tensor

from hpcrl.models.encoders import MLP
from hpcrl.models.policy import Policy


class ActingNetwork:
    """Parameters of action distributions for observations, without gradients.

    Args:
        policy: whose weights it takes over, at first and at every `refresh`.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._is_folded = isinstance(policy.encoder, MLP) and policy.core is None
        self.refresh()

    def refresh(self) -> None:
        """Take over the policy's weights as they are now."""
        encoder = self._policy.encoder
        if self._is_folded:
            assert isinstance(encoder, MLP)
            self._network = encoder.fold(self._policy.head)
        else:
            self._features = encoder.fold_features()

    def step(self, observation: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """`Policy.step` up to rounding. To be called under `torch.inference_mode`."""
        seen = self._policy.inputs(observation)
        if not self._is_folded:
            return self._policy.step_on(self._features(seen), seen, state)
        parameters = self._policy.head.parameters_of(self._network(seen.rows).t())
        return parameters if seen.mask is None else self._policy.head.masked(parameters, seen.mask), state
