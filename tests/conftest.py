"""Runs tests that need several ranks in a fresh world of their own; the outer pytest never starts MPI."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcrl.cluster.launch import SESSION_FOLDER, launcher_command, rank_environment
from tests.commands import run

_INSIDE = "HPCRL_TEST_WORLD"


@pytest.fixture(scope="session", autouse=True)
def own_launchers() -> Iterator[None]:
    """Launchers that tests start themselves leave those of other workers alone, see `hpcrl.cluster.launch`."""
    if _INSIDE in os.environ or SESSION_FOLDER in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="hpcrl-tests-", ignore_cleanup_errors=True) as folder:
        os.environ[SESSION_FOLDER] = folder
        yield
        del os.environ[SESSION_FOLDER]


@pytest.fixture
def shared_dir(tmp_path: Path) -> Iterator[Path]:
    """A folder that all ranks of a test share."""
    inside = os.environ.get(_INSIDE)
    yield Path(inside) if inside else tmp_path


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> object:
    """A test marked `mpi` starts its ranks from outside, and runs inside them."""
    marker = pyfuncitem.get_closest_marker("mpi")
    if marker is None:
        return None
    if _INSIDE in os.environ:
        return _run_inside(pyfuncitem)
    for ranks in marker.kwargs["ranks"]:
        folder = pyfuncitem.funcargs.get("shared_dir") or Path.cwd()
        _run_world(pyfuncitem.nodeid, ranks, marker.kwargs.get("timeout", 60), folder)
    return True


def _run_world(node: str, ranks: int, timeout: float, folder: object) -> None:
    inner = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", node]
    environment = rank_environment({**os.environ, _INSIDE: str(folder)})
    done = run(launcher_command(ranks, inner), timeout=timeout, environment=environment)
    if done.returncode != 0:
        pytest.fail(f"on {ranks} ranks, status {done.returncode}:\n{done.stdout}\n{done.stderr}", pytrace=False)


def _run_inside(pyfuncitem: pytest.Function) -> bool:
    from mpi4py import MPI

    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    try:
        pyfuncitem.obj(**arguments)
    except BaseException:
        rank = MPI.COMM_WORLD.rank
        print("".join(f"[rank {rank}] {line}\n" for line in traceback.format_exc().splitlines()), file=sys.stderr)
        sys.stderr.flush()
        MPI.COMM_WORLD.Abort(1)
    return True
