"""Turns a configuration's fields into command-line options, grouped as the fields say."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from hpcrl.config import TrainConfig, config_class, from_facts
from hpcrl.errors import ConfigError
from hpcrl.presets import preset
from hpcrl.storage.run_directory import RunDirectory

#: The groups of options, in the order of the help.
_GROUPS = (
    "environment",
    "atari",
    "run",
    "trajectories",
    "evaluation",
    "layout",
    "run_ahead",
    "asynchronous",
    "algorithm",
    "model",
    "optimizer",
)


def parse(algorithm: str, arguments: Sequence[str]) -> TrainConfig:
    """The configuration: defaults, then a preset or the resumed run's own, then what the arguments say.

    Raises:
        ConfigError: a value that can't be run.
        SystemExit: the parser's own, for an unknown option (2) or --help (0).
    """
    name, rest = take_value(arguments, "--preset")
    base = config_class(algorithm)()
    if name is not None:
        base = preset(name, algorithm)
    elif (stored := _resumed(rest)) is not None:
        base = stored
        if base.algorithm != algorithm:
            raise ConfigError(f"the run to resume was trained with {base.algorithm}, not with {algorithm}")
    return parse_onto(_as_recorded(base, rest), rest)


def _as_recorded(base: TrainConfig, arguments: Sequence[str]) -> TrainConfig:
    """`base` with the task and the model of the run that --from-trajectories names."""
    folder, _ = take_value(arguments, "--from-trajectories")
    if folder is None or "from_trajectories" not in {field.name for field in dataclasses.fields(base)}:
        return base
    recorded = from_facts(RunDirectory(Path(folder)).read_config())
    names = [field.name for field in dataclasses.fields(recorded) if field.metadata["group"] in ("atari", "model")]
    values: dict[str, Any] = {name: getattr(recorded, name) for name in (*names, *_OF_THE_TASK)}
    return dataclasses.replace(base, **values)


#: What else has to be as it was recorded.
_OF_THE_TASK = ("env", "task_id", "frame_stack", "reward_clip", "normalise_observations", "gamma", "unroll_length")


def parse_onto(base: TrainConfig, arguments: Sequence[str]) -> TrainConfig:
    """`base` with what the arguments say."""
    groups = _group_classes(type(base))
    wrapper = dataclasses.make_dataclass(
        "Options",
        [(name, cls, dataclasses.field()) for name, cls in groups.items()],
    )
    defaults = wrapper(
        **{
            name: cls(**{f.name: getattr(base, f.name) for f in dataclasses.fields(cls)})
            for name, cls in groups.items()
        }
    )
    parsed: Any = tyro.cli(
        wrapper,
        prog=f"hpcrl train {base.algorithm}",
        description=f"{type(base).__doc__} A preset comes first (--preset NAME), then what the command line says.",
        args=join_values(arguments, "--env"),
        default=defaults,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    values: dict[str, Any] = {}
    for name in groups:
        part = getattr(parsed, name)
        values |= {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    return type(base)(**values)


def _group_classes(cls: type[TrainConfig]) -> dict[str, type]:
    """A dataclass for each group of fields, so that the help has a box for each."""
    kinds = typing.get_type_hints(cls)
    grouped: dict[str, list[Any]] = {name: [] for name in _GROUPS}
    for field in dataclasses.fields(cls):
        kind: Any = _annotate(kinds[field.name], help=field.metadata["help"])
        grouped[field.metadata["group"]].append((field.name, kind, dataclasses.field(default=field.default)))
    return {name: dataclasses.make_dataclass(name.title(), fields) for name, fields in grouped.items() if fields}


def _annotate(kind: Any, help: str) -> Any:
    return Annotated[kind, tyro.conf.arg(help=help)]


def _resumed(arguments: Sequence[str]) -> TrainConfig | None:
    """The configuration of the run that --resume and --run-dir name, where there is one."""
    folder, _ = take_value(arguments, "--run-dir")
    if "--resume" not in arguments or folder is None:
        return None
    directory = RunDirectory(Path(folder))
    return from_facts(directory.read_config()) if directory.config_file.exists() else None


def take_value(arguments: Sequence[str], option: str) -> tuple[str | None, list[str]]:
    """The value of an option, as `--option VALUE` or `--option=VALUE`, and the arguments without it."""
    rest: list[str] = []
    value: str | None = None
    remaining = iter(arguments)
    for argument in remaining:
        if argument == option:
            value = next(remaining, None)
            if value is None:
                raise ConfigError(f"{option} needs a value")
        elif argument.startswith(option + "="):
            value = argument.partition("=")[2]
        else:
            rest.append(argument)
    return value, rest


def join_values(arguments: Sequence[str], option: str) -> list[str]:
    """The arguments, with the values of an option, which end where the next option begins, as one."""
    joined: list[str] = []
    begins = goes_on = False
    for argument in arguments:
        is_value = not argument.startswith("-")
        if is_value and goes_on:
            joined[-1] += f" {argument}"
        else:
            joined.append(argument)
        goes_on = (is_value and (begins or goes_on)) or argument.startswith(option + "=")
        begins = argument == option
    return joined
