"""The policy's network as those use it who act: prepared once for a version of the weights, then called many times."""

from __future__ import annotations

from torch import Tensor

from hpcrl.models.policy import Policy


class ActingNetwork:
    """Parameters of action distributions for observations, without gradients.

    Args:
        policy: whose weights it takes over, at first and at every `refresh`.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.refresh()

    def refresh(self) -> None:
        """Take over the policy's weights as they are now."""
        self._network = self._policy.encoder.fold(self._policy.head)

    def parameters_of(self, observation: Tensor) -> Tensor:
        """`Policy.parameters_of` up to rounding: observations [B, *shape] -> parameters float32 [B, P].

        To be called under `torch.inference_mode`.
        """
        rows = self._policy.encoder.rows_of(observation)
        return self._policy.head.parameters_of(self._network(rows).t())
