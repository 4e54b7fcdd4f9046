"""Sums vectors that lie on a device: through host memory and MPI, in a pipeline of chunks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hpcrl.activity import Phase
from hpcrl.cluster.mpi import MPI, Comm, Request
from hpcrl.cluster.reductions import Reduction
from hpcrl.cluster.waiting import Waiter


class Copies(Protocol):
    """Copies between a device and host memory, beside what it computes. Every call returns at once. Local.

    The queue of a thread is what it gives the device to compute, one after the other (a CUDA stream).
    """

    #: Of the device, as torch names it.
    device_type: str

    def host_memory(self, size: int) -> Tensor:
        """Host memory that the device reads and writes by itself, float32 [size], of any content."""

    def to_host(self, source: Tensor, target: Tensor) -> Callable[[], bool]:
        """Copy float32 [n] once the caller's queue, as it is now, and all copies to the device are through.

        Returns:
            Whether the copy is done; to ask from the main thread.
        """

    def to_device(self, source: Tensor, target: Tensor) -> None:
        """Copy float32 [n] to the device; `source` stays as it is until a later `to_host` into it."""

    def join(self) -> None:
        """What the caller's queue gets from now on begins once all copies to the device are through."""


class _Chunk(NamedTuple):
    device: Tensor
    host: Tensor


class StagedReduction(Reduction):
    """Sums vectors on a device. While MPI adds one chunk the next comes from the device and the last goes back.

    A chunk that backward has filled starts on its way to the host at once, from whichever thread; MPI is called by
    `finish` alone, chunk after chunk in their fixed order, as they arrive.

    Args:
        copies: to and from the device.
    """

    name = "MPI through host memory"
    overlaps = True

    def __init__(self, comm: Comm, waiter: Waiter, copies: Copies) -> None:
        super().__init__(comm, waiter)
        self.device_type = copies.device_type
        self._copies = copies
        self._host = torch.empty(0)
        self._arriving: deque[tuple[_Chunk, Callable[[], bool]]] = deque()
        self._adding: list[tuple[_Chunk, Request]] = []

    def begin(self, vector: Tensor) -> None:
        super().begin(vector)
        if self._left and self._host.numel() < vector.numel():
            self._host = self._copies.host_memory(vector.numel())

    def _start(self, part: slice) -> None:
        chunk = _Chunk(self._vector[part], self._host[part])
        self._arriving.append((chunk, self._copies.to_host(chunk.device, chunk.host)))

    def _complete(self) -> None:
        if self._arriving and not self._adding:
            # The device may still compute.
            self._waiter.until(self._advance, Phase.LEARNING)
        if not self._ends_soon(self._look):
            while self._arriving or self._adding:
                # A wait for each step that is made, as waits become lazy with time.
                self._waiter.until(self._advance, Phase.REDUCING)
        self._copies.join()

    def _look(self) -> bool:
        self._advance()
        return not self._arriving and not self._adding

    def _advance(self) -> bool:
        """Take every chunk as far as it gets without waiting; whether one got on."""
        advanced = False
        while self._arriving and self._arriving[0][1]():
            chunk, _ = self._arriving.popleft()
            self._adding.append((chunk, self._comm.Iallreduce(MPI.IN_PLACE, chunk.host.numpy())))
            advanced = True
        adding, self._adding = self._adding, []
        for chunk, request in adding:
            if request.Test():
                self._copies.to_device(chunk.host, chunk.device)
                advanced = True
            else:
                self._adding.append((chunk, request))
        return advanced
