"""A "device" in host memory whose copies are made as late as a device may make them, after a few looks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


class LateCopies:
    """`hpcrl.cluster.staging.Copies` between tensors on the CPU; memory that nothing was copied to holds NaN.

    Args:
        rng: how many looks each copy takes.
    """

    device_type = "cpu"

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._down: list[tuple[Tensor, Tensor, int]] = []
        self._up: list[tuple[Tensor, Tensor]] = []
        self._num_down = self._num_up = 0

    def host_memory(self, size: int) -> Tensor:
        return torch.full((size,), torch.nan)

    def to_host(self, source: Tensor, target: Tensor) -> Callable[[], bool]:
        self._down.append((source, target, len(self._up)))
        place, looks = len(self._down), int(self._rng.integers(0, 60))

        def has_arrived() -> bool:
            nonlocal looks
            looks -= 1
            if looks < 0:
                self._bring(place)
            return self._num_down >= place

        return has_arrived

    def _bring(self, place: int) -> None:
        for source, target, behind in self._down[self._num_down : place]:
            self._take(behind)
            target.copy_(source)
        self._num_down = max(self._num_down, place)

    def _take(self, place: int) -> None:
        for source, target in self._up[self._num_up : place]:
            target.copy_(source)
        self._num_up = max(self._num_up, place)

    def to_device(self, source: Tensor, target: Tensor) -> None:
        self._up.append((source, target))
        self._take(int(self._rng.integers(0, len(self._up) + 1)))

    def join(self) -> None:
        self._take(len(self._up))
