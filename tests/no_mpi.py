"""Import before anything of `hpcrl.cluster` in a test without ranks: MPI is then loaded but not started."""

from __future__ import annotations

import sys

import mpi4py

if "mpi4py.MPI" not in sys.modules:
    mpi4py.rc.initialize = False
