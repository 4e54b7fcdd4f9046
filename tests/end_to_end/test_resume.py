"""A run that was interrupted goes on as if it had not been: weights, optimizer, counters, environments, metrics."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.commands import HPCRL, Done, Running, Runs, in_turn, run, state, train, untimed

_RUN = ("--total-env-steps", "30000", "--num-iterations", "6", "--checkpoint-every", "2048", "--hidden-sizes", "32")
_TRAIN = [*HPCRL, "train", "a2c", "--no-tensorboard", *_RUN]
_TINY = ("a2c", "--total-env-steps", 2048, "--num-iterations", 1)

#: Environments with a state of their own.
_OWN_STATE = {
    "GridNavigation-v0": ("--env", "GridNavigation-v0", "--vector", "sync"),
    "CartPole-v1": ("--env", "CartPole-v1", "--vector", "native"),
}
_WORLDS = [
    (
        1,
        {
            "one-process": ("a2c", *_RUN),
            "tiny": _TINY,
            "fresh": (*_TINY, "--resume"),
            **{env: ("a2c", *_RUN, *options) for env, options in _OWN_STATE.items()},
        },
    ),
    (2, {"two-learners": ("a2c", *_RUN, "--placement", "colocated")}),
]

#: What is killed in one process: its options, and the checkpoints that it has by then.
_CUTS = {
    "one-process-1": ((), 1),
    "one-process-9": ((), 9),
    **{env: (options, 3) for env, options in _OWN_STATE.items()},
    "restless": (("--env", "tests.environments:Restless-v0", "--num-envs", "4", "--unroll-length", "16"), 2),
    "next-step": (("--env", "tests.environments:NextStep-v0", "--vector", "native", "--num-envs", "8"), 4),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs that nothing interrupts."""
    return Runs(tmp_path_factory.mktemp("whole"), _WORLDS)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Done]]:
    """Runs of one process each that were killed, and went on one after the other in another process."""
    folder = tmp_path_factory.mktemp("cut")
    for name, (options, num_checkpoints) in _CUTS.items():
        _kill_once_saved(folder / name, options, num_checkpoints)
    commands = [("train", "a2c", "--run-dir", folder / name, "--no-tensorboard", "--resume") for name in _CUTS]
    outcomes = in_turn(commands)
    assert [done.returncode for done in outcomes] == [0] * len(_CUTS), outcomes
    return {name: (folder / name, done) for name, done in zip(_CUTS, outcomes, strict=True)}


def _kill_once_saved(run_dir: Path, layout: tuple[str, ...], num_checkpoints: int) -> None:
    running = Running([*_TRAIN, "--run-dir", str(run_dir), *layout])
    steps = num_checkpoints * 2048
    running.until(lambda: any(int(path.stem[5:]) >= steps for path in (run_dir / "checkpoints").glob("step_*.h5")))
    running.kill()
    running.wait(timeout=20)


def _expect_equal(cut: Path, whole: Path) -> None:
    assert state(cut) == state(whole)
    assert untimed(cut / "metrics.csv") == untimed(whole / "metrics.csv")
    assert (cut / "episodes.csv").read_text() == (whole / "episodes.csv").read_text()


@pytest.mark.parametrize("num_checkpoints", [1, 9])
def test_kill_and_resume_equals_the_uninterrupted_run(
    runs: Runs, resumed: dict[str, tuple[Path, Done]], num_checkpoints: int
) -> None:
    _expect_equal(resumed[f"one-process-{num_checkpoints}"][0], runs["one-process"])


def test_kill_and_resume_of_two_learners_equals_the_uninterrupted_run(tmp_path: Path, runs: Runs) -> None:
    _kill_once_saved(tmp_path / "cut", ("--ranks", "2", "--placement", "colocated"), 5)
    # On as many ranks as before, without being told.
    train(tmp_path / "cut", "--resume")
    _expect_equal(tmp_path / "cut", runs["two-learners"])


def test_kill_and_resume_on_three_ranks_equals_the_uninterrupted_run(tmp_path: Path) -> None:
    _kill_once_saved(tmp_path / "cut", ("--ranks", "3"), 5)
    common = ("train", "a2c", "--no-tensorboard", "--run-dir")
    outcomes = in_turn([(*common, tmp_path / "cut", "--resume"), (*common, tmp_path / "whole", *_RUN)], ranks=3)
    assert [done.returncode for done in outcomes] == [0, 0], outcomes
    _expect_equal(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize("env", _OWN_STATE)
def test_environments_with_a_state_of_their_own_go_on_exactly(
    runs: Runs, resumed: dict[str, tuple[Path, Done]], env: str
) -> None:
    run_dir, _ = resumed[env]
    assert state(run_dir) == state(runs[env])
    assert '"by_state": 16' in (run_dir / "config.json").read_text()


def test_an_environment_that_cannot_be_restored_begins_anew_and_says_so(resumed: dict[str, tuple[Path, Done]]) -> None:
    run_dir, done = resumed["restless"]
    assert "4 environments could not be restored and begin new episodes" in done.stderr
    assert '"begun_anew": 4' in (run_dir / "config.json").read_text()


def test_ignored_rows_of_a_native_environment_cost_no_episode_of_the_log(resumed: dict[str, tuple[Path, Done]]) -> None:
    run_dir, done = resumed["next-step"]
    assert "layout_invariant: false" in done.stdout
    assert '"layout_invariant": false' in (run_dir / "config.json").read_text()
    lines = [line.split(",") for line in (run_dir / "episodes.csv").read_text().splitlines()[1:]]
    for env in range(8):
        numbers = [int(number) for _, index, number, *_ in lines if int(index) == env]
        assert len(set(numbers)) == len(numbers)
        # Each environment gave up one running episode, and no more.
        assert set(range(max(numbers))) - set(numbers) <= {_first_gap(numbers)}


def _first_gap(numbers: list[int]) -> int:
    return next(number for number in range(len(numbers) + 1) if number not in numbers)


def test_resume_without_a_checkpoint_starts_from_the_beginning(runs: Runs) -> None:
    assert state(runs["fresh"]) == state(runs["tiny"])


def test_a_finished_run_that_is_resumed_trains_no_further(runs: Runs) -> None:
    before = state(runs["tiny"])
    done = train(runs["tiny"], "--resume")
    assert "finished at env step 2,048" in done.stdout
    assert state(runs["tiny"]) == before


def test_a_second_writer_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    running = Running([*_TRAIN, "--run-dir", str(tmp_path / "run"), "--total-env-steps", "100000000"])
    running.until(lambda: (tmp_path / "run/metrics.csv").exists())
    again = ("train", "a2c", "--run-dir", tmp_path / "run")
    for second in in_turn([again, (*again, "--resume")]):
        assert second.returncode == 2
        assert second.stderr.count("\n") == 1
        assert f"in use by pid {running.process.pid}" in second.stderr
    running.process.send_signal(signal.SIGTERM)
    assert running.wait(timeout=20).returncode == 0
    assert run([*HPCRL, "eval", str(tmp_path / "run"), "--episodes", "2"]).returncode == 0
