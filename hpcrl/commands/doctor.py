"""`hpcrl doctor`: whether this place is fit for hpcrl; alone, or on the ranks that a launcher started."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from hpcrl.doctor.finding import Finding, Level
from hpcrl.doctor.launchers import describe_start, own_launcher, speaks
from hpcrl.doctor.library import no_library
from hpcrl.doctor.report import exit_status, last_line, line, write_json
from hpcrl.doctor.time_limit import TimeLimit
from hpcrl.doctor.world import judge_world
from hpcrl.errors import ConfigError, RankError
from hpcrl.words import plural

if TYPE_CHECKING:
    from hpcrl.cluster.mpi import Comm

_EPILOG = """examples:
  hpcrl doctor                                     this machine
  mpirun -n 4 hpcrl doctor                         as four ranks see it
  srun --mpi=pmix hpcrl doctor --run-dir /scratch/me/runs
"""


class _Parser(argparse.ArgumentParser):
    """Complains in one sentence, once for all ranks."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"hpcrl doctor: {message}")


def doctor(arguments: Sequence[str]) -> int:
    """Examine, print, and say by the exit status whether something is wrong."""
    first = speaks(os.environ)
    if not first and {"-h", "--help"} & set(arguments):
        return 0
    options = _parser().parse_args(list(arguments))
    if not options.time_limit > 0:
        raise ConfigError(f"--time-limit must be above 0 s, got {options.time_limit:g}")
    with TimeLimit(options.time_limit, first) as limit:
        limit.enter("starting MPI")
        try:
            from hpcrl.cluster.mpi import world

            comm = world()
        except RankError as error:
            return _leave([_no_world(error)], first, options.json)
        except (ImportError, RuntimeError) as error:
            return _leave([no_library(error)], first, options.json)
        return _examine(comm, options, limit, first)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="hpcrl doctor",
        description="See whether this place is fit for hpcrl, and what to type where it isn't. The exit status is 0 "
        "where nothing is wrong and 1 where something is.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--run-dir", type=Path, default=Path("runs"), help="folder that runs are to lie in (runs)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all facts and findings there too")
    parser.add_argument(
        "--time-limit", type=float, default=60.0, metavar="S", help="seconds after which a hanging check is named (60)"
    )
    return parser


def _examine(comm: Comm, options: argparse.Namespace, limit: TimeLimit, first: bool) -> int:
    from hpcrl.cluster.failures import ending_the_job
    from hpcrl.cluster.library import library

    finding = judge_world(comm.size, library(), os.environ, own_launcher())
    # Every rank of a broken world comes here, each believing that it has rank 0.
    if finding.level == Level.WRONG:
        return _leave([finding], first, options.json)
    with ending_the_job(comm):
        from hpcrl.doctor.examination import Examination

        # Read before storage sets it for itself.
        environment = dict(os.environ)
        examination = Examination(comm, limit, lambda finding: print(line(finding), flush=True))
        if comm.rank == 0:
            nodes = plural(len({rank.node for rank in examination.ranks}), "node")
            print(f"hpcrl doctor: {plural(comm.size, 'rank')} on {nodes}, {describe_start(environment)}", flush=True)
        examination.add(finding)
        examination.run(options.run_dir, environment)
        limit.enter("the report")
        if comm.rank == 0 and options.json is not None:
            facts = {"environment": describe_start(environment), **examination.measured}
            examination.add(write_json(options.json, examination.findings, examination.ranks, facts))
        if comm.rank == 0:
            print(last_line(examination.findings), flush=True)
        return examination.status()
    raise AssertionError("unreachable")


def _no_world(error: RankError) -> Finding:
    """Why hpcrl did not start MPI, or can't use it."""
    from hpcrl.cluster.library import library

    finding = judge_world(1, library(), os.environ, own_launcher())
    return finding if finding.level == Level.WRONG else Finding(Level.WRONG, "mpi", str(error))


def _leave(findings: list[Finding], speaks: bool, json: Path | None) -> int:
    """Report what is wrong before the ranks can talk to each other."""
    if speaks:
        if json is not None and (more := write_json(json, findings, [], {})) is not None:
            findings = [*findings, more]
        for finding in findings:
            print(line(finding), flush=True)
        print(last_line(findings), flush=True)
    return exit_status(findings)
