"""A run that was interrupted goes on as if it had not been: weights, optimizer, counters, environments, metrics."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.commands import HPCRL, Running, hpcrl, run, state, train, untimed

_RUN = ("--total-env-steps", "30000", "--num-iterations", "6", "--checkpoint-every", "2048", "--hidden-sizes", "32")
_TRAIN = [*HPCRL, "train", "a2c", "--no-tensorboard", *_RUN]

#: Attributes of state that tell of time.
_LAYOUTS = {
    "one-process": (),
    "three-ranks": ("--ranks", "3"),
    "two-learners": ("--ranks", "2", "--placement", "colocated"),
}


def _kill_once_saved(run_dir: Path, layout: tuple[str, ...], num_checkpoints: int) -> None:
    running = Running([*_TRAIN, "--run-dir", str(run_dir), *layout])
    steps = num_checkpoints * 2048
    running.until(lambda: any(int(path.stem[5:]) >= steps for path in (run_dir / "checkpoints").glob("step_*.h5")))
    running.kill()
    running.wait(timeout=20)


@pytest.mark.parametrize("layout", _LAYOUTS.values(), ids=_LAYOUTS)
def test_kill_and_resume_equals_the_uninterrupted_run(tmp_path: Path, layout: tuple[str, ...]) -> None:
    train(tmp_path / "whole", *_RUN, *layout)
    for cut in (1, 4, 9) if not layout else (5,):
        _kill_once_saved(tmp_path / f"cut{cut}", layout, cut)
        train(tmp_path / f"cut{cut}", "--resume")
        assert state(tmp_path / f"cut{cut}") == state(tmp_path / "whole")
        assert untimed(tmp_path / f"cut{cut}/metrics.csv") == untimed(tmp_path / "whole/metrics.csv")
        assert (tmp_path / f"cut{cut}/episodes.csv").read_text() == (tmp_path / "whole/episodes.csv").read_text()


@pytest.mark.parametrize("env", ["GridNavigation-v0", "CartPole-v1"])
def test_environments_with_a_state_of_their_own_go_on_exactly(tmp_path: Path, env: str) -> None:
    vector = "native" if env == "CartPole-v1" else "sync"
    options = ("--env", env, "--vector", vector)
    train(tmp_path / "whole", *_RUN, *options)
    _kill_once_saved(tmp_path / "cut", options, 3)
    train(tmp_path / "cut", "--resume")
    assert state(tmp_path / "cut") == state(tmp_path / "whole")
    assert '"by_state": 16' in (tmp_path / "cut/config.json").read_text()


def test_resume_on_other_ranks_goes_on_with_the_same_environments(tmp_path: Path) -> None:
    train(tmp_path / "whole", *_RUN)
    _kill_once_saved(tmp_path / "cut", ("--ranks", "3"), 4)
    done = train(tmp_path / "cut", "--resume", "--ranks", 2)
    assert "layout ranks" in done.stderr
    assert (tmp_path / "cut/episodes.csv").read_text() == (tmp_path / "whole/episodes.csv").read_text()


def test_an_environment_that_cannot_be_restored_begins_anew_and_says_so(tmp_path: Path) -> None:
    options = ("--env", "tests.environments:Restless-v0", "--num-envs", "4", "--unroll-length", "16")
    _kill_once_saved(tmp_path / "run", options, 2)
    done = train(tmp_path / "run", "--resume")
    assert "4 environments could not be restored and begin new episodes" in done.stderr
    assert '"begun_anew": 4' in (tmp_path / "run/config.json").read_text()


def test_ignored_rows_of_a_native_environment_cost_no_episode_of_the_log(tmp_path: Path) -> None:
    options = ("--env", "tests.environments:NextStep-v0", "--vector", "native", "--num-envs", "8")
    _kill_once_saved(tmp_path / "run", options, 4)
    done = train(tmp_path / "run", "--resume")
    assert "layout_invariant: false" in done.stdout
    assert '"layout_invariant": false' in (tmp_path / "run/config.json").read_text()
    lines = [line.split(",") for line in (tmp_path / "run/episodes.csv").read_text().splitlines()[1:]]
    for env in range(8):
        numbers = [int(number) for _, index, number, *_ in lines if int(index) == env]
        assert len(set(numbers)) == len(numbers)
        # Each environment gave up one running episode, and no more.
        assert set(range(max(numbers))) - set(numbers) <= {_first_gap(numbers)}


def _first_gap(numbers: list[int]) -> int:
    return next(number for number in range(len(numbers) + 1) if number not in numbers)


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path: Path) -> None:
    train(tmp_path / "whole", "--total-env-steps", 2048, "--num-iterations", 1)
    train(tmp_path / "fresh", "--total-env-steps", 2048, "--num-iterations", 1, "--resume")
    assert state(tmp_path / "fresh") == state(tmp_path / "whole")


def test_a_finished_run_that_is_resumed_trains_no_further(tmp_path: Path) -> None:
    train(tmp_path / "run", "--total-env-steps", 2048, "--num-iterations", 1)
    before = state(tmp_path / "run")
    done = train(tmp_path / "run", "--resume")
    assert "finished at env step 2,048" in done.stdout
    assert state(tmp_path / "run") == before


def test_a_second_writer_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    running = Running([*_TRAIN, "--run-dir", str(tmp_path / "run"), "--total-env-steps", "100000000"])
    running.until(lambda: (tmp_path / "run/metrics.csv").exists())
    for resume in ((), ("--resume",)):
        second = hpcrl("train", "a2c", "--run-dir", tmp_path / "run", *resume)
        assert second.returncode == 2
        assert second.stderr.count("\n") == 1
        assert f"in use by pid {running.process.pid}" in second.stderr
    running.process.send_signal(signal.SIGTERM)
    assert running.wait(timeout=20).returncode == 0
    assert run([*HPCRL, "eval", str(tmp_path / "run"), "--episodes", "2"]).returncode == 0
