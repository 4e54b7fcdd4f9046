"""Bad input gets one sentence and a status, before the first step, and nothing is overwritten."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from hpcrl.cluster.launch import launcher_command, rank_environment
from hpcrl.storage.checkpoints import save_checkpoint
from tests.commands import HPCRL, Done, hpcrl, in_turn, run, train

_SHORT = ("--total-env-steps", "2048", "--num-iterations", "1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    train(run_dir, *_SHORT, "--hidden-sizes", 8)
    return run_dir


def _refused(*arguments: object, status: int = 2) -> str:
    """The one sentence that a command is refused with."""
    return _sentence(hpcrl(*arguments), status)


def _sentence(done: subprocess.CompletedProcess[str] | Done, status: int = 2) -> str:
    """The one sentence that a finished command was refused with."""
    assert done.returncode == status, done.stderr
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("hpcrl: ")
    return lines[0]


_BAD_OPTIONS: list[tuple[tuple[object, ...], str]] = [
    (("--env", "CartPoole-v1"), "CartPoole"),
    (("--env", "no_such_package:Env-v0"), "no_such_package"),
    (("--env", "Acrobot-v1", "--vector", "native"), "no vector form"),
    (("--num-envs", 0), "--num-envs must be"),
    (("--unroll-length", -3), "--unroll-length must be"),
    (("--gamma", 1.5), "--gamma must be"),
    (("--learning-rate", "nan"), "--learning-rate must be"),
    (("--learner-cores", 1000), "--learner-cores 1000"),
    (("--preset", "first-lite"), "first-light"),
]


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Done]]:
    """Where a run with each of the bad options would lie, and what became of it."""
    folder = tmp_path_factory.mktemp("bad-options")
    run_dirs = [folder / str(number) for number in range(len(_BAD_OPTIONS))]
    commands = [
        ("train", "a2c", "--run-dir", run_dir, *options)
        for run_dir, (options, _) in zip(run_dirs, _BAD_OPTIONS, strict=True)
    ]
    return list(zip(run_dirs, in_turn(commands), strict=True))


@pytest.mark.parametrize("number", range(len(_BAD_OPTIONS)), ids=[words for _, words in _BAD_OPTIONS])
def test_bad_options_are_refused_in_one_sentence(refusals: list[tuple[Path, Done]], number: int) -> None:
    run_dir, done = refusals[number]
    assert _BAD_OPTIONS[number][1] in _sentence(done)
    assert not (run_dir / "metrics.csv").exists()


def test_unknown_words_are_refused() -> None:
    assert "unknown algorithm 'a2d'" in _refused("train", "a2d")
    assert "unknown command 'trian'" in _refused("trian")
    assert hpcrl("train", "a2c", "--numenvs", 3).returncode == 2


def test_several_ranks_refuse_with_one_sentence(tmp_path: Path) -> None:
    command = [*HPCRL, "train", "a2c", "--run-dir", str(tmp_path / "run")]
    done = run(launcher_command(3, [*command, "--num-envs", "0"]), environment=rank_environment(os.environ))
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("hpcrl: ") == 1, done.stderr
    # Known only once the ranks have met.
    [done] = in_turn([("train", "a2c", "--run-dir", tmp_path / "run", "--learners", 2)], ranks=2)
    assert "--learners 2" in _sentence(done)


def test_a_world_of_another_size_is_refused(tmp_path: Path) -> None:
    command = [*HPCRL, "train", "a2c", "--run-dir", str(tmp_path / "run"), "--ranks", "3"]
    done = run(launcher_command(2, command), environment=rank_environment(os.environ))
    assert done.returncode == 1
    assert "--ranks promises 3 ranks but MPI" in done.stderr
    assert "a world of 2" in done.stderr
    # A launcher of another MPI: every process believes that it is alone.
    alone = run([*HPCRL, "train", "a2c"], environment={**os.environ, "PMI_SIZE": "4", "PMI_RANK": "0"})
    assert alone.returncode == 1
    assert "PMI_SIZE promises 4 ranks" in alone.stderr


def test_a_run_is_never_overwritten(trained: Path) -> None:
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    assert "--resume" in _refused("train", "a2c", "--run-dir", trained)
    assert "--resume" in _refused("train", "a2c", "--run-dir", trained, "--ranks", 2)
    assert before == {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}


def test_a_checkpoint_of_another_model_is_refused(trained: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(trained, tmp_path / "copy")
    before = {path.name: path.read_bytes() for path in (copy / "checkpoints").iterdir()}
    resume = ("train", "a2c", "--run-dir", copy, "--resume")
    other_sizes, other_number = in_turn([(*resume, "--hidden-sizes", 16), (*resume, "--num-envs", 8)])
    assert "[8] float32, expected [16] float32" in _sentence(other_sizes, status=1)
    assert "num_envs 16, expected 8" in _sentence(other_number, status=1)
    assert before == {path.name: path.read_bytes() for path in (copy / "checkpoints").iterdir()}


def test_a_truncated_checkpoint_is_refused(trained: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(trained, tmp_path / "copy")
    (newest,) = (copy / "checkpoints").glob("*.h5")
    newest.write_bytes(newest.read_bytes()[:5000])
    for done in in_turn([("eval", copy), ("train", "a2c", "--run-dir", copy, "--resume"), ("eval", newest)]):
        assert newest.name in _sentence(done, status=1)
    assert newest.stat().st_size == 5000


def test_a_read_only_run_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert "can't be written" in _refused("train", "a2c", "--run-dir", tmp_path / "file" / "run")


def test_eval_without_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.h5").write_text("no checkpoint")
    save_checkpoint(tmp_path / "arrays.h5", {"x": np.zeros(3)}, {})
    names = ("nowhere", ".", "notes.h5", "arrays.h5")
    nowhere, empty, other, foreign = in_turn([("eval", tmp_path / name) for name in names])
    assert "neither a run directory nor" in _sentence(nowhere)
    assert "no checkpoint" in _sentence(empty)
    assert "no checkpoint file" in _sentence(other)
    assert "no checkpoint of a run" in _sentence(foreign)


def test_a_loss_that_is_not_finite_names_the_update(tmp_path: Path) -> None:
    assert "update 1 (env step 0)" in _refused(
        "train", "a2c", "--run-dir", tmp_path / "run", "--env", "tests.environments:Exploding-v0", status=1
    )


def test_eval_prints_mean_and_spread(trained: Path) -> None:
    one = hpcrl("eval", trained, "--episodes", 5)
    assert one.returncode == 0, one.stderr
    assert "5 episodes: return" in one.stdout
    assert "+-" in one.stdout
    again, other = in_turn([("eval", trained, "--episodes", 5), ("eval", trained, "--episodes", 5, "--seed", 9)])
    assert again.stdout == one.stdout
    assert other.stdout != one.stdout


def test_help_names_commands_and_options() -> None:
    assert "train ALGORITHM" in hpcrl("--help").stdout
    algorithms, options, presets = in_turn([("train", "--help"), ("train", "a2c", "--help"), ("presets",)])
    assert "a2c" in algorithms.stdout
    for option in ("--num-envs", "--unroll-length", "--ranks", "--gae-lambda", "--eval-every", "--stop-return"):
        assert option in options.stdout
    assert "first-light" in presets.stdout
