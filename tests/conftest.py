"""Runs tests that need several ranks in worlds that they share; the outer pytest never starts MPI."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcrl.cluster.launch import SESSION_FOLDER, launcher_command, rank_environment
from tests.commands import run

_INSIDE = "HPCRL_TEST_WORLD"

#: Files of tests/parallel and tests/end_to_end whose tests may run on any worker.
_SHARE_NOTHING = {"test_failures.py", "test_hosts.py", "test_learning.py", "test_signals.py"}


#: What asks a process to stop or to save.
_ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


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


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """What a command or benchmark under test does about signals ends with the test."""
    before = {number: signal.getsignal(number) for number in _ASKING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def shared_dir(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder that all ranks of a test share."""
    if _INSIDE not in os.environ:
        return tmp_path
    folder = Path(os.environ[_INSIDE], "shared", _file_name(request.node))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests that share a world or a run come to the same worker, and before all other tests.

    The scheduler of `--dist loadgroup` would do, but pytest-xdist 3.8 finds no groups under pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Sharing(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.partition("::")[0])
            if file.parent.name == "parallel" and file.name not in _SHARE_NOTHING:
                return str(file.parent)
            return nodeid if file.parent.name == "single" or file.name in _SHARE_NOTHING else str(file)

    return Sharing(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> object:
    """A test marked `mpi` starts its ranks from outside, and runs inside them."""
    marker = pyfuncitem.get_closest_marker("mpi")
    if marker is None:
        return None
    if _INSIDE in os.environ:
        return _run_inside(pyfuncitem)
    for ranks in marker.kwargs["ranks"]:
        if (failure := _failures(pyfuncitem, ranks)[_node(pyfuncitem)]) is not None:
            pytest.fail(failure, pytrace=False)
    return True


_KNOWN = pytest.StashKey[dict[int, dict[str, str | None]]]()


def _failures(item: pytest.Item, ranks: int) -> dict[str, str | None]:
    """Why each test on `ranks` ranks fails, or None where it does not; asked once, run once."""
    known = item.session.stash.setdefault(_KNOWN, {})
    if ranks not in known:
        together = [
            other
            for other in item.session.items
            if (marker := other.get_closest_marker("mpi")) is not None and ranks in marker.kwargs["ranks"]
        ]
        known[ranks] = _run_together(together, ranks)
    return known[ranks]


def _run_together(items: list[pytest.Item], ranks: int) -> dict[str, str | None]:
    """Run tests in one world, as starting it is most of a short test; those after one that fails in another."""
    failures: dict[str, str | None] = {}
    while len(failures) < len(items):
        rest = items[len(failures) :]
        timeouts = [item.get_closest_marker("mpi").kwargs.get("timeout", 60) for item in rest]  # type: ignore[union-attr]
        with tempfile.TemporaryDirectory(prefix="hpcrl-world-") as folder:
            failure = _run_world([_node(item) for item in rest], ranks, max(timeouts) + 10 * (len(rest) - 1), folder)
            passed = {path.name for path in Path(folder, "passed").glob("*")}
        if failure is not None:
            # Where all have passed, the world broke at its very end.
            failed = next((place for place, item in enumerate(rest) if _file_name(item) not in passed), len(rest) - 1)
            failures |= dict.fromkeys(map(_node, rest[:failed])) | {_node(rest[failed]): failure}
        else:
            failures |= dict.fromkeys(map(_node, rest))
    return failures


def _file_name(item: pytest.Item) -> str:
    return f"{item.path.stem}-{item.name}".replace("/", "_")


def _node(item: pytest.Item) -> str:
    """The test's name as pytest takes it from anywhere."""
    return f"{item.path}::{item.name}"


def _run_world(nodes: list[str], ranks: int, timeout: float, folder: str) -> str | None:
    """Run tests in a fresh world; what went wrong, if anything."""
    inner = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-s",
        "-o",
        "addopts=--strict-markers",
        "-p",
        "no:cacheprovider",
    ]
    environment = {**os.environ, _INSIDE: folder, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    try:
        done = run(launcher_command(ranks, inner + nodes), timeout=timeout, environment=rank_environment(environment))
    except AssertionError as late:
        return f"on {ranks} ranks: {late}"
    if done.returncode == 0:
        return None
    return f"on {ranks} ranks, status {done.returncode}:\n{done.stdout}\n{done.stderr}"


def _run_inside(pyfuncitem: pytest.Function) -> bool:
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    try:
        pyfuncitem.obj(**arguments)
    except BaseException:
        print("".join(f"[rank {comm.rank}] {line}\n" for line in traceback.format_exc().splitlines()), file=sys.stderr)
        sys.stderr.flush()
        comm.Abort(1)
    # The next test of this world begins when all have passed this one.
    comm.Barrier()
    if comm.rank == 0:
        passed = Path(os.environ[_INSIDE], "passed")
        passed.mkdir(exist_ok=True)
        (passed / _file_name(pyfuncitem)).touch()
    return True
