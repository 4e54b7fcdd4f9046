"""Sums vectors through a process group of torch, made without torch's global state: NCCL between GPUs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor

from hpcrl.activity import Phase
from hpcrl.cluster.attempts import Attempt, attempt, first_trouble, in_one_sentence
from hpcrl.cluster.mpi import Comm
from hpcrl.cluster.reductions import Reduction, SumError
from hpcrl.cluster.rendezvous import open_store
from hpcrl.cluster.waiting import Waiter

if TYPE_CHECKING:
    from torch.distributed import TCPStore

# The watchdog of NCCL's process groups would end the process where a peer is lost. We name the rank, then end the job.
os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")

#: Whether a wait is in vain is decided by signs of life, not by its length.
_FOR_EVER = timedelta(days=365)
_CLOSE_S = 2.0


class Work(Protocol):
    """A sum under way."""

    def is_completed(self) -> bool:
        """It is over, well or not; returns at once."""

    def wait(self) -> object:
        """Raise what went wrong; else what is computed from now on sees the sum. Returns at once if completed."""


class Group(Protocol):
    """What is used of a process group (`torch.distributed.ProcessGroupNCCL`)."""

    def allreduce(self, tensors: list[Tensor]) -> Work:
        """Replace the one tensor by its sum over the group; returns at once."""

    def abort(self) -> None:
        """Give up what is under way, and all connections; may block."""


#: Makes this learner's member of a group, from (store, learner, number of learners, device). Runs in a thread of its
#: own and may block. All learners must be connected when it returns, as later nothing may block.
GroupMaker = Callable[["TCPStore", int, int, torch.device], Group]


def nccl_group(store: TCPStore, learner: int, learners: int, device: torch.device) -> Group:
    """A group of CUDA devices. Collective over the learners; blocks."""
    from torch.distributed import ProcessGroupNCCL

    torch.cuda.set_device(device)
    options = ProcessGroupNCCL.Options()
    options._timeout = _FOR_EVER
    # The stubs of torch miss what is inherited.
    group = cast(Group, ProcessGroupNCCL(store, learner, learners, options))
    # The first sum connects the devices.
    group.allreduce([torch.zeros(1, device=device)]).wait()
    torch.cuda.current_stream(device).synchronize()
    return group


class GroupReduction(Reduction):
    """Sums vectors where they lie, through a process group. MPI is not called but by the waiter's watch.

    Args:
        group: of the learners, connected.
        device: of all vectors.
        name: for people.
    """

    overlaps = True
    chunk_bytes = 2**23

    def __init__(self, comm: Comm, waiter: Waiter, group: Group, device: torch.device, name: str = "NCCL") -> None:
        super().__init__(comm, waiter)
        self.device_type, self.name = device.type, name
        self._held = [group]
        self._works: list[Work] = []

    def _start(self, part: slice) -> None:
        if not self._held:
            raise SumError(f"a sum through {self.name} was begun after its process group was closed")
        with self._one_sentence():
            self._works.append(self._held[0].allreduce([self._vector[part]]))

    def _complete(self) -> None:
        works, self._works = self._works, []
        for work in works:
            self._waiter.until(work.is_completed, Phase.REDUCING)
            with self._one_sentence():
                work.wait()

    def _one_sentence(self) -> _OneSentence:
        return _OneSentence(f"a sum through {self.name} failed on learner {self._comm.rank} of {self._comm.size}")

    def close(self) -> None:
        """Give the group up. Local; returns within two seconds though a peer is dead or stuck."""
        super().close()
        held, self._held, self._works = self._held, [], []
        if held:
            _give_up(held)


class _OneSentence:
    """Makes what torch raises inside a SumError."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, RuntimeError):
            raise SumError(f"{self._what}: {in_one_sentence(error)}") from error


def _give_up(held: list[Group]) -> None:
    """In a thread, which also drops the group: its destructor waits for sums that may never be over.

    Args:
        held: the only reference to one group.
    """
    giving_up = threading.Thread(target=_abort, args=[held], name="hpcrl-abort", daemon=True)
    giving_up.start()
    giving_up.join(_CLOSE_S)


def _abort(held: list[Group]) -> None:
    group = held.pop()
    # Before torch 2.7 NCCL's had it under another name.
    (getattr(group, "abort", None) or group._abort)()  # type: ignore[attr-defined]


def open_group(
    comm: Comm, device: torch.device, waiter: Waiter, limit_s: float, make: GroupMaker = nccl_group, name: str = "NCCL"
) -> Attempt[GroupReduction]:
    """Connect the learners' devices. Collective over `comm`.

    Args:
        comm: the learners.
        device: of this learner.
        limit_s: seconds that each step may take.
        make: makes the group.
        name: for people.

    Returns:
        The way to sum; or trouble, the same on all, and no group on any.
    """
    store, trouble = open_store(comm, waiter, limit_s)
    if store is None:
        return Attempt(None, trouble)
    made = attempt(partial(make, store, comm.rank, comm.size, device), waiter, limit_s)
    held, trouble = [made.value] if made.value is not None else [], made.trouble
    del made
    if trouble := first_trouble(comm, trouble, waiter):
        if held:
            _give_up(held)
        return Attempt(None, trouble)
    return Attempt(GroupReduction(comm, waiter, held.pop(), device, name))
