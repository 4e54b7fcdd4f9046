"""`hpcrl completion SHELL`: what may stand where on a command line, as a script for a shell."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym

from hpcrl.commands.shells import SHELLS, Command, Grammar, Option
from hpcrl.config import CONFIGS
from hpcrl.config.names import as_flag, flags
from hpcrl.config.nearest import did_you_mean
from hpcrl.errors import ConfigError
from hpcrl.presets import PRESETS

_USAGE = """usage: hpcrl completion SHELL

Print what completes commands, algorithms, options, presets and run directories. In a shell's start-up file:

  bash   eval "$(hpcrl completion bash)"
  zsh    eval "$(hpcrl completion zsh)"       (after compinit)
  fish   hpcrl completion fish | source
"""

#: What commands take beside a run or an algorithm: a switch, --option= with any value, =FILE, or =THIS|THAT.
_OPTIONS = {
    "train": "",
    "submit": "--nodes= --ntasks-per-node= --gpus-per-node= --partition= --exclusive --het --actor-nodes= "
    "--actor-ntasks-per-node= --actor-partition= --time= --warning= --max-restarts= --chain= --job-name= --sbatch= "
    "--environment=FILE --stage-env=FILE --stage-dir=FILE --mpi= --dry-run",
    "status": "",
    "runs": "--json",
    "watch": "--once --every=",
    "plot": "--out=FILE -o=FILE --x=both|env_steps|time --compare",
    "report": "--out=FILE -o=FILE",
    "eval": "--episodes= --ranks= --deterministic --seed= --best --json=FILE --video=FILE --video-episodes=",
    "inspect": "--json",
    "export": "--safetensors=FILE --best --minari=FILE --copy --link --evaluation --dataset-id=",
    "presets": "",
    "doctor": "--run-dir=FILE --json=FILE --time-limit=",
    "plan": "--nodes= --ranks-per-node= --learners-per-node= --envs-per-actor= --from=FILE --latency-us= "
    "--bandwidth-gbit= --lag-limit= --save=FILE --simulate --out=FILE --json",
    "bench": "--seconds= --repeats= --json=FILE",
    "completion": "",
}
_TRAINING = ("train", "submit", "plan", "bench")
_OF_RUNS = ("status", "runs", "watch", "plot", "report", "eval", "inspect", "export")


def completion(arguments: Sequence[str]) -> int:
    """Print the script; the exit status."""
    if not arguments or list(arguments) in (["-h"], ["--help"]):
        print(_USAGE, end="")
        return 0
    if len(arguments) > 1 or arguments[0] not in SHELLS:
        said = " ".join(arguments)
        hint = did_you_mean(said, SHELLS)
        raise ConfigError(f"hpcrl completion needs a shell, one of: {', '.join(SHELLS)}, got {said!r}{hint}")
    print(SHELLS[arguments[0]](grammar()), end="")
    return 0


def grammar() -> Grammar:
    """Everything that may be typed."""
    commands = {name: Command(_takes(name), _own_options(name)) for name in _OPTIONS}
    presets = {algorithm: tuple(name for name, other in PRESETS if other == algorithm) for algorithm in CONFIGS}
    return Grammar(commands, {algorithm: _options(algorithm) for algorithm in CONFIGS}, presets)


def _takes(command: str) -> Literal["algorithm", "run", "shell", "nothing"]:
    if command in _TRAINING:
        return "algorithm"
    if command == "completion":
        return "shell"
    return "run" if command in _OF_RUNS else "nothing"


def _own_options(command: str) -> tuple[Option, ...]:
    options = [Option("--help")]
    for word in _OPTIONS[command].split():
        flag, equals, value = word.partition("=")
        choices = tuple(value.split("|")) if "|" in value else ()
        options.append(
            Option(flag, takes="file" if value == "FILE" else "value" if equals else "nothing", choices=choices)
        )
    return tuple(options)


def _options(algorithm: str) -> tuple[Option, ...]:
    """The options of `hpcrl train`, but for --help and --preset."""
    cls = CONFIGS[algorithm]
    kinds = typing.get_type_hints(cls)
    helps = {as_flag(field.name): field.metadata["help"] for field in dataclasses.fields(cls)}
    options = {
        flag: Option(flag, helps.get(flag, "")) for flag in flags(algorithm) if flag not in ("--help", "--preset")
    }
    options["--config"] = Option("--config", "File of options.", "file")
    for field in dataclasses.fields(cls):
        flag, kind = as_flag(field.name), kinds[field.name]
        if kind is bool:
            continue
        takes: Literal["file", "value"] = "file" if Path in (kind, *typing.get_args(kind)) else "value"
        choices = tuple(gym.registry) if field.name == "env" else _choices(kind)
        options[flag] = Option(flag, field.metadata["help"], takes, choices)
    return tuple(options.values())


def _choices(kind: Any) -> tuple[str, ...]:
    parts = (kind, *typing.get_args(kind))
    return tuple(word for part in parts if typing.get_origin(part) is Literal for word in typing.get_args(part))
