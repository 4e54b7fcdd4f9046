"""What shells are told of the command line, and what bash makes of it."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hpcrl.commands import bench, doctor, eval, export, inspect, plan, plot, report, runs, status, submit, watch
from hpcrl.commands.completion import completion, grammar
from hpcrl.commands.main import COMMANDS
from hpcrl.config import CONFIGS
from hpcrl.config.names import flags
from hpcrl.errors import ConfigError
from hpcrl.presets import PRESETS

#: The classes that commands read their options into.
CLASSES: dict[str, Any] = {
    "submit": submit.SubmitOptions,
    "status": status.StatusOptions,
    "runs": runs.RunsOptions,
    "watch": watch.WatchOptions,
    "plot": plot.PlotOptions,
    "report": report.ReportOptions,
    "eval": eval.EvalOptions,
    "inspect": inspect.InspectOptions,
    "export": export.ExportOptions,
    "plan": plan.PlanOptions,
}
POSITIONAL = {"run_dir", "path", "paths", "folder"}

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def test_every_command_is_known() -> None:
    assert set(grammar().commands) == set(COMMANDS)


def test_the_options_of_every_command_are_known() -> None:
    known = {
        name: {option.flag: option.takes for option in command.options if option.flag.startswith("--")}
        for name, command in grammar().commands.items()
    }
    for name, cls in CLASSES.items():
        fields = {field.name: field for field in dataclasses.fields(cls) if field.name not in POSITIONAL}
        expected = {"--" + field.rstrip("_").replace("_", "-") for field in fields}
        assert set(known[name]) == {*expected, "--help"}, name
        switches = {flag for flag, takes in known[name].items() if takes == "nothing"}
        kinds = {"--" + field.rstrip("_").replace("_", "-"): str(fields[field].type) for field in fields}
        assert switches == {
            *(flag for flag, kind in kinds.items() if re.match(r"bool|Annotated\[\s*bool\b", kind)),
            "--help",
        }
    assert set(known["doctor"]) == set(re.findall(r"--[a-z-]+", doctor._parser().format_usage())) | {"--help"}
    assert set(known["bench"]) - {"--help"} == set(re.findall(r"^  (--[a-z]+)", bench._HELP, flags=re.MULTILINE))


def test_the_options_of_every_algorithm_are_known() -> None:
    for algorithm, options in grammar().options.items():
        assert {"--preset", "--help", *(option.flag for option in options)} == set(flags(algorithm))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, one of them in runs/, and files."""
    folder = tmp_path_factory.mktemp("here")
    for name in ("runs/a2c-one", "runs/ppo two", "mine"):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").touch()
    (folder / "runs" / "empty").mkdir()
    for name in ("small.toml", "small.csv"):
        (folder / name).touch()
    return folder


#: Words before the cursor, the last one begun, and what bash offers.
CASES: list[tuple[list[str], set[str]]] = [
    (["tr"], {"train"}),
    (["st"], {"status"}),
    (["train", "a"], {"a2c", "a3c", "appo"}),
    (["bench", "b"], {"bc"}),
    (["train", "a2c", "--num-"], {"--num-envs", "--num-iterations"}),
    (["train", "ppo", "--clip"], {"--clip-range", "--clip-range-final"}),
    (["train", "a2c", "--clip"], set()),
    (["train", "a2c", "--p"], {"--preset", "--print-config", "--profile", "--placement", "--precision", "--pin-cores"}),
    (["train", "a3c", "--preset", ""], {name for name, algorithm in PRESETS if algorithm == "a3c"}),
    (["train", "impala", "--device", "c"], {"cpu", "cuda"}),
    (["train", "impala", "--device", "="], {"auto", "cpu", "cuda"}),
    (["train", "impala", "--device", "=", "cu"], {"cuda"}),
    (["train", "a2c", "--env", "GridN"], {"GridNavigation-v0"}),
    (["train", "a2c", "--env", "X", "--se"], {"--seed"}),
    (["train", "a2c", "--seed", ""], set()),
    (["train", "a2c", "--config", "sm"], {"small.toml", "small.csv"}),
    (["submit", "a2c", "--stage"], {"--stage-env", "--stage-dir"}),
    (["train", "a2c", "--stage"], set()),
    (["submit", "a2c", "--nodes", ""], set()),
    (["eval", "--ep"], {"--episodes"}),
    (["eval", ""], {"mine", "runs/a2c-one", "runs/ppo two"}),
    (["eval", "runs/"], {"runs/a2c-one", "runs/ppo two"}),
    (["eval", "a2"], {"runs/a2c-one"}),
    (["inspect", "sm"], {"small.toml", "small.csv"}),
    (["plot", "mine", "--x", ""], {"both", "env_steps", "time"}),
    (["plot", "mine", "-o", "sm"], {"small.toml", "small.csv"}),
    (["completion", ""], {"bash", "zsh", "fish", "--help"}),
    (["presets", ""], {"--help"}),
]


@needs_bash
def test_bash_completes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert completion(["bash"]) == 0
    (folder.parent / "script").write_text(capsys.readouterr().out)
    asked = """
        set -u; source ../script || exit; complete -p hpcrl
        ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _hpcrl; printf '%s\\n' "${COMPREPLY[@]-}" %; }
    """
    asked += "\n".join("ask hpcrl " + " ".join(f"'{word}'" for word in words) for words, _ in CASES)
    command = ["bash", "--norc", "-c", asked]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0 and not done.stderr, done.stderr
    registered, *answers = done.stdout.splitlines()
    assert registered == "complete -F _hpcrl hpcrl"
    offered = [set(filter(None, part.split("\n"))) for part in "\n".join(["", *answers]).split("\n%")]
    for (words, expected), got in zip(CASES, offered, strict=False):
        assert got == expected, words
    assert len(offered) == len(CASES) + 1


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_holds_every_word(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    completion([shell])
    text = capsys.readouterr().out
    words = {*COMMANDS, *CONFIGS, *(name for name, _ in PRESETS)}
    if shell == "fish":
        options = {f"-l {flag[2:]}" for algorithm in CONFIGS for flag in flags(algorithm)}
    else:
        options = {flag for algorithm in CONFIGS for flag in flags(algorithm)}
    assert all(re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text) for word in words | options)
    if shutil.which(shell) is not None:
        assert subprocess.run([shell, "-n"], input=text, text=True, timeout=30).returncode == 0


def test_a_shell_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert completion([]) == completion(["--help"]) == 0
    assert "hpcrl completion fish | source" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="one of: bash, zsh, fish, got 'tcsh'"):
        completion(["tcsh"])
