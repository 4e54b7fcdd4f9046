"""Starts MPI the way hpcrl needs it, and compares the world with what was promised."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from hpcrl.cluster.launch import inside_mpi, one_machine_settings, promised_size
from hpcrl.cluster.library import MPI, is_linked_with, library
from hpcrl.cluster.srun import require_fitting_launcher
from hpcrl.errors import RankError

# Open MPI's one-sided component for UCX complains on machines without its hardware; ours are shared-memory windows.
os.environ.setdefault("OMPI_MCA_osc", "^ucx")
# Rabenseifner's algorithm for sums that do not block. Left to itself Open MPI adds whole vectors up on one rank and
# sends the sum back where there are 2 or 3, and goes round a ring, with 2 (n - 1) latencies, where there are more.
os.environ.setdefault("OMPI_MCA_coll_libnbc_iallreduce_algorithm", "3")
if not inside_mpi(os.environ):
    os.environ.update(one_machine_settings(os.environ))
if not MPI.Is_initialized():
    require_fitting_launcher(library(), is_linked_with("pmix"), os.environ)
    MPI.Init_thread(MPI.THREAD_FUNNELED)

Comm = MPI.Intracomm
Request = MPI.Request


def world() -> Comm:
    """MPI_COMM_WORLD, once the thread level is checked; RankError where the library offers less than FUNNELED."""
    if MPI.Query_thread() < MPI.THREAD_FUNNELED:
        raise RankError("the MPI library offers no MPI_THREAD_FUNNELED, which hpcrl needs beside its watchdog thread")
    return MPI.COMM_WORLD


def thread_level() -> str:
    """What the library lets threads do: SINGLE, FUNNELED, SERIALIZED or MULTIPLE. Local."""
    levels = ("SINGLE", "FUNNELED", "SERIALIZED", "MULTIPLE")
    return next(level for level in levels if getattr(MPI, f"THREAD_{level}") == MPI.Query_thread())


def check_world(comm: Comm, ranks: int | None, environment: Mapping[str, str]) -> None:
    """RankError where the world has another size than promised by `ranks` or by the launcher. Local."""
    promised = promised_size(ranks, environment)
    if promised is not None and promised.size != comm.size:
        error = RankError(
            f"{promised.source} promises {promised.size} ranks but MPI ({library()}) sees a world of {comm.size}: "
            "the launcher and this MPI library don't belong together, or --ranks is wrong"
        )
        error.on_all_ranks = True
        raise error


def self_test(comm: Comm) -> None:
    """RankError where a float32 sum over the ranks comes out wrong. Collective over `comm`."""
    mine = np.arange(1, 1026, dtype=np.float32) * (comm.rank + 1)
    comm.Allreduce(MPI.IN_PLACE, mine)
    expected = np.arange(1, 1026, dtype=np.float32) * (comm.size * (comm.size + 1) // 2)
    if not np.array_equal(mine, expected):
        raise RankError(f"the self-test of allreduce failed on rank {comm.rank}: {library()} sums float32 wrongly")


def abort(status: int) -> None:
    """End every rank of the world with `status`. Local; does not return."""
    MPI.COMM_WORLD.Abort(status)
