"""Which `srun --mpi=...` belongs to the MPI library at hand.

python -m hpcrl.cluster.srun      prints it, for batch scripts
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Collection, Mapping

from hpcrl.errors import HpcrlError, RankError

#: Plugins of srun by MPI library, best first; the first name in the library's own description decides.
_PLUGINS = {
    "CRAY MPICH": ("cray_shasta", "pmi2"),
    "Intel(R) MPI": ("pmi2", "pmix"),
    "MVAPICH": ("pmi2", "pmix"),
    "MPICH": ("pmi2", "pmix"),
    "Open MPI": ("pmix",),
}
_LAST_OPEN_MPI_WITH_PMI2 = 4


def plugins_for(library: str) -> tuple[str, ...]:
    """Names for `srun --mpi=` that start ranks of an MPI library, best first; none for a library that is not known.

    Args:
        library: what MPI_Get_library_version says.
    """
    return next((plugins for name, plugins in _PLUGINS.items() if name in library), ())


def choose_plugin(library: str, offered: Collection[str]) -> str:
    """The plugin for `library` among those that srun offers.

    Raises:
        RankError: srun offers none of them.
    """
    wanted = plugins_for(library)
    # A site may offer one version only, such as pmix_v4.
    names = [name for plugin in wanted for name in sorted(offered) if re.fullmatch(rf"{plugin}(_v\d+)?", name)]
    if not names:
        raise RankError(
            f"srun offers --mpi={', '.join(sorted(offered)) or 'nothing'}, but {library} needs "
            f"{' or '.join(wanted) or 'another one'}: load another MPI module, or start the ranks by its mpirun"
        )
    return names[0]


def require_fitting_launcher(library: str, is_linked_with_pmix: bool, environment: Mapping[str, str]) -> None:
    """Refuse a task of srun whose `--mpi` the library can't speak, before it is initialised. Local.

    Args:
        library: what MPI_Get_library_version says.
        is_linked_with_pmix: the library has loaded libpmix.
        environment: of this process.

    Raises:
        RankError: with the option that fits; on all ranks.
    """
    if environment.get("SLURM_STEP_NUM_TASKS", "1") == "1" or "OMPI_COMM_WORLD_SIZE" in environment:
        return
    has_pmix, has_pmi = "PMIX_RANK" in environment, "PMI_RANK" in environment
    if "Open MPI" in library:
        unspoken = not has_pmix and (not has_pmi or _major_version(library) > _LAST_OPEN_MPI_WITH_PMI2)
    else:
        unspoken = bool(plugins_for(library)) and has_pmix and not has_pmi and not is_linked_with_pmix
    if unspoken:
        given = "pmix" if has_pmix else "pmi2" if has_pmi else "none"
        error = RankError(
            f"srun started {environment['SLURM_STEP_NUM_TASKS']} tasks with --mpi={given}, which {library} does not "
            f"speak: each would be a world of its own; use srun --mpi={plugins_for(library)[0]}"
        )
        error.on_all_ranks = True
        raise error


def _major_version(library: str) -> int:
    found = re.search(r"(\d+)\.\d+", library)
    return int(found[1]) if found else 0


def _offered() -> set[str]:
    """What `srun --mpi=list` names, whatever the wording of its Slurm version."""
    done = subprocess.run(["srun", "--mpi=list"], capture_output=True, text=True, timeout=60, check=False)
    return set(re.findall(r"\b(?:none|pmi2|pmix(?:_v\d+)?|cray_\w+)\b", done.stdout + done.stderr))


def main() -> int:
    """Print the plugin; the exit status."""
    # Imported late: it loads the MPI library.
    from hpcrl.cluster.library import library

    try:
        print(choose_plugin(library(), _offered()))
    except HpcrlError as error:
        print(f"hpcrl: {error}", file=sys.stderr)
        return error.exit_status
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"hpcrl: no srun tells which --mpi it offers: {error}", file=sys.stderr)
        return 2
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
