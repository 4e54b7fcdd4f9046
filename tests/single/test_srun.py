"""Which --mpi of srun belongs to which library, and tasks that would each be a world of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpcrl.cluster.srun import choose_plugin, plugins_for, require_fitting_launcher
from hpcrl.errors import RankError

_OPEN_MPI_5, _OPEN_MPI_4 = "Open MPI v5.0.11", "Open MPI v4.1.6"
_MPICH, _CRAY, _INTEL = "MPICH 4.3.0", "MPI VERSION : CRAY MPICH version 8.1.28.29", "Intel(R) MPI Library 2021.14"
_MVAPICH = "MVAPICH2 Version : 2.3.7"
_PMIX, _PMI = {"PMIX_RANK": "0", "PMIX_NAMESPACE": "7"}, {"PMI_RANK": "0", "PMI_SIZE": "4"}
_TASK = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4"}
_ALL = {"none", "pmi2", "pmix", "pmix_v4", "cray_shasta"}


@pytest.mark.parametrize(
    ("library", "offered", "plugin"),
    [
        (_OPEN_MPI_5, _ALL, "pmix"),
        (_OPEN_MPI_4, _ALL, "pmix"),
        (_OPEN_MPI_5, {"none", "pmi2", "pmix_v4"}, "pmix_v4"),
        (_MPICH, _ALL, "pmi2"),
        (_MPICH, {"none", "pmix"}, "pmix"),
        (_MPICH, {"pmix_v5", "none"}, "pmix_v5"),
        (_CRAY, _ALL, "cray_shasta"),
        (_CRAY, {"none", "pmi2", "pmix"}, "pmi2"),
        (_INTEL, _ALL, "pmi2"),
        (_MVAPICH, _ALL, "pmi2"),
    ],
)
def test_the_plugin_of_a_library(library: str, offered: set[str], plugin: str) -> None:
    assert choose_plugin(library, offered) == plugin


@pytest.mark.parametrize(
    ("library", "offered"),
    [
        (_OPEN_MPI_5, {"none", "pmi2"}),
        (_OPEN_MPI_5, {"none", "pmix_of_mine", "xpmix"}),
        (_MPICH, {"none", "cray_shasta"}),
        (_MPICH, set()),
        ("Another MPI 1.0", _ALL),
    ],
)
def test_without_a_plugin_it_is_said_what_the_library_needs(library: str, offered: set[str]) -> None:
    with pytest.raises(RankError, match="mpirun") as refused:
        choose_plugin(library, offered)
    assert library in str(refused.value)
    assert all(name in str(refused.value) for name in (*offered, *plugins_for(library)))


@pytest.mark.parametrize(
    ("library", "linked", "variables", "given"),
    [
        (_OPEN_MPI_5, True, {}, "none"),
        (_OPEN_MPI_5, True, _PMI, "pmi2"),
        (_OPEN_MPI_4, False, {}, "none"),
        (_MPICH, False, _PMIX, "pmix"),
        (_CRAY, False, _PMIX, "pmix"),
        (_INTEL, False, _PMIX, "pmix"),
    ],
)
def test_tasks_that_the_library_can_not_join_are_refused(
    library: str, linked: bool, variables: dict[str, str], given: str
) -> None:
    with pytest.raises(RankError, match=f"4 tasks with --mpi={given}, which {library[:4]}") as refused:
        require_fitting_launcher(library, linked, {**_TASK, **variables})
    assert str(refused.value).endswith(f"use srun --mpi={plugins_for(library)[0]}")
    assert refused.value.on_all_ranks


@pytest.mark.parametrize(
    ("library", "linked", "variables"),
    [
        (_OPEN_MPI_5, True, _PMIX),
        (_OPEN_MPI_4, True, _PMI),
        (_OPEN_MPI_4, True, _PMIX),
        (_OPEN_MPI_5, True, {"OMPI_COMM_WORLD_SIZE": "4"}),
        (_MPICH, True, _PMIX),
        (_MPICH, False, _PMI),
        (_MPICH, False, {**_PMI, **_PMIX}),
        (_CRAY, False, {}),
        (_CRAY, False, _PMI),
        (_INTEL, False, _PMI),
        ("Another MPI 1.0", False, _PMIX),
    ],
)
def test_tasks_that_the_library_can_join_are_left_alone(library: str, linked: bool, variables: dict[str, str]) -> None:
    require_fitting_launcher(library, linked, {**_TASK, **variables})


@pytest.mark.parametrize("library", [_OPEN_MPI_5, _MPICH])
@pytest.mark.parametrize("variables", [{}, {"SLURM_JOB_ID": "7"}, {**_TASK, "SLURM_STEP_NUM_TASKS": "1"}])
def test_one_process_is_left_alone(library: str, variables: dict[str, str]) -> None:
    require_fitting_launcher(library, False, variables | _PMIX)


_SAYS = """\
MPI plugin types are...
\tnone
\tcray_shasta
\tpmi2
\tpmix
specific pmix plugin versions available: pmix_v4
"""


def _print_plugin(tools: Path, says: str | None) -> subprocess.CompletedProcess[str]:
    """`python -m hpcrl.cluster.srun` where srun says that to --mpi=list, or is missing."""
    if says is not None:
        (tools / "srun").write_text(f'#!/bin/sh\n[ "$*" = --mpi=list ] && echo "{says}" >&2\n')
        (tools / "srun").chmod(0o755)
    command = [sys.executable, "-m", "hpcrl.cluster.srun"]
    root = str(Path(__file__).parents[2])
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "PMI", "OMPI_"))}
    variables |= {"PATH": f"{tools}", "PYTHONPATH": root}
    # The tools of the system are elsewhere: they may include a real srun.
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=False)


def test_batch_scripts_are_told_the_plugin(tmp_path: Path) -> None:
    done = _print_plugin(tmp_path, _SAYS)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout in ("pmix\n", "pmi2\n")


@pytest.mark.parametrize(("says", "about"), [("plugin types are... none", "offers --mpi=none, "), (None, "no srun")])
def test_batch_scripts_are_told_in_a_sentence_why_there_is_none(tmp_path: Path, says: str | None, about: str) -> None:
    done = _print_plugin(tmp_path, says)
    assert done.returncode != 0 and done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("hpcrl: ") and about in line
