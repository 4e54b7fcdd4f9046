"""What a rank can tell of itself, from light sources: its cores, its variables, its versions."""

from __future__ import annotations

import os
import platform
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from hpcrl.devices.gpus import own_gpus
from hpcrl.devices.nvml import Nvml, open_nvml
from hpcrl.doctor.copies import copy_rate

#: Variables by which numerical libraries are told how many threads to start.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
#: Variables by which OpenMP libraries pin the threads of a process, its first one too, when they are loaded.
PIN_VARIABLES = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
_OTHER_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "HDF5_USE_FILE_LOCKING",
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "SLURM_CPUS_ON_NODE",
    "SLURM_CPUS_PER_TASK",
    "SLURM_GPUS_ON_NODE",
    "SLURM_JOB_ID",
    "SLURM_PROCID",
    "SLURM_STEP_ID",
)
_PACKAGES = ("hpcrl", "torch", "numpy", "h5py", "mpi4py")


@dataclass(frozen=True)
class TorchFacts:
    """What only a process that has loaded torch can tell.

    Attributes:
        threads: that torch would compute with, nobody having limited it.
        cores: that the process may use once torch is loaded.
        build: `cpu`, or the version of CUDA or ROCm.
        devices: number of GPUs that it can use.
        copy_rates: bytes a second from pinned host memory to each of these, in CUDA's order; None where that failed.
        trouble: why it can't be loaded.
    """

    threads: int = 0
    cores: tuple[int, ...] = ()
    build: str = "cpu"
    devices: int = 0
    copy_rates: tuple[float | None, ...] = ()
    trouble: str = ""


@dataclass(frozen=True)
class GpuFacts:
    """A GPU, or a MIG instance, that CUDA shows a rank; None is what the driver doesn't tell.

    Attributes:
        uuid: begins with GPU- or MIG-.
        name: the product's.
        memory_bytes: that it has.
        busy_percent: share of the moments before in which it computed.
        used_bytes: memory in use by anybody.
    """

    uuid: str
    name: str
    memory_bytes: int | None
    busy_percent: int | None
    used_bytes: int | None


@dataclass(frozen=True)
class RankFacts:
    """What one rank tells of itself and its node.

    Attributes:
        node: the lowest rank of its node.
        cores: that it may use.
        machine_cores: that its machine has.
        quota: cores' worth of time that its container may use; None without a limit.
        variables: those that are set, of the ones that matter here.
        versions: of Python and packages.
        torch: of this rank, or of one of its node in the same situation.
        listed_gpus: those that the driver's own tool lists on its node.
        gpus: those that CUDA shows it, in CUDA's order, as they were before anybody loaded torch.
    """

    rank: int
    node: int
    host: str
    cores: tuple[int, ...]
    machine_cores: int
    quota: float | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    torch: TorchFacts | None = None
    listed_gpus: tuple[str, ...] = ()
    gpus: tuple[GpuFacts, ...] = ()

    @property
    def situation(self) -> tuple[object, ...]:
        """What torch's answers depend on."""
        names = (*THREAD_VARIABLES, *PIN_VARIABLES, "CUDA_VISIBLE_DEVICES")
        # Under one value of CUDA_VISIBLE_DEVICES tasks of Slurm may each see another GPU.
        gpus = tuple(gpu.uuid for gpu in self.gpus)
        return (self.node, len(self.cores), gpus, *(self.variables.get(name) for name in names))


def look_at_rank(rank: int, node: int) -> RankFacts:
    """The light facts of this process. Local."""
    names = (*THREAD_VARIABLES, *PIN_VARIABLES, *_OTHER_VARIABLES)
    return RankFacts(
        rank=rank,
        node=node,
        host=socket.gethostname(),
        cores=tuple(sorted(os.sched_getaffinity(0))),
        machine_cores=os.cpu_count() or 1,
        quota=_quota(Path("/sys/fs/cgroup")),
        variables={name: os.environ[name] for name in names if name in os.environ},
        versions={"Python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        gpus=look_at_gpus(),
    )


def look_at_gpus(open_library: Callable[[], Nvml | None] = open_nvml) -> tuple[GpuFacts, ...]:
    """The GPUs that CUDA would show this process, told without starting it. Local.

    Args:
        open_library: see `hpcrl.devices.nvml.open_nvml`.
    """
    shown = own_gpus(open_library)
    if not shown or (library := open_library()) is None:
        return ()
    with closing(library):
        return tuple(GpuFacts(gpu.uuid, gpu.name, gpu.memory_bytes, *library.usage(gpu.uuid)) for gpu in shown)


def look_at_torch() -> TorchFacts:
    """Loads torch, which takes a second or more, and limits nothing. Local."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return TorchFacts(trouble=f"{' '.join(str(error).split())} (in {sys.executable})")
    build = str(torch.version.cuda or getattr(torch.version, "hip", None) or "cpu")
    threads, cores = torch.get_num_threads(), tuple(sorted(os.sched_getaffinity(0)))
    devices = torch.cuda.device_count()
    return TorchFacts(threads, cores, build, devices, tuple(copy_rate(torch, index) for index in range(devices)))


def by_node(facts: Sequence[RankFacts]) -> list[list[RankFacts]]:
    """The facts of every node's ranks, in the order of the nodes' first ranks."""
    nodes: dict[int, list[RankFacts]] = {}
    for rank in facts:
        nodes.setdefault(rank.node, []).append(rank)
    return list(nodes.values())


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _quota(folder: Path) -> float | None:
    """The limit of the control group that this process sees as its root (of a container), in cores."""
    try:
        if (limits := folder / "cpu.max").exists():
            quota, period = limits.read_text().split()
        else:
            quota = (folder / "cpu/cpu.cfs_quota_us").read_text()
            period = (folder / "cpu/cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):
        return None
