"""An accelerator that lags behind the host as much as one may: copies happen when a mark is asked for often enough."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcrl.devices.accelerator import Accelerator, Mark, Queue
from hpcrl.devices.nvml import Usage
from hpcrl.devices.stopwatch import HostStamp


class LateMark:
    def __init__(self, queue: LateQueue, place: int, polls: int) -> None:
        self._queue, self._place, self._polls = queue, place, polls

    def is_passed(self) -> bool:
        self._polls -= 1
        if self._polls <= 0:
            self.force()
        return self._queue.done >= self._place

    def force(self) -> None:
        self._queue.work_to(self._place)


class LateQueue(Queue):
    """Copies are made when a mark behind them is passed, or when another queue's work waits for it."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._work: list[tuple[Tensor, Tensor] | LateMark] = []
        self.done = 0

    def copy(self, source: Tensor, target: Tensor) -> None:
        self._work.append((source, target))

    def mark(self) -> Mark:
        return LateMark(self, len(self._work), int(self._rng.integers(1, 5)))

    def stamp(self) -> Any:
        return HostStamp()

    @contextmanager
    def active(self) -> Iterator[None]:
        # torch's own work is done when it is told to, so all before it must be.
        self.work_to(len(self._work))
        yield

    def wait_for(self, mark: Mark) -> None:
        assert isinstance(mark, LateMark)
        self._work.append(mark)

    def work_to(self, place: int) -> None:
        while self.done < place:
            step = self._work[self.done]
            self.done += 1
            if isinstance(step, LateMark):
                step.force()
            else:
                step[1].copy_(step[0])


class Computing(LateQueue):
    """The queue of torch's own work: that is done at once, so it waits at once."""

    def wait_for(self, mark: Mark) -> None:
        super().wait_for(mark)
        self.work_to(len(self._work))


class LateAccelerator(Accelerator):
    """The CPU in the place of an accelerator; memory that is not there yet holds garbage."""

    def __init__(self, seed: int = 1) -> None:
        rng = np.random.default_rng(seed)
        self.device = torch.device("cpu")
        self.compute: Queue = Computing(rng)
        self.copies: Queue = LateQueue(rng)
        self._rng = rng
        self.num_pinned = 0
        self.is_closed = False

    def new_queue(self) -> Queue:
        return LateQueue(self._rng)

    def pin(self, memories: Iterable[NDArray[np.uint8]]) -> None:
        self.num_pinned += sum(1 for _ in memories)

    def unpin(self) -> None:
        self.num_pinned = 0

    def pinned(self, like: Tensor) -> Tensor:
        return torch.full_like(like, 77)

    def usage(self) -> Usage:
        return Usage(40, 2**20)

    def close(self) -> None:
        self.is_closed = True
