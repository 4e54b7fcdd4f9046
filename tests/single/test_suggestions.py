"""Words that nothing is called are refused in one sentence with the one that was probably meant."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence

import pytest

from hpcrl.commands.main import COMMANDS, main
from hpcrl.commands.options import parse
from hpcrl.config import A2CConfig
from hpcrl.config.names import flags
from hpcrl.config.nearest import did_you_mean
from hpcrl.envs.factory import find_spec
from hpcrl.errors import ConfigError
from hpcrl.models.policy import Policy
from hpcrl.spaces import Space, Task

IMAGES = Task(Space("box", (4, 84, 84), "uint8"), Space("discrete", (), "int64", 6), None, True)


def test_the_nearest_word_counts_whatever_its_capitals() -> None:
    known = ["num_envs", "num_iterations", "Seed"]
    assert did_you_mean("numenvs", known) == " (did you mean num_envs?)"
    assert did_you_mean("SEEDS", known) == " (did you mean Seed?)"
    assert did_you_mean("zebra", known) == did_you_mean("seed", []) == ""


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian", "a2c"], "unknown command 'trian' (did you mean train?), expected one of: train, submit"),
        (["train", "a2d"], "unknown algorithm 'a2d' (did you mean a2c?), expected one of: a2c, ppo"),
        (["submit", "imapla", "--nodes", "2"], "unknown algorithm 'imapla' (did you mean impala?)"),
        (["train", "a2c", "--preset", "cart-pole"], "unknown preset 'cart-pole' (did you mean cartpole?)"),
        (["train", "a2c", "--numenvs", "3"], "unknown option --numenvs (did you mean --num-envs?)"),
        (["train", "a2c", "--numenvs=3"], "unknown option --numenvs (did you mean --num-envs?)"),
        (["train", "a2c", "--no-tensorbord"], "unknown option --no-tensorbord (did you mean --no-tensorboard?)"),
        (["train", "a2c", "--confg", "a.toml"], "unknown option --confg (did you mean --config?)"),
        (["train", "a2c", "--clip-range", "1"], "unknown option --clip-range (an option of ppo and appo)"),
        (["train", "a2c", "--zebra"], "unknown option --zebra, see hpcrl train a2c --help"),
        (["completion", "bsh"], "got 'bsh' (did you mean bash?)"),
    ],
)
def test_a_command_line_with_an_unknown_word(
    words: Sequence[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("hpcrl: ") and err.count("\n") == 1 and sentence in err


@pytest.mark.parametrize(
    ("env", "meant"),
    [("cartpole-v1", "CartPole-v1"), ("Pendulum", "Pendulum-v1"), ("GridNavigaton-v0", "GridNavigation-v0")],
)
def test_an_environment(env: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"is not a registered Gymnasium environment \(did you mean {meant}\?\)$"):
        find_spec(env)


def test_an_environment_that_is_like_none() -> None:
    with pytest.raises(ConfigError, match=r"'Zebra-v9' is not a registered Gymnasium environment: .*doesn't exist"):
        find_spec("Zebra-v9")


def test_a_model() -> None:
    with pytest.raises(ConfigError, match=r"got 'natur' \(did you mean nature\?\)$"):
        Policy(IMAGES, A2CConfig(model="natur"))


def test_what_the_help_lists_is_known(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    for algorithm in ("a3c", "appo"):
        with pytest.raises(SystemExit):
            parse(algorithm, ["--help"])
        assert set(re.findall(r"(?<!\w)--[a-z][a-z-]+", capsys.readouterr().out)) == set(flags(algorithm))
    assert parse("a2c", ["--num_envs", "4", "--no-tensorboard", "--stop-return", "-1e-5"]).num_envs == 4


def test_the_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    listed = capsys.readouterr().out.partition("examples:")[0].partition("commands:")[2]
    assert [line.split()[0] for line in listed.splitlines() if line.strip()] == list(COMMANDS)


def test_whoever_reads_the_output_may_go_away() -> None:
    # A pipe that nobody reads.
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "hpcrl", "presets"], stdout=writing, stderr=subprocess.PIPE, timeout=60
    )
    os.close(writing)
    assert done.returncode == 1 and done.stderr == b""


def test_presets_take_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets", "pong"]) == 2
    assert "hpcrl presets takes no arguments, got pong" in capsys.readouterr().err
