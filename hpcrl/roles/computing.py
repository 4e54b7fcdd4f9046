"""Which ranks learn, and on what: a layout that knows the GPUs of all ranks, and the accelerator of this one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from hpcrl.cluster.assignment import Device, auto_learners, plan_devices
from hpcrl.cluster.collectives import gather, on_root
from hpcrl.cluster.layout import Layout, plan_layout, plan_workers
from hpcrl.cluster.mpi import Comm
from hpcrl.cluster.waiting import Waiter
from hpcrl.config import A3CConfig, TrainConfig
from hpcrl.devices.accelerator import Accelerator, CudaAccelerator
from hpcrl.devices.compiling import How
from hpcrl.devices.gpus import Gpu, own_gpus
from hpcrl.errors import ConfigError
from hpcrl.models.policy import Policy
from hpcrl.spaces import Task

#: Under `--device auto` smaller policies learn on the CPU: starting kernels would take longer than their products.
LEAST_WEIGHTS = 100_000

_COMPILED: dict[How, str] = {"none": "", "kernels": ", compiled", "graphs": ", compiled and replayed as CUDA graphs"}


@dataclass(frozen=True)
class Plan:
    """Who does what, and on what.

    Attributes:
        layout: of the world.
        devices: of every learner, by rank; None is the CPU.
        how: what GPUs compute is compiled.
        hosts: name of every rank's host.
    """

    layout: Layout
    devices: dict[int, Device | None]
    how: How = "none"
    hosts: tuple[str, ...] = ()

    @property
    def on_gpus(self) -> bool:
        """Learners compute on GPUs."""
        return any(device is not None for device in self.devices.values())

    def describe(self) -> str | None:
        """One line for people on the learners' GPUs; None without any."""
        names = [device.name for device in self.devices.values() if device is not None]
        if not names:
            return None
        kinds = ", ".join(f"{names.count(name)} x {name}" if len(names) > 1 else name for name in dict.fromkeys(names))
        shared = len({(self.layout.node_of[rank], d.uuid) for rank, d in self.devices.items() if d}) < len(names)
        return f"learning on {kinds}" + (" (some shared)" if shared else "") + _COMPILED[self.how]


def plan(config: TrainConfig, task: Task, world: Comm, nodes: Sequence[int], waiter: Waiter) -> Plan:
    """The same plan on all ranks. Collective over `world`.

    Args:
        nodes: what tells each rank's node.

    Raises:
        ConfigError: on all ranks, what can't be dealt out.
    """
    wants_gpus = may_use_gpus(config, task)
    seen = gather(world, own_gpus() if wants_gpus else (), waiter)
    hosts = gather(world, os.uname().nodename, waiter)
    return on_root(world, partial(make_plan, config, nodes, seen, hosts, wants_gpus), waiter)


def make_plan(
    config: TrainConfig, nodes: Sequence[int], seen: Sequence[Sequence[Gpu]], hosts: Sequence[str], wants_gpus: bool
) -> Plan:
    """A pure function of what the ranks see.

    Args:
        seen: GPUs of every rank; none where its torch can't use them.
        hosts: of every rank.
        wants_gpus: whether GPUs may be used at all.

    Raises:
        ConfigError: what can't be dealt out, or compiled.
    """
    is_a3c = isinstance(config, A3CConfig)
    sizes = (config.num_envs, config.learner_ranks, len(config.env_ids))
    if is_a3c:
        layout = plan_workers(nodes, config.learners, config.placement, *sizes)
    else:
        with_gpus = auto_learners(nodes, seen) if wants_gpus else ()
        layout = plan_layout(nodes, config.learners, config.placement, *sizes, with_gpus)
    device = config.device if wants_gpus else "cpu"
    devices = plan_devices(layout.node_of, seen, layout.learners, device, config.share_gpus, hosts)
    made = Plan(layout, devices, config.compile, tuple(hosts))
    if config.compile != "none" and not made.on_gpus:
        raise ConfigError(
            f"--compile must be none where learners compute on CPUs, as they do here under --device {config.device}, "
            f"got {config.compile!r}"
        )
    return made


def may_use_gpus(config: TrainConfig, task: Task) -> bool:
    """Whether learners compute on GPUs where they see some. Local.

    Raises:
        ConfigError: they should, and torch can't.
    """
    if isinstance(config, A3CConfig) or config.device == "cpu":
        return False
    if not torch.version.cuda:
        if config.device == "cuda":
            raise ConfigError(f"--device cuda needs a build of torch for CUDA, got torch {torch.__version__}")
        return False
    if config.device == "cuda":
        return True
    with torch.device("meta"):
        policy = Policy(task, config)
    return sum(parameter.numel() for parameter in policy.parameters()) >= LEAST_WEIGHTS


def make_accelerator(device: Device | None) -> Accelerator | None:
    """What this rank computes on; None is the CPU. Local.

    Raises:
        ConfigError: CUDA numbers its GPUs otherwise than the plan took for granted.
    """
    if device is None:
        return None
    accelerator = CudaAccelerator(device.index, device.uuid)
    uuid = str(getattr(torch.cuda.get_device_properties(accelerator.device), "uuid", device.uuid))
    if uuid.removeprefix("GPU-") != device.uuid.removeprefix("GPU-") and not device.uuid.startswith("MIG-"):
        raise ConfigError(
            f"CUDA's device {device.index} is {uuid}, expected {device.uuid}; set CUDA_DEVICE_ORDER=PCI_BUS_ID"
        )
    return accelerator
