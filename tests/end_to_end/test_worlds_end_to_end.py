"""Images, several games, memory and scales, from the command line to what is learned, resumed and played."""

from __future__ import annotations

import csv
import json
import math
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from hpcrl.storage.checkpoints import CheckpointStore
from tests.commands import Done, in_turn, run, state, untimed

#: Everything that is remembered from one unroll, update or episode to the next.
_REMEMBERS = (
    *("--env", "CartPole-v1", "--core", "lstm", "--core-size", 16, "--frame-stack", 2, "--hidden-sizes", 16),
    *("--normalise-observations", "--normalise-returns", "--num-envs", 8, "--unroll-length", 32),
    *("--total-env-steps", 8192, "--num-iterations", 3, "--checkpoint-every", 512, "--epochs", 2, "--minibatches", 2),
)
_ATARI = (
    *("--env", "ALE/Pong-v5 ALE/Breakout-v5", "--full-action-set", "--frame-stack", 4, "--life-loss"),
    *("--reward-clip", 1, "--noop-max", 4, "--num-envs", 2, "--unroll-length", 64, "--epochs", 1, "--minibatches", 2),
    *("--hidden-sizes", 32, "--total-env-steps", 512, "--num-iterations", 2),
)
#: The update, of 256 steps, in which a run is killed: in the middle of an iteration, and one after a checkpoint.
_KILLED_IN = 16
_CUE = ("--preset", "memory-cue")
_TRAIN = {
    "cut": (*_REMEMBERS, "--resume"),
    "whole": _REMEMBERS,
    "atari": _ATARI,
    "cue": (*_CUE, "--total-env-steps", 100_000, "--num-iterations", 40, "--stop-return", 0.95),
    "forgetful": (*_CUE, "--core", "none", "--total-env-steps", 30_000, "--num-iterations", 2),
}
_EVAL = {
    "whole": ("--episodes", 10),
    "cue": ("--episodes", 200, "--deterministic"),
    "forgetful": ("--episodes", 400, "--deterministic"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs are, by name."""
    return tmp_path_factory.mktemp("worlds")


@pytest.fixture(scope="module")
def done(folder: Path) -> Mapping[str, Done]:
    """All runs, one of which was killed before, and "eval NAME" of some."""
    killed = (sys.executable, "-m", "tests.faults", f"learner:kill@{_KILLED_IN}", "train", "ppo", *_REMEMBERS)
    assert run([*map(str, killed), "--run-dir", str(folder / "cut"), "--no-tensorboard"]).returncode == -signal.SIGKILL
    commands: dict[str, tuple[object, ...]] = {
        name: ("train", "ppo", *options, "--run-dir", folder / name, "--no-tensorboard")
        for name, options in _TRAIN.items()
    }
    commands |= {f"eval {name}": ("eval", folder / name, *options) for name, options in _EVAL.items()}
    finished = dict(zip(commands, in_turn(list(commands.values())), strict=True))
    for name, each in finished.items():
        assert each.returncode == 0, f"{name}:\n{each.stdout}\n{each.stderr}"
    return finished


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def _mean_return(evaluation: Done) -> float:
    found = re.search(r"episodes: return (-?[\d.]+) \+-", evaluation.stdout)
    assert found is not None, evaluation.stdout
    return float(found[1])


def test_kill_and_resume_with_memory_and_scales_equals_the_uninterrupted_run(
    folder: Path, done: Mapping[str, Done]
) -> None:
    cut, whole = folder / "cut", folder / "whole"
    arrays = state(cut)
    assert {"environments/core_state", "environments/frames"} <= set(arrays)
    assert any(name.startswith("normalisers/observations/") for name in arrays)
    assert any(name.startswith("normalisers/returns/") for name in arrays)
    assert arrays == state(whole)
    assert untimed(cut / "metrics.csv") == untimed(whole / "metrics.csv")
    assert (cut / "episodes.csv").read_text() == (whole / "episodes.csv").read_text()
    (resume,) = json.loads((cut / "config.json").read_text())["resumes"]
    # The newest checkpoint may have been on its way to the disk.
    assert resume.pop("env_steps") in (3072, 3584)
    assert resume == {"by_state": 0, "by_replay": 8, "begun_anew": 0}


def test_a_policy_that_remembers_is_played_by_eval(done: Mapping[str, Done]) -> None:
    assert "(ppo on CartPole-v1, 8,192 env steps)\n10 episodes: return " in done["eval whole"].stdout
    assert _mean_return(done["eval whole"]) > 9


def test_a_cue_is_remembered_with_a_core_and_guessed_without(folder: Path, done: Mapping[str, Done]) -> None:
    assert "--stop-return reached at env step" in done["cue"].stdout
    last = _rows(folder / "cue/metrics.csv")[-1]
    assert int(last["env_steps"]) <= 100_000 and float(last["rollout/return_last_100"]) >= 0.95
    assert _mean_return(done["eval cue"]) >= 0.95
    assert float(_rows(folder / "forgetful/metrics.csv")[-1]["rollout/episode_return_mean"]) <= 0.35
    assert _mean_return(done["eval forgetful"]) <= 0.35


def test_games_of_atari_are_learned_from_and_counted_whole(folder: Path, done: Mapping[str, Done]) -> None:
    assert "finished at env step 512" in done["atari"].stdout
    last = _rows(folder / "atari/metrics.csv")[-1]
    assert int(last["learner_updates"]) == 8
    assert all(math.isfinite(float(last[f"train/{name}"])) for name in ("policy_loss", "value_loss", "entropy"))
    # A game of five lives in 256 steps of each environment.
    (episode,) = _rows(folder / "atari/episodes.csv")
    assert (episode["task"], episode["env_index"], episode["episode"]) == ("ALE/Breakout-v5", "1", "0")
    assert int(episode["length"]) > 100
    checkpoint = CheckpointStore(folder / "atari/checkpoints").newest()
    assert checkpoint is not None
    assert checkpoint.arrays["environments/frames"].shape == (2, 4, 84, 84)
    assert (32, 4, 8, 8) in {array.shape for array in checkpoint.group("weights").values()}
