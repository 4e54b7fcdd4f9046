"""A run that goes on with other numbers of actors and learners: no episode is lost, none counts twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hpcrl.storage.checkpoints import CheckpointStore
from tests.commands import in_turn

_NUM_ENVS = 12
_COMMON = ("--num-envs", _NUM_ENVS, "--unroll-length", 16, "--hidden-sizes", 16, "--num-iterations", 2)
_COMMON += ("--no-tensorboard", "--check-in-sync-every", 1)
#: Ranks, placement, env steps: two ranks that act and learn, one learner with four actors, one rank that does both.
_STAGES = ((2, "colocated", 3072), (5, "split", 6144), (1, "split", 9216))
_ALGORITHMS = {"a2c": ("--normalise-observations",), "impala": ("--batch-envs", 6)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of each algorithm, through all stages."""
    folder = tmp_path_factory.mktemp("runs")
    for number, (ranks, placement, steps) in enumerate(_STAGES):
        layout = ("--ranks", ranks, "--placement", placement, "--total-env-steps", steps)
        commands = [
            ("train", name, "--run-dir", folder / name, *layout, *(("--resume",) if number else (*_COMMON, *options)))
            for name, options in _ALGORITHMS.items()
        ]
        for done in in_turn(commands, ranks):
            assert done.returncode == 0, done.stderr
            assert "begin new episodes" not in done.stderr
            assert ("layout ranks" in done.stderr) == bool(number)
    return folder


def _episodes(run_dir: Path) -> dict[str, np.ndarray]:
    """The columns of the log of episodes."""
    header, *lines = [line.split(",") for line in (run_dir / "episodes.csv").read_text().splitlines()]
    return dict(zip(header, np.array(lines, np.float64).T, strict=True))


def _standing(run_dir: Path) -> dict[str, np.ndarray]:
    """Where the environments stand at the end."""
    checkpoint = CheckpointStore(run_dir / "checkpoints").newest()
    assert checkpoint is not None
    return checkpoint.group("environments")


def test_in_lockstep_every_episode_counts_once(runs: Path) -> None:
    episodes, standing = _episodes(runs / "a2c"), _standing(runs / "a2c")
    for env in range(_NUM_ENVS):
        own = episodes["env_index"] == env
        assert episodes["episode"][own].tolist() == list(range(standing["episode_number"][env]))
        # Every step belongs to an episode of the log or to the one that runs.
        assert episodes["length"][own].sum() + standing["episode_length"][env] == standing["rows"][env]


def test_ahead_of_the_learner_no_episode_counts_twice(runs: Path) -> None:
    """Unrolls under way at a checkpoint are no part of it, so the log may lack what ended in them."""
    episodes, standing = _episodes(runs / "impala"), _standing(runs / "impala")
    for env in range(_NUM_ENVS):
        numbers = episodes["episode"][episodes["env_index"] == env].astype(int)
        steps = np.diff(numbers, prepend=-1)
        assert steps.min() == 1, numbers
        # Only the ranks of the second stage act ahead.
        assert np.count_nonzero(steps > 1) <= 1, numbers
        assert numbers[-1] < standing["episode_number"][env]


@pytest.mark.parametrize("name", _ALGORITHMS)
def test_training_goes_on_from_where_it_was(runs: Path, name: str) -> None:
    rows = [line.split(",") for line in (runs / name / "metrics.csv").read_text().splitlines()]
    steps, updates, losses = (
        [float(row[rows[0].index(column)]) for row in rows[1:]]
        for column in ("env_steps", "learner_updates", "train/value_loss")
    )
    assert all(np.diff(steps) > 0) and all(np.diff(updates) > 0) and np.isfinite(losses).all()
    assert steps[-1] >= _STAGES[-1][2]
    facts = json.loads((runs / name / "config.json").read_text())
    assert [resume["begun_anew"] for resume in facts["resumes"]] == [0, 0]
    assert [resume["by_replay"] for resume in facts["resumes"]] == [_NUM_ENVS] * 2
    reached = zip(facts["resumes"], _STAGES, strict=False)
    assert all(resume["env_steps"] >= steps for resume, (*_, steps) in reached)
