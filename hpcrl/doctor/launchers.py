"""How this process was started, as its environment tells it, and what to type instead. Knows no MPI."""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Mapping

from hpcrl.cluster.launch import inside_mpi, promised_size


def started_by_srun(environment: Mapping[str, str]) -> bool:
    """Whether srun itself started this process, not an mpirun whose daemons srun started."""
    if "SLURM_STEP_ID" not in environment or "SLURM_PROCID" not in environment:
        return False
    if "OMPI_COMM_WORLD_SIZE" in environment:
        return False
    if "PMI_SIZE" not in environment:
        return True
    slurm = {name: value for name, value in environment.items() if name != "PMI_SIZE"}
    promised = promised_size(None, slurm)
    same_size = promised is not None and str(promised.size) == environment["PMI_SIZE"]
    return same_size and environment.get("PMI_RANK") == environment["SLURM_PROCID"]


def launcher(environment: Mapping[str, str]) -> str:
    """`srun`, `mpirun`, or an empty text for a process that nobody started as a rank."""
    if started_by_srun(environment):
        return "srun"
    return "mpirun" if inside_mpi(environment) else ""


def speaks(environment: Mapping[str, str]) -> bool:
    """Whether this process has rank 0 as its launcher counts, whatever MPI believes."""
    if started_by_srun(environment):
        return environment["SLURM_PROCID"] == "0"
    ranks = (environment.get(name) for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"))
    return next((rank for rank in ranks if rank is not None), "0") == "0"


def own_launcher() -> str:
    """The mpirun that pip installed beside this Python; empty where there is none. Local."""
    return shutil.which("mpirun", path=sysconfig.get_path("scripts")) or ""


def describe_start(environment: Mapping[str, str]) -> str:
    """How the ranks were started, as words."""
    return f"started by {launcher(environment)}" if launcher(environment) else "started without a launcher"


def unbinding(environment: Mapping[str, str], library: str) -> str:
    """What to type so that ranks are not bound to cores."""
    if launcher(environment) == "srun":
        return "start the ranks with `srun --cpu-bind=none`, or give each its cores with --cpus-per-task"
    if launcher(environment) == "mpirun":
        option = "--bind-to none" if "open mpi" in library.lower() else "-bind-to none"
        return f"start the ranks with `mpirun {option}`, outside of taskset and the like"
    return "start it outside of taskset and the like"
