"""The same run on any layout: bit for bit where it is the same, up to rounding where it is another."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.commands import Runs, relative_difference, train, untimed, weights

#: 20 updates of 512 steps.
_SHORT = ("a2c", "--num-envs", 16, "--total-env-steps", 20 * 512, "--num-iterations", 2)
_SYNCED = ("--check-in-sync-every", 1)
_COLOCATED = ("--placement", "colocated", *_SYNCED)
_TWO = ("a2c", "--num-envs", 2, "--total-env-steps", 20 * 64, "--num-iterations", 2)
_NORMALISED = (*_TWO, "--normalise-advantages")
_PINNED = ("--pin-cores", "on")
_BOX = ("a2c", "--env", "Pendulum-v1", "--num-envs", 4, "--total-env-steps", 2000, "--num-iterations", 2)
_BOX += ("--optimizer", "rmsprop", "--shared-encoder")
_NATIVE = (*_SHORT, "--vector", "native")
_WORLDS = [
    (
        1,
        {
            "alone": _SHORT,
            "other-seed": (*_SHORT, "--seed", 2),
            "plain-alone": _TWO,
            "normalised-alone": _NORMALISED,
            "box-alone": _BOX,
            "native-alone": _NATIVE,
        },
    ),
    (
        2,
        {
            "reference": _SHORT,
            "pinned": (*_SHORT, *_PINNED),
            # As the first, or ranks that still have masks of their own would be refused.
            "pinned-again": (*_SHORT, *_PINNED),
        },
    ),
    (
        3,
        {
            "three-ranks": _SHORT,
            "three-colocated": (*_SHORT, *_COLOCATED),
            "plain-colocated": (*_TWO, *_COLOCATED),
            "normalised-colocated": (*_NORMALISED, *_COLOCATED),
            "box-three-ranks": _BOX,
            "native-three-ranks": _NATIVE,
        },
    ),
    (
        5,
        {
            "two-learners": (*_SHORT, "--learners", 2, *_SYNCED),
            "five-colocated": (*_SHORT, *_COLOCATED),
        },
    ),
]
_TOLERANCE = 1e-5


def _first_episodes(run_dir: Path) -> list[str]:
    return (run_dir / "episodes.csv").read_text().splitlines()[:101]


def _machine(run_dir: Path) -> object:
    """What a resume compares of the machine."""
    return json.loads((run_dir / "config.json").read_text())["machine"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All runs that the tests compare; `reference` is on one learner and one actor."""
    return Runs(tmp_path_factory.mktemp("layouts"), _WORLDS)


def test_the_same_layout_twice_is_the_same_bit_for_bit(tmp_path: Path, runs: Runs) -> None:
    train(tmp_path / "again", *_SHORT[1:], "--ranks", 2)
    assert weights(tmp_path / "again").tobytes() == weights(runs["reference"]).tobytes()
    assert untimed(tmp_path / "again/metrics.csv") == untimed(runs["reference"] / "metrics.csv")
    assert len(untimed(runs["reference"] / "metrics.csv")) == 3


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two ranks have no core each")
def test_ranks_with_cores_of_their_own_are_the_same_run_bit_for_bit(runs: Runs) -> None:
    for name in ("pinned", "pinned-again"):
        assert weights(runs[name]).tobytes() == weights(runs["reference"]).tobytes()
        assert untimed(runs[name] / "metrics.csv") == untimed(runs["reference"] / "metrics.csv")
        assert "\ncores: " in runs.done(name).stdout
        assert _machine(runs[name]) == _machine(runs["reference"])
    assert "\ncores: " not in runs.done("reference").stdout


def test_another_seed_is_another_run(runs: Runs) -> None:
    assert relative_difference(weights(runs["reference"]), weights(runs["other-seed"])) > 0.1
    assert _first_episodes(runs["other-seed"]) != _first_episodes(runs["reference"])


@pytest.mark.parametrize("name", ["alone", "three-ranks"])
def test_another_number_of_actors_is_the_same_run(runs: Runs, name: str) -> None:
    assert _first_episodes(runs[name]) == _first_episodes(runs["reference"])
    assert len(_first_episodes(runs["reference"])) == 101
    assert relative_difference(weights(runs["reference"]), weights(runs[name])) <= _TOLERANCE


@pytest.mark.parametrize("name", ["two-learners", "five-colocated", "three-colocated"])
def test_several_learners_are_the_same_run(runs: Runs, name: str) -> None:
    assert _first_episodes(runs[name]) == _first_episodes(runs["reference"])
    assert relative_difference(weights(runs["reference"]), weights(runs[name])) <= _TOLERANCE


@pytest.mark.parametrize("options", ["plain", "normalised"])
def test_a_learner_without_data_joins_in(runs: Runs, options: str) -> None:
    one, three = runs[f"{options}-alone"], runs[f"{options}-colocated"]
    assert relative_difference(weights(one), weights(three)) <= _TOLERANCE


def test_box_actions_train_on_any_layout(runs: Runs) -> None:
    assert relative_difference(weights(runs["box-alone"]), weights(runs["box-three-ranks"])) <= _TOLERANCE


def test_a_native_environment_with_streams_of_its_own_is_the_same_run(runs: Runs) -> None:
    one, three = runs["native-alone"], runs["native-three-ranks"]
    assert _first_episodes(one) == _first_episodes(three)
    assert relative_difference(weights(one), weights(three)) <= _TOLERANCE
