"""What an actor remembers of the episodes that its environments are in: recurrent state and frames."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcrl.errors import CheckpointError
from hpcrl.models.frames import stack_frames
from hpcrl.spaces import Space
from hpcrl.unroll import Memory


class ActingMemory:
    """Of B environments. Local.

    Args:
        observation: space of single observations.
        spec: what is remembered.
        first: [B, *shape], the first observations.

    Attributes:
        state: float32 [B, S], the recurrent state before the newest observation.
    """

    def __init__(self, observation: Space, spec: Memory, first: NDArray) -> None:
        self._observation, self._spec = observation, spec
        self.state = torch.zeros(len(first), spec.state_size)
        self._frames = torch.from_numpy(first[:, None].repeat(spec.num_history + 1, 1)) if spec.num_history else None

    @property
    def is_needed(self) -> bool:
        """Whether anything is remembered."""
        return self._spec.state_size > 0 or self._spec.num_history > 0

    def observe(self, observation: NDArray, starts: NDArray) -> None:
        """The next observations.

        Args:
            observation: [B, *shape].
            starts: bool [B], nothing from before counts any more.
        """
        if self._spec.state_size:
            self.state = self.state.masked_fill(torch.from_numpy(starts)[:, None], 0.0)
        if self._frames is not None:
            self._frames[:, :-1] = self._frames[:, 1:].clone()
            newest = torch.from_numpy(observation)
            self._frames[:, -1] = newest
            for row in starts.nonzero()[0].tolist():
                self._frames[row] = newest[row]

    def seen(self, observation: Tensor) -> Tensor:
        """What the policy sees of the newest observations [B, *shape]: them, or the frames that end with them."""
        return observation if self._frames is None else stack_frames(self._observation, self._frames)

    def write(self, core_state: NDArray, history: NDArray) -> None:
        """What there was before the newest observation: float32 [B, S] and frames [num_history, B, *shape]."""
        core_state[...] = self.state.numpy()
        if self._frames is not None:
            history[...] = self._frames[:, :-1].transpose(0, 1).numpy()

    def before(self) -> tuple[NDArray[np.float32], NDArray]:
        """What there was before the newest observation, copies: float32 [B, S] and frames [num_history, B, *shape]."""
        state = self.state.numpy().copy()
        if self._frames is None:
            return state, np.zeros((0, len(state), *self._observation.shape), self._observation.dtype)
        return state, self._frames[:, :-1].transpose(0, 1).numpy().copy()

    def save(self) -> dict[str, NDArray]:
        """Arrays for a checkpoint, environment first; none where nothing is remembered."""
        arrays = {}
        if self._spec.state_size:
            arrays["core_state"] = self.state.numpy().copy()
        if self._frames is not None:
            arrays["frames"] = self._frames.numpy().copy()
        return arrays

    def restore(self, arrays: Mapping[str, NDArray], observation: NDArray, begun_anew: NDArray) -> None:
        """Go back to what `save` returned.

        Args:
            arrays: of a checkpoint.
            observation: [B, *shape], the newest.
            begun_anew: bool [B], environments that could not be restored: nothing from before counts.

        Raises:
            CheckpointError: arrays of another memory.
        """
        for name, own in self.save().items():
            if name not in arrays or arrays[name].shape != own.shape:
                raise CheckpointError(f"the checkpoint's environments/{name} doesn't fit: expected {list(own.shape)}")
        anew = torch.from_numpy(begun_anew)
        if self._spec.state_size:
            self.state = torch.from_numpy(arrays["core_state"].copy())
            self.state[anew] = 0.0
        if self._frames is not None:
            self._frames.copy_(torch.from_numpy(arrays["frames"]))
            self._frames[anew] = torch.from_numpy(observation)[anew][:, None]
