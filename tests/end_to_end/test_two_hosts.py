"""A run over two hosts, made of namespaces on this machine: their ranks share no memory and talk TCP."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.commands import relative_difference, train, weights
from tests.hosts import run_on_hosts, why_not

REASON = why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

_RUN = ["--total-env-steps", "10240", "--num-iterations", "2", "--num-envs", "8", "--no-tensorboard"]


def _train_on_hosts(run_dir: Path, hosts: dict[str, int], *options: str) -> dict:
    command = [sys.executable, "-m", "hpcrl", "train", "a2c", "--run-dir", str(run_dir), *_RUN, *options]
    done = run_on_hosts(command, hosts, timeout=90)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return json.loads((run_dir / "config.json").read_text())


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    train(run_dir, *_RUN)
    return run_dir


@pytest.mark.parametrize(
    ("hosts", "learners"),
    [({"left": 2, "right": 2}, [0, 2]), ({"left": 1, "right": 2}, [0])],
    ids=["two-learners", "far-cell"],
)
def test_a_run_over_two_hosts_is_the_same_run(
    tmp_path: Path, reference: Path, hosts: dict[str, int], learners: list[int]
) -> None:
    facts = _train_on_hosts(tmp_path / "far", hosts)
    assert facts["layout"]["hosts"] == [host for host, count in hosts.items() for _ in range(count)]
    assert facts["layout"]["learners"] == learners
    assert (tmp_path / "far/episodes.csv").read_text() == (reference / "episodes.csv").read_text()
    assert relative_difference(weights(reference), weights(tmp_path / "far")) <= 1e-5


def test_a_stopped_rank_alone_on_its_host_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.faults", "2:stop@30", "train", "a2c", "--run-dir", str(tmp_path / "run")]
    options = [*_RUN, "--total-env-steps", "100000000", "--hang-timeout", "3"]
    done = run_on_hosts([*command, *options], {"left": 2, "right": 1}, timeout=60)
    assert done.returncode != 0
    assert "rank 2 gave no sign of life" in done.stderr


def test_a_stopped_learner_alone_on_its_host_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.faults", "0:stop@30", "train", "a2c", "--run-dir", str(tmp_path / "run")]
    options = [*_RUN, "--total-env-steps", "100000000", "--hang-timeout", "3"]
    done = run_on_hosts([*command, *options], {"left": 1, "right": 2}, timeout=60)
    assert done.returncode != 0
    assert "rank 0 gave no sign of life" in done.stderr
