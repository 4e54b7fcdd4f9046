"""An accelerator's memory, and the queues of copies and kernels that it works through while the host goes on."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcrl.devices.nvml import Usage, open_nvml
from hpcrl.devices.stopwatch import HostStamp
from hpcrl.errors import ConfigError

#: Longest sleep between two looks at an accelerator, whose work is a matter of milliseconds.
SHORT_SLEEP_S = 5e-5


class Mark(Protocol):
    """A place in a queue."""

    def is_passed(self) -> bool:
        """Whether all that was queued before it is done. Local."""


class Queue(ABC):
    """Work that an accelerator does in order. Nothing here waits for it."""

    @abstractmethod
    def copy(self, source: Tensor, target: Tensor) -> None:
        """Queue a copy; host memory must be pinned, and stay as it is until a later mark is passed."""

    @abstractmethod
    def mark(self) -> Mark:
        """A place behind all that is queued so far."""

    @abstractmethod
    def stamp(self) -> Any:
        """The moment (`hpcrl.devices.stopwatch.Stamp`) when all that is queued so far will be done."""

    @abstractmethod
    def active(self) -> AbstractContextManager[object]:
        """What torch is told inside is queued here."""

    @abstractmethod
    def wait_for(self, mark: Mark) -> None:
        """Let all that is queued later begin only once `mark`, of any queue of the accelerator, is passed."""


class Accelerator(ABC):
    """What one learner computes on.

    Attributes:
        device: of its tensors.
        compute: the queue of all that torch does with them.
        copies: a queue beside it.
    """

    device: torch.device
    compute: Queue
    copies: Queue

    @abstractmethod
    def new_queue(self) -> Queue:
        """One more queue beside the others; what it does comes before what `compute` does where both could begin."""

    @abstractmethod
    def pin(self, memories: Iterable[NDArray[np.uint8]]) -> None:
        """Keep host memory where it is until `close`, so that queues may copy from and to it."""

    @abstractmethod
    def unpin(self) -> None:
        """Let go of what `pin` kept, once all that is queued is done."""

    @abstractmethod
    def pinned(self, like: Tensor) -> Tensor:
        """Host memory of the shape and dtype of `like`, pinned."""

    @abstractmethod
    def usage(self) -> Usage:
        """How busy it is, and how much of its memory is in use."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything."""


class _Done:
    def is_passed(self) -> bool:
        return True


class _Immediate(Queue):
    def copy(self, source: Tensor, target: Tensor) -> None:
        target.copy_(source)

    def mark(self) -> Mark:
        return _Done()

    def stamp(self) -> Any:
        return HostStamp()

    def active(self) -> AbstractContextManager[object]:
        return nullcontext()

    def wait_for(self, mark: Mark) -> None:
        """Nothing is ever left to wait for."""


class HostAccelerator(Accelerator):
    """The CPU in the place of an accelerator, with memory of its own: for rehearsals without one."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.compute = self.copies = _Immediate()

    def new_queue(self) -> Queue:
        return _Immediate()

    def pin(self, memories: Iterable[NDArray[np.uint8]]) -> None:
        """Nothing to do."""

    def unpin(self) -> None:
        """Nothing to do."""

    def pinned(self, like: Tensor) -> Tensor:
        return torch.zeros_like(like, device="cpu")

    def usage(self) -> Usage:
        return Usage(None, None)

    def close(self) -> None:
        """Nothing to do."""


class _Event:
    def __init__(self, stream: Any) -> None:
        self.event = torch.cuda.Event()
        self.event.record(stream)

    def is_passed(self) -> bool:
        return self.event.query()


class _Moment:
    def __init__(self, stream: Any) -> None:
        self._event = torch.cuda.Event(enable_timing=True)
        self._event.record(stream)

    def has_come(self) -> bool:
        return self._event.query()

    def seconds_since(self, earlier: _Moment) -> float:
        return earlier._event.elapsed_time(self._event) / 1000


class _Stream(Queue):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def copy(self, source: Tensor, target: Tensor) -> None:
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)

    def mark(self) -> Mark:
        return _Event(self._stream)

    def stamp(self) -> Any:
        return _Moment(self._stream)

    def active(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._stream)

    def wait_for(self, mark: Mark) -> None:
        assert isinstance(mark, _Event), "the mark is of another kind of accelerator"
        self._stream.wait_event(mark.event)


class CudaAccelerator(Accelerator):
    """A CUDA device, made the current one of this process, whose results are to be the same every time.

    Args:
        index: its number among those that this process sees.
        uuid: as the driver names it.

    Raises:
        ConfigError: torch can't use it.
    """

    def __init__(self, index: int, uuid: str) -> None:
        self._uuid, self._library = uuid, open_nvml()
        self.device = torch.device("cuda", index)
        try:
            _be_exact()
            torch.cuda.set_device(self.device)
            self.compute = _Stream(torch.cuda.current_stream(self.device))
            self.copies = _Stream(torch.cuda.Stream(self.device))
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"torch {torch.__version__} can't use CUDA device {index}: {error}") from error
        self._registered: list[int] = []

    def new_queue(self) -> Queue:
        return _Stream(torch.cuda.Stream(self.device, priority=-1))

    def pin(self, memories: Iterable[NDArray[np.uint8]]) -> None:
        runtime = torch.cuda.cudart()
        for start, end in ranges(memories, os.sysconf("SC_PAGE_SIZE")):
            if int(runtime.cudaHostRegister(start, end - start, 0)) == 0:
                self._registered.append(start)
                continue
            # It is copied all the same, though the host waits for that. What starts a kernel next would take CUDA's
            # last error for its own, so let it be this one.
            with suppress(RuntimeError):
                torch.ones(1, device=self.device)

    def pinned(self, like: Tensor) -> Tensor:
        return torch.zeros(like.shape, dtype=like.dtype, pin_memory=True)

    def usage(self) -> Usage:
        return Usage(None, None) if self._library is None else self._library.usage(self._uuid)

    def close(self) -> None:
        self.unpin()
        if self._library is not None:
            self._library.close()

    def unpin(self) -> None:
        torch.cuda.synchronize(self.device)
        runtime = torch.cuda.cudart()
        while self._registered:
            runtime.cudaHostUnregister(self._registered.pop())


def _be_exact() -> None:
    """Have CUDA's libraries compute the same every time, and products of float32 in float32; for this process."""
    # Read when the library is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def ranges(memories: Iterable[NDArray[np.uint8]], page_bytes: int) -> list[tuple[int, int]]:
    """Addresses [start, end) of whole pages that hold these memories, each page once, ascending."""
    pieces = sorted((memory.ctypes.data, memory.ctypes.data + memory.nbytes) for memory in memories if memory.nbytes)
    joined: list[tuple[int, int]] = []
    for start, end in pieces:
        start, end = start // page_bytes * page_bytes, -(-end // page_bytes) * page_bytes
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined
