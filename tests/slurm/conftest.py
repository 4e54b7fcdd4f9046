"""A cluster for all Slurm tests, and an environment for each of the two MPI libraries that PyPI carries."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import MiniCluster, why_not
from tests.slurm.jobs import REPOSITORY, Jobs

#: Set where a skipped Slurm test is a failure.
_REQUIRED = "HPCRL_REQUIRE_SLURM"


def _skip(reason: str) -> None:
    if os.environ.get(_REQUIRED):
        pytest.fail(reason)
    pytest.skip(reason)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of this folder are marked."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def cluster() -> Iterator[MiniCluster]:
    """The cluster, up."""
    if (reason := why_not()) is not None:
        _skip(reason)
    # Short: a socket lies in it.
    made = MiniCluster(Path(tempfile.mkdtemp(prefix="mini-")))
    try:
        made.up()
        yield made
    finally:
        made.down()


@pytest.fixture
def jobs(cluster: MiniCluster, tmp_path: Path) -> Iterator[Jobs]:
    """Jobs that use this environment's MPI, Open MPI."""
    made = Jobs(cluster, tmp_path, Path(sys.prefix))
    yield made
    made.cancel_all()


@pytest.fixture
def mpich_jobs(cluster: MiniCluster, tmp_path: Path) -> Iterator[Jobs]:
    """Jobs that use MPICH, from the environment that `make test-slurm` makes."""
    environment = Path(os.environ.get("HPCRL_MPICH_ENVIRONMENT", REPOSITORY / ".venv-mpich"))
    if not (environment / "bin/python3").exists():
        _skip(f"no {environment}: make it by tests/slurm/mpich_environment")
    made = Jobs(cluster, tmp_path, environment)
    yield made
    made.cancel_all()


@pytest.fixture
def without_scontrol(tmp_path: Path) -> Path:
    """A folder for the front of PATH in which Slurm's scontrol can't be reached."""
    folder = tmp_path / "no-scontrol"
    folder.mkdir()
    (folder / "scontrol").write_text("#!/bin/sh\necho 'scontrol: unable to contact slurm controller' >&2\nexit 1\n")
    (folder / "scontrol").chmod(0o755)
    assert shutil.which("scontrol")
    return folder
