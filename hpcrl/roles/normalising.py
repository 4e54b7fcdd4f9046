"""What learners make of rewards before the loss, and of observations for the networks: scales from all ranks' data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcrl.algorithms.batch import Batch
from hpcrl.algorithms.moments import RunningMoments
from hpcrl.config import TrainConfig
from hpcrl.errors import CheckpointError
from hpcrl.models.policy import Policy


class Normalisers:
    """Of one learner; the same on all of them.

    Args:
        config: what is normalised.
        policy: whose inputs are shifted and scaled.
        total: sums float64 [n] over the learners.
    """

    def __init__(self, config: TrainConfig, policy: Policy, total: Callable[[Tensor], Tensor]) -> None:
        self._clip, self._policy, self._total = config.reward_clip, policy, total
        self._returns = RunningMoments(1) if config.normalise_returns else None
        self._observations: RunningMoments | None = None
        if config.normalise_observations:
            self._observations = RunningMoments(policy.inputs.num_inputs // (policy.num_history + 1))

    def prepare(self, batch: Batch) -> Batch:
        """The batch with the rewards that the loss sees: scaled, then clipped. Collective over the learners."""
        reward = batch.reward
        if self._returns is not None:
            self._returns.add(batch.discounted_return[batch.valid][:, None].cpu(), self._total)
            reward = reward * self._returns.scale.to(reward.device, torch.float32)
        return clip_rewards(replace(batch, reward=reward), self._clip)

    def observe(self, batch: Batch) -> None:
        """Take in the batch's observations, for the weights that come next. Collective over the learners."""
        if self._observations is None:
            return
        rows = self._policy.inputs.raw_rows(batch.observation[:-1][batch.valid]).cpu()
        self._observations.add(rows, self._total)
        self._apply(self._observations)

    @torch.no_grad()
    def _apply(self, moments: RunningMoments) -> None:
        """Write shift and scale to the policy, where they travel with its weights."""
        inputs, repeats = self._policy.inputs, self._policy.num_history + 1
        assert inputs.mean is not None and inputs.scale is not None
        boxes = inputs.boxes.cpu()
        inputs.mean.copy_(torch.where(boxes, moments.mean.repeat(repeats).float(), 0.0))
        inputs.scale.copy_(torch.where(boxes, moments.scale.repeat(repeats).float(), 1.0))

    def state(self) -> dict[str, NDArray]:
        """`NAME/...` arrays float64 for a checkpoint."""
        parts = self._parts().items()
        return {f"{name}/{key}": value.numpy() for name, part in parts for key, value in part.state().items()}

    def restore(self, arrays: Mapping[str, NDArray]) -> None:
        """Go back to what `state` returned; CheckpointError where that is missing or of another size."""
        for name, part in self._parts().items():
            state = {}
            for key, own in part.state().items():
                stored = arrays.get(f"{name}/{key}", np.empty(0))
                if stored.shape != tuple(own.shape):
                    what = f"normalisers/{name}/{key}"
                    raise CheckpointError(
                        f"the checkpoint's {what} is {list(stored.shape)}, expected {list(own.shape)}"
                    )
                state[key] = torch.from_numpy(np.array(stored, np.float64))
            part.restore(state)

    def _parts(self) -> dict[str, RunningMoments]:
        parts = {"returns": self._returns, "observations": self._observations}
        return {name: part for name, part in parts.items() if part is not None}


def clip_rewards(batch: Batch, clip: float) -> Batch:
    """The batch with rewards within +-clip; as it is for 0."""
    return replace(batch, reward=batch.reward.clamp(-clip, clip)) if clip else batch
