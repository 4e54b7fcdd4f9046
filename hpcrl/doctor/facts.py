"""What a rank can tell of itself, from light sources: its cores, its variables, its versions."""

from __future__ import annotations

import os
import platform
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

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
        trouble: why it can't be loaded.
    """

    threads: int = 0
    cores: tuple[int, ...] = ()
    build: str = "cpu"
    devices: int = 0
    trouble: str = ""


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

    @property
    def situation(self) -> tuple[object, ...]:
        """What torch's answers depend on."""
        names = (*THREAD_VARIABLES, *PIN_VARIABLES, "CUDA_VISIBLE_DEVICES")
        return (self.node, len(self.cores), *(self.variables.get(name) for name in names))


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
    )


def look_at_torch() -> TorchFacts:
    """Loads torch, which takes a second or more, and limits nothing. Local."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return TorchFacts(trouble=f"{' '.join(str(error).split())} (in {sys.executable})")
    build = str(torch.version.cuda or getattr(torch.version, "hip", None) or "cpu")
    return TorchFacts(torch.get_num_threads(), tuple(sorted(os.sched_getaffinity(0))), build, torch.cuda.device_count())


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
