"""What stands in examples/ runs as its docstrings say, and does what it is there to show."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from hpcrl import A2CConfig
from hpcrl.algorithms.registry import loss_of
from hpcrl.errors import ConfigError
from hpcrl.storage.run_directory import RunDirectory
from tests.commands import run, weights

EXAMPLES = Path(__file__).parents[2] / "examples"

#: Command lines of hpcrl and scripts one after the other in one process, in the folder of the examples.
_IN_TURN = """
import json, runpy, sys
from hpcrl.commands.main import main

for program, *words in json.loads(sys.argv[1]):
    if program == "hpcrl":
        assert main(words) == 0, words
    else:
        sys.argv = [program, *words]
        runpy.run_path(program, run_name="__main__")
"""
_ALONE = "import runpy, sys; sys.modules['mpi4py'] = None; runpy.run_path('load_policy.py', run_name='__main__')"

_TINY = ("--total-env-steps", 1024, "--num-iterations", 1, "--hidden-sizes", 8, "--no-tensorboard")
_CARTPOLE = ("--env", "CartPole-v1", "--num-envs", 4, *_TINY)
_OWN_LOSS = "own_loss:advantage_weighted"
#: Every algorithm with its own loss, named as if it were a user's.
_NAMED = {"a2c": "hpcrl.algorithms.a2c:a2c_loss", "a3c": "hpcrl.algorithms.a2c:a2c_loss"}
_NAMED["ppo"] = "hpcrl.algorithms.ppo:ppo_loss"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs of all examples, and what they printed in `said`."""
    folder = tmp_path_factory.mktemp("examples")
    room = ("--env", "own_environment:HeatedRoom-v0", "--num-envs", 2, *_TINY)
    commands: list[Sequence[object]] = [
        ("own_environment.py", "--env-steps", 2048, "--run-dir", folder / "room"),
        ("hpcrl", "train", "ppo", *room, "--run-dir", folder / "room-by-command"),
        ("hpcrl", "train", "ppo", *_CARTPOLE, "--model", "own_model:Residual", "--run-dir", folder / "model"),
        ("hpcrl", "train", "a2c", *_CARTPOLE, "--loss", _OWN_LOSS, "--run-dir", folder / "loss"),
        ("offline.py", folder / "recorded", folder / "cloned", "--env-steps", 2048, "--min-return", 10),
    ]
    for algorithm, loss in _NAMED.items():
        commands.append(("hpcrl", "train", algorithm, *_CARTPOLE, "--run-dir", folder / algorithm))
        commands.append((*commands[-1][:-1], folder / f"{algorithm}-named", "--loss", loss))
    words = [[str(word) for word in command] for command in commands]
    done = run([sys.executable, "-c", _IN_TURN, json.dumps(words)], folder=EXAMPLES)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "Warning" not in done.stderr, done.stderr
    (folder / "said").write_text(done.stdout)
    return folder


def test_an_own_environment_is_trained_on(runs: Path) -> None:
    for name in ("room", "room-by-command"):
        facts = RunDirectory(runs / name).read_config()
        assert facts["config"]["env"] == "own_environment:HeatedRoom-v0"
        assert np.isfinite(weights(runs / name)).all()
    assert "2,048 env steps, mean return" in (runs / "said").read_text()


def test_an_own_encoder_is_part_of_the_policy(runs: Path) -> None:
    # Two blocks of 64 x 64 for policy and value each or shared: more than any network of 8 units has.
    assert len(weights(runs / "model")) > 8_000 > len(weights(runs / "ppo"))


def test_an_own_loss_is_learned_by(runs: Path) -> None:
    assert not np.array_equal(weights(runs / "loss"), weights(runs / "a2c"))
    for algorithm in _NAMED:
        assert np.array_equal(weights(runs / f"{algorithm}-named"), weights(runs / algorithm)), algorithm


@pytest.mark.parametrize(
    ("loss", "why"),
    [
        ("mine", "must be auto or package.module:function, got 'mine'"),
        (":mine", "must be auto or package.module:function, got ':mine'"),
        ("nowhere_at_all:mine", "can't be imported: No module named 'nowhere_at_all'"),
        ("hpcrl.algorithms.a2c:mine", "can't be imported: module 'hpcrl.algorithms.a2c' has no attribute 'mine'"),
        ("hpcrl:__version__", "must be a function, got str"),
    ],
)
def test_a_loss_that_is_none_is_refused(loss: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"--loss.*{why}"):
        loss_of(A2CConfig(loss=loss))


def test_recorded_unrolls_are_read_and_cloned(runs: Path) -> None:
    said = (runs / "said").read_text()
    assert "64 unrolls, 2,048 steps, mean reward 1.00" in said
    assert "bc: 1" in said
    assert RunDirectory(runs / "cloned").read_config()["config"]["from_trajectories"] == str(runs / "recorded")


def test_a_policy_acts_without_mpi(runs: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _ALONE, str(runs / "recorded")],
        cwd=EXAMPLES, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert "a2c on CartPole-v1 after 2,048 env steps" in done.stdout
    assert "rewards of 100 steps each" in done.stdout
