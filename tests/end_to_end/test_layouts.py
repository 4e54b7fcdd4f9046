"""The same run on any layout: bit for bit where it is the same, up to rounding where it is another."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import relative_difference, train, untimed, weights

#: 20 updates of 512 steps.
_SHORT = ("--num-envs", 16, "--total-env-steps", 20 * 512, "--num-iterations", 2)
_TOLERANCE = 1e-5


def _first_episodes(run_dir: Path) -> list[str]:
    return (run_dir / "episodes.csv").read_text().splitlines()[:101]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on one learner and one actor."""
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    train(run_dir, *_SHORT, "--ranks", 2)
    return run_dir


def test_the_same_layout_twice_is_the_same_bit_for_bit(tmp_path: Path, reference: Path) -> None:
    train(tmp_path / "again", *_SHORT, "--ranks", 2)
    assert weights(tmp_path / "again").tobytes() == weights(reference).tobytes()
    assert untimed(tmp_path / "again/metrics.csv") == untimed(reference / "metrics.csv")
    assert len(untimed(reference / "metrics.csv")) == 3


def test_another_seed_is_another_run(tmp_path: Path, reference: Path) -> None:
    train(tmp_path / "other", *_SHORT, "--seed", 2)
    assert relative_difference(weights(reference), weights(tmp_path / "other")) > 0.1
    assert _first_episodes(tmp_path / "other") != _first_episodes(reference)


@pytest.mark.parametrize("ranks", [1, 3, 5])
def test_another_number_of_actors_is_the_same_run(tmp_path: Path, reference: Path, ranks: int) -> None:
    train(tmp_path / "run", *_SHORT, "--ranks", ranks)
    assert _first_episodes(tmp_path / "run") == _first_episodes(reference)
    assert len(_first_episodes(reference)) == 101
    assert relative_difference(weights(reference), weights(tmp_path / "run")) <= _TOLERANCE


@pytest.mark.parametrize(
    "layout",
    [
        ("--ranks", 5, "--learners", 2),
        ("--ranks", 4, "--placement", "colocated"),
        ("--ranks", 3, "--placement", "colocated"),
    ],
    ids=lambda layout: "-".join(map(str, layout)).replace("--", ""),
)
def test_several_learners_are_the_same_run(tmp_path: Path, reference: Path, layout: tuple[object, ...]) -> None:
    train(tmp_path / "run", *_SHORT, *layout, "--check-in-sync-every", 1, timeout=120)
    assert _first_episodes(tmp_path / "run") == _first_episodes(reference)
    assert relative_difference(weights(reference), weights(tmp_path / "run")) <= _TOLERANCE


@pytest.mark.parametrize("options", [(), ("--normalise-advantages",)], ids=["plain", "normalised"])
def test_a_learner_without_data_joins_in(tmp_path: Path, options: tuple[str, ...]) -> None:
    common = ("--num-envs", 2, "--total-env-steps", 20 * 64, "--num-iterations", 2, *options)
    train(tmp_path / "one", *common)
    train(tmp_path / "three", *common, "--ranks", 3, "--placement", "colocated", "--check-in-sync-every", 1)
    assert relative_difference(weights(tmp_path / "one"), weights(tmp_path / "three")) <= _TOLERANCE


def test_box_actions_train_on_any_layout(tmp_path: Path) -> None:
    common = ("--env", "Pendulum-v1", "--num-envs", 4, "--total-env-steps", 2000, "--num-iterations", 2)
    train(tmp_path / "one", *common, "--optimizer", "rmsprop", "--shared-encoder")
    train(tmp_path / "two", *common, "--optimizer", "rmsprop", "--shared-encoder", "--ranks", 3)
    assert relative_difference(weights(tmp_path / "one"), weights(tmp_path / "two")) <= _TOLERANCE


def test_a_native_environment_with_streams_of_its_own_is_the_same_run(tmp_path: Path) -> None:
    common = (*_SHORT, "--vector", "native")
    train(tmp_path / "one", *common)
    train(tmp_path / "two", *common, "--ranks", 3)
    assert _first_episodes(tmp_path / "one") == _first_episodes(tmp_path / "two")
    assert relative_difference(weights(tmp_path / "one"), weights(tmp_path / "two")) <= _TOLERANCE
