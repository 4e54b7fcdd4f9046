"""Copies between a CUDA device and pinned host memory, in streams of their own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class CudaCopies:
    """`hpcrl.cluster.staging.Copies` for one CUDA device: a stream for each direction, so that both run at once.

    Args:
        device: of all vectors.
    """

    device_type = "cuda"

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._down, self._up = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def host_memory(self, size: int) -> Tensor:
        """Pinned, float32 [size]. Local."""
        return torch.empty(size, dtype=torch.float32, pin_memory=True)

    def to_host(self, source: Tensor, target: Tensor) -> Callable[[], bool]:
        """Copy once the current stream, as it is now, has written `source`, and no copy from `target` runs. Local."""
        self._down.wait_stream(torch.cuda.current_stream(self._device))
        self._down.wait_stream(self._up)
        with torch.cuda.stream(self._down):
            target.copy_(source, non_blocking=True)
        return self._down.record_event().query

    def to_device(self, source: Tensor, target: Tensor) -> None:
        """Copy at once. Local."""
        with torch.cuda.stream(self._up):
            target.copy_(source, non_blocking=True)

    def join(self) -> None:
        """The current stream goes on once all copies to the device are through. Local."""
        torch.cuda.current_stream(self._device).wait_stream(self._up)
