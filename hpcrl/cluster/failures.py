"""An error that only one rank meets ends the job: the others would wait for it for ever."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from hpcrl.cluster.mpi import Comm, abort
from hpcrl.errors import HpcrlError


@contextmanager
def ending_the_job(comm: Comm) -> Iterator[None]:
    """End the whole job on an exception inside, unless all ranks raise it together or there is one rank only. Local."""
    try:
        yield
    except Exception as error:
        if comm.size == 1 or (isinstance(error, HpcrlError) and error.on_all_ranks):
            raise
        end_job(comm, error)


def end_job(comm: Comm, error: BaseException) -> None:
    """Print what happened, with the rank, and end every rank of the world. Local; does not return."""
    if isinstance(error, HpcrlError):
        print(f"hpcrl: [rank {comm.rank}] {error}", file=sys.stderr, flush=True)
        abort(error.exit_status)
    lines = "".join(traceback.format_exception(error)).splitlines()
    print("\n".join(f"[rank {comm.rank}] {line}" for line in lines), file=sys.stderr, flush=True)
    abort(1)
