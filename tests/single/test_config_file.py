"""Files of options: what they may say, in which order they count, and that what is printed is read back."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from hpcrl.commands.main import main
from hpcrl.commands.options import parse, without_file
from hpcrl.commands.submit import submit
from hpcrl.config import CONFIGS, BCConfig, PPOConfig, TrainConfig, config_class, to_json
from hpcrl.config.file import ConfigFile, read_config_file, to_toml
from hpcrl.errors import ConfigError
from hpcrl.presets import PRESETS, preset
from hpcrl.storage.run_directory import RunDirectory


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files and runs would be."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(text: str) -> list[str]:
    """`--config FILE` for a file that says `text`."""
    Path("a.toml").write_text(text)
    return ["--config", "a.toml"]


def read(text: str, algorithm: str = "a2c") -> ConfigFile:
    Path("a.toml").write_text(text)
    return read_config_file(Path("a.toml"), algorithm)


def test_a_preset_comes_before_the_file_and_options_after_it() -> None:
    said = written('preset = "cartpole"\nnum-envs = 24\nlearning_rate = 1\nhidden_sizes = [8, 16]\nrun_dir = "~/x"')
    config = parse("ppo", ["--num-envs", "12", *said])
    expected = {"num_envs": 12, "learning_rate": 1.0, "hidden_sizes": (8, 16), "run_dir": Path("~/x").expanduser()}
    assert config == dataclasses.replace(preset("cartpole", "ppo"), **expected)
    assert type(config.learning_rate) is float
    assert parse("ppo", [*said, "--preset", "pendulum"]).env == "Pendulum-v1"


def test_values_are_judged_together_with_the_options() -> None:
    said = written("minibatches = 64\nnum_envs = 1\nunroll_length = 32")
    with pytest.raises(ConfigError, match="--minibatches must be at most 32"):
        parse("ppo", said)
    assert parse("ppo", [*said, "--unroll-length", "64"]).minibatches == 64


def test_none_takes_back_what_a_preset_says() -> None:
    config = parse("ppo", ["--preset", "pong", *written('clip-range-final = "none"')])
    assert config == dataclasses.replace(preset("pong", "ppo"), clip_range_final=None) != preset("pong", "ppo")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("numenvs = 3", r"unknown key numenvs for a2c \(did you mean num_envs\?\)"),
        ("clip_range = 0.1", r"unknown key clip_range for a2c \(an option of ppo and appo\)"),
        ("num_envs = 3\nnum-envs = 4", "num-envs is there twice"),
        ("num_envs = '3'", "num_envs must be a whole number, got '3'"),
        ("num_envs = 3.0", "num_envs must be a whole number, got 3.0"),
        ("num_envs = true", "num_envs must be a whole number, got True"),
        ("resume = 1", "resume must be true or false, got 1"),
        ("env = ['A', 'B']", "env must be a text in quotes, got"),
        ("hidden_sizes = [1.5]", "hidden_sizes must be a list of whole numbers, got"),
        ("learners = 'all'", "learners must be auto or a whole number, got 'all'"),
        ("stop_return = 'never'", "stop_return must be a number or \"none\", got 'never'"),
        ("device = 'cudu'", r"device must be one of auto, cpu, cuda, got 'cudu' \(did you mean cuda\?\)"),
        ("algorithm = 'ppo'", "algorithm is 'ppo', expected 'a2c'"),
        ("preset = 'cartpol'", r"unknown preset 'cartpol' \(did you mean cartpole\?\)"),
        ("preset = 'pendulum'", "preset pendulum is for ppo, not for a2c"),
        ("[model]\ncore = 'gru'", r"table \[model\] is not expected"),
        ("num_envs", "is not TOML"),
        ("a = " + "[" * 5000, "is not TOML"),
    ],
)
def test_what_a_file_can_not_say(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"^--config a.toml:? .*{sentence}") as refused:
        parse("a2c", written(text))
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"--config nowhere.toml can't be read: No such file"):
        parse("a2c", ["--config", "nowhere.toml"])
    Path("a.toml").write_bytes(b"env = '\xff'")
    with pytest.raises(ConfigError, match="is not TOML"):
        parse("a2c", ["--config", "a.toml"])


@pytest.mark.parametrize("algorithm", CONFIGS)
def test_what_is_printed_is_read_back(
    algorithm: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setattr("hpcrl.commands.train.start_ranks", None)
    words = ["--env", 'a"b\\\x7f\t:C-v0', "é", "--learning-rate", "1e-7", "--hidden-sizes", "5", "--ranks", "3"]
    expected = parse(algorithm, words)
    with pytest.raises(SystemExit) as left:
        main(["train", algorithm, *words, "--print-config"])
    assert left.value.code == 0 and not list(Path().iterdir())
    text = capsys.readouterr().out
    assert parse(algorithm, written(text)) == expected
    assert set(read(text, algorithm).values) == set(to_json(expected)) - {"algorithm"}


@pytest.mark.parametrize("name", [*PRESETS, *((None, algorithm) for algorithm in CONFIGS)], ids=str)
def test_every_preset_is_read_back(name: tuple[str | None, str]) -> None:
    config: TrainConfig = config_class(name[1])() if name[0] is None else preset(name[0], name[1])
    assert config_class(name[1])(**read(to_toml(config), name[1]).values) == config


def test_a_file_may_name_the_run_to_go_on_with() -> None:
    stored = PPOConfig(num_envs=6, run_dir=Path("run"))
    RunDirectory(Path("run")).config_file.parent.mkdir()
    RunDirectory(Path("run")).write_config({"config": to_json(stored)})
    said = written('run_dir = "run"\nresume = true\nepochs = 3')
    assert parse("ppo", said) == dataclasses.replace(stored, resume=True, epochs=3)
    assert parse("ppo", [*said, "--no-resume"]).num_envs == PPOConfig().num_envs
    with pytest.raises(ConfigError, match="trained with ppo, not with a2c"):
        parse("a2c", written('run_dir = "run"\nresume = true'))


def test_bc_takes_the_task_of_the_run_that_a_file_names() -> None:
    RunDirectory(Path("run")).config_file.parent.mkdir()
    recorded = PPOConfig(env="Acrobot-v1", hidden_sizes=(7,), record_trajectories=True)
    RunDirectory(Path("run")).write_config({"config": to_json(recorded)})
    config = parse("bc", written('from-trajectories = "run"\nhidden_sizes = [9]'))
    assert isinstance(config, BCConfig) and config.from_trajectories == Path("run")
    assert (config.env, config.hidden_sizes) == ("Acrobot-v1", (9,))


def test_a_job_is_told_by_options_what_the_file_says(capsys: pytest.CaptureFixture[str]) -> None:
    said = written(
        'preset = "cartpole"\nenv = "A b:C"\nresume = true\nhidden_sizes = [3, 4]\nstop_return = "none"\n'
        "learning_rate = 1e-7\nshared_encoder = true\ntensorboard = false\nrun_dir = 'r'"
    )
    words = [*said, "--seed", "5"]
    told = without_file("ppo", words)
    assert "--config" not in told and parse("ppo", told) == parse("ppo", words)
    assert without_file("ppo", ["--seed", "5"]) == ["--seed", "5"]

    written("num_envs = 48\nseed = 3")
    assert main(["submit", "a2c", "--config", "a.toml", "--nodes", "2", "--ntasks-per-node", "4", "--dry-run"]) == 0
    script = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    assert any("a2c --num-envs=48 --seed=3" in line for line in script) and "a.toml" not in "".join(script)
    written("ranks = 4")
    with pytest.raises(ConfigError, match="--ranks is decided by --nodes"):
        submit(["a2c", "--config", "a.toml", "--nodes", "2", "--ntasks-per-node", "4", "--dry-run"])


@pytest.mark.parametrize(
    ("command", "sentence"), [("bench", "--ranks is set by hpcrl bench"), ("plan", "--ranks is decided by")]
)
def test_a_file_may_not_say_what_a_command_decides(
    command: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "a2c", *written("ranks = 4")]) == 2
    assert sentence in capsys.readouterr().err
