"""Which way gradients are summed: what is asked for, what the devices allow, and what passes its self-test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from hpcrl.cluster.attempts import everyones, first_trouble, time_limit
from hpcrl.cluster.cuda_copies import CudaCopies
from hpcrl.cluster.mpi import Comm
from hpcrl.cluster.process_group import GroupMaker, nccl_group, open_group
from hpcrl.cluster.reductions import HostReduction, NoReduction, Reduction, SumError
from hpcrl.cluster.rendezvous import own_place
from hpcrl.cluster.staging import StagedReduction
from hpcrl.cluster.waiting import Waiter
from hpcrl.devices.gpus import own_gpus
from hpcrl.errors import ConfigError

CHOICES = ("auto", "host", "nccl")


class LearnerDevice(NamedTuple):
    """What one learner computes on.

    Attributes:
        kind: cpu or cuda.
        identity: of a CUDA device, the same in all processes and on no other device; else empty.
        has_nccl: its torch knows NCCL.
    """

    kind: str
    identity: str
    has_nccl: bool


def look_at_device(device: torch.device) -> LearnerDevice:
    """What this process tells the others of its device. Local."""
    from torch.distributed import is_nccl_available

    if device.type != "cuda":
        return LearnerDevice(device.type, "", is_nccl_available())
    # Clones of one virtual machine may number their GPUs alike.
    place, uuid = own_place(), getattr(torch.cuda.get_device_properties(device), "uuid", None)
    if uuid is None:
        uuid = own_gpus()[device.index or 0].uuid
    return LearnerDevice(device.type, f"{place.kernel or place.host}/{uuid}", is_nccl_available())


def why_not_nccl(devices: Sequence[LearnerDevice]) -> str:
    """What is against NCCL between the devices of all learners, as part of a sentence; empty for nothing."""
    if len(devices) == 1:
        return "there is one learner"
    for learner, device in enumerate(devices):
        if device.kind != "cuda":
            return f"learner {learner} computes on {device.kind}"
        if not device.has_nccl:
            return f"the torch of learner {learner} has no NCCL"
        if (other := next(place for place, other in enumerate(devices) if other.identity == device.identity)) < learner:
            return f"learners {other} and {learner} share a GPU"
    return ""


def self_test(reduction: Reduction, comm: Comm, device: torch.device, waiter: Waiter, limit_s: float) -> None:
    """Sum a vector of three chunks whose sum is known. Collective over the learners.

    Its numbers are whole, and below 2^24 for up to 9,000 learners, so that float32 sums them exactly in any order.

    Args:
        device: of this learner.
        limit_s: seconds that the sum may take, and then the learners to agree.

    Raises:
        SumError: on all learners, where the sum of one is wrong, failed, or took longer; on one alone where they can't
            agree in time.
    """
    places = torch.arange(2 * reduction.chunk_bytes // 4 + 3, device=device) % 251 + 1
    vector = (places * (comm.rank % 7 + 1)).to(torch.float32)
    expected = (places * sum(learner % 7 + 1 for learner in range(comm.size))).to(torch.float32)
    trouble, late = "", SumError(f"no sum through {reduction.name} within {limit_s:g} s")
    try:
        with time_limit(waiter, limit_s, late):
            reduction.sum(vector)
    except SumError as error:
        trouble = str(error)
    else:
        if wrong := int((vector != expected).sum()):
            trouble = f"{wrong} of {vector.numel()} sums of known numbers are wrong"
    with time_limit(waiter, limit_s, late):
        trouble = first_trouble(comm, trouble, waiter)
    if trouble:
        failed = SumError(f"the self-test of sums through {reduction.name} failed: {trouble}")
        failed.on_all_ranks = True
        raise failed


def choose_reduction(
    asked: str,
    comm: Comm,
    device: torch.device,
    waiter: Waiter,
    limit_s: float = 60.0,
    make_group: GroupMaker = nccl_group,
) -> tuple[Reduction, str]:
    """How the learners sum their gradients from now on, and a sentence that says why. Collective over `comm`.

    Args:
        asked: "host" for MPI, through host memory where vectors lie on a device; "nccl" for NCCL, where every learner
            needs a GPU of its own; "auto" for NCCL if that can be and passes its self-test, else MPI.
        comm: the learners.
        device: of this learner.
        waiter: waits politely.
        limit_s: seconds that each step of connecting and testing may take.
        make_group: makes the process group.

    Raises:
        ConfigError: on all learners, for another word, or NCCL where it can't be.
        SumError: the self-test of the sums through MPI failed.
    """
    if asked not in CHOICES:
        raise _on_all_ranks(ConfigError(f"gradients are summed by one of {', '.join(CHOICES)}, got {asked!r}"))
    if comm.size == 1 and asked != "nccl":
        return NoReduction(comm, waiter, device.type), "one learner has no gradients to add to its own"
    why = "it was asked for"
    if asked != "host":
        why = why_not_nccl(everyones(comm, look_at_device(device), waiter))
        group, why = (None, why) if why else _tested_group(comm, device, waiter, limit_s, make_group)
        if group is not None:
            return group, f"gradients are summed through {group.name}: {why}"
        if asked == "nccl":
            raise _on_all_ranks(ConfigError(f"gradients can't be summed through NCCL: {why}"))
    on_host = device.type == "cpu"
    host = HostReduction(comm, waiter) if on_host else StagedReduction(comm, waiter, CudaCopies(device))
    self_test(host, comm, device, waiter, limit_s)
    return host, f"gradients are summed through {host.name}: {why}"


def _tested_group(
    comm: Comm, device: torch.device, waiter: Waiter, limit_s: float, make: GroupMaker
) -> tuple[Reduction | None, str]:
    """A process group that sums rightly; or None, and what is in its way."""
    group, trouble = open_group(comm, device, waiter, limit_s, make)
    if group is None:
        return None, trouble
    try:
        self_test(group, comm, device, waiter, limit_s)
    except SumError as error:
        group.close()
        if not error.on_all_ranks:
            raise
        return None, str(error)
    return group, "every learner has a GPU of its own"


def _on_all_ranks(error: ConfigError) -> ConfigError:
    error.on_all_ranks = True
    return error
