"""Whether MPI sees as many ranks as the launcher promises."""

from __future__ import annotations

from collections.abc import Mapping

from hpcrl.cluster.launch import promised_size
from hpcrl.cluster.srun import plugins_for
from hpcrl.doctor.finding import Finding, Level
from hpcrl.doctor.launchers import started_by_srun
from hpcrl.words import plural

_NAME = "world"


def judge_world(size: int, library: str, environment: Mapping[str, str], own_launcher: str = "") -> Finding:
    """The world of `size` ranks that `library` sees against the promises in the environment.

    Args:
        own_launcher: the mpirun beside this Python, if any.
    """
    promised = promised_size(None, environment)
    if promised is not None and promised.size != size:
        says = f"{promised.source} promises {plural(promised.size, 'rank')} but {library} sees a world of {size}"
        if size == 1:
            says = f"{says}: every rank runs alone, as if it were the only one"
        return Finding(Level.WRONG, _NAME, says, _how_to_start(promised.size, library, environment, own_launcher))
    if promised is not None:
        return Finding(Level.OK, _NAME, f"{plural(size, 'rank')}, as {promised.source} promises")
    tasks = environment.get("SLURM_NTASKS", "")
    if "SLURM_JOB_ID" in environment and tasks.isdigit() and int(tasks) > size:
        says = f"{plural(size, 'rank')}, though this Slurm job has {tasks} tasks: nothing started them"
        return Finding(Level.NOTE, _NAME, says, f"To look at all of them type {_srun(library)} hpcrl doctor.")
    return Finding(Level.OK, _NAME, f"{plural(size, 'rank')}, without a launcher")


def _srun(library: str) -> str:
    return next((f"srun --mpi={plugin}" for plugin in plugins_for(library)), "srun")


def _how_to_start(ranks: int, library: str, environment: Mapping[str, str], own_launcher: str) -> str:
    mpirun = f"{own_launcher or 'mpirun'} -n {ranks} hpcrl doctor"
    if not started_by_srun(environment):
        return f"The launcher is not that of {library}: type {mpirun}, with the mpirun of that library."
    plugin = next(iter(plugins_for(library)), None)
    if plugin is None:
        return f"See `srun --mpi=list` for what fits {library}, and start with srun --mpi=THAT."
    # Slurm's plugin of that kind is at work already, and the library did not understand it.
    if (plugin == "pmix" and "PMIX_RANK" in environment) or (plugin == "pmi2" and "PMI_FD" in environment):
        return (
            f"srun --mpi={plugin} is in use already but this library doesn't understand it here: "
            f"start with its own launcher inside the allocation, {mpirun}."
        )
    return f"Type srun --mpi={plugin} hpcrl doctor, and --mpi={plugin} in your job script."
