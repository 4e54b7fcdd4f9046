"""Turns a configuration's fields into command-line options, grouped as the fields say."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from hpcrl.config import TrainConfig, config_class, from_facts
from hpcrl.config.file import ConfigFile, read_config_file, to_toml
from hpcrl.config.names import as_flag, flags, others_with
from hpcrl.config.nearest import did_you_mean
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
_ORDER = (
    "A preset comes first (--preset NAME), then a file of options (--config FILE.toml), then what the command line "
    "says; --print-config prints what comes of it, as such a file, and starts nothing."
)

#: Of a file's options, those that say what the run begins with.
_OF_THE_RUN = ("run_dir", "resume", "from_trajectories")


def parse(algorithm: str, arguments: Sequence[str], beside: Sequence[str] = ()) -> TrainConfig:
    """The configuration: defaults, then a preset or the resumed run's own, then a file, then what the arguments say.

    Under --print-config it is printed instead.

    Args:
        beside: fields of a command's own options, which may have been meant by one that is not known.

    Raises:
        ConfigError: an unknown option, a file that says something else, or a value that can't be run.
        SystemExit: the parser's own, for a value of another type (2) or --help (0); 0 after --print-config.
    """
    said = _said(algorithm, arguments)
    words = [word for word in said.words if word != "--print-config"]
    _require_known(algorithm, words, beside)
    config = parse_onto(said.base, words, said.file.values)
    if len(words) == len(said.words):
        return config
    print(to_toml(config), end="")
    raise SystemExit(0)


def without_file(algorithm: str, arguments: Sequence[str]) -> list[str]:
    """The same arguments, but what the file of --config says is said by options: a job may run when it has changed."""
    said = _said(algorithm, arguments)
    if said.path is None:
        return list(arguments)
    preset = [] if said.preset is None else [f"--preset={said.preset}"]
    words: list[str] = []
    for name, value in said.file.values.items():
        if value != getattr(said.base, name) or (value and name in _OF_THE_RUN):
            words += _as_words(name, value)
    return [*preset, *words, *said.words]


class _Said(NamedTuple):
    """What comes before the arguments, and the arguments without it."""

    base: TrainConfig
    path: str | None
    preset: str | None
    file: ConfigFile
    words: list[str]


def _said(algorithm: str, arguments: Sequence[str]) -> _Said:
    base = config_class(algorithm)()
    path, words = take_value(arguments, "--config")
    file = ConfigFile() if path is None else read_config_file(Path(path), algorithm)
    name, words = take_value(words, "--preset")
    if name is not None:
        base = preset(name, algorithm)
    elif file.preset is not None:
        name = file.preset
        try:
            base = preset(name, algorithm)
        except ConfigError as error:
            raise ConfigError(f"--config {path}: {error}") from None
    elif (stored := _resumed(words, file)) is not None:
        base = stored
        if base.algorithm != algorithm:
            raise ConfigError(f"the run to resume was trained with {base.algorithm}, not with {algorithm}")
    return _Said(_as_recorded(base, words, file), path, name, file, words)


def _as_words(name: str, value: Any) -> list[str]:
    """An option as it is typed."""
    flag = as_flag(name)
    if isinstance(value, bool):
        return [flag if value else as_flag(f"no_{name}")]
    if isinstance(value, tuple):
        return [flag, *map(str, value)]
    return [f"{flag}={value}"]


def _require_known(algorithm: str, words: Sequence[str], beside: Sequence[str]) -> None:
    """ConfigError for the first option that there is not, with the one that may have been meant."""
    known = flags(algorithm)
    for word in words:
        flag = as_flag(word.partition("=")[0][2:])
        if not word.startswith("--") or flag in known:
            continue
        name = flag[2:].replace("-", "_")
        hint = others_with(name, algorithm) or did_you_mean(flag, [*known, *map(as_flag, beside)])
        raise ConfigError(f"unknown option {flag}{hint}, see hpcrl train {algorithm} --help")


def _as_recorded(base: TrainConfig, arguments: Sequence[str], file: ConfigFile) -> TrainConfig:
    """`base` with the task and the model of the run that --from-trajectories names."""
    folder = take_value(arguments, "--from-trajectories")[0] or file.values.get("from_trajectories")
    if folder is None or "from_trajectories" not in {field.name for field in dataclasses.fields(base)}:
        return base
    recorded = from_facts(RunDirectory(Path(folder)).read_config())
    names = [field.name for field in dataclasses.fields(recorded) if field.metadata["group"] in ("atari", "model")]
    values: dict[str, Any] = {name: getattr(recorded, name) for name in (*names, *_OF_THE_TASK)}
    return dataclasses.replace(base, **values)


#: What else has to be as it was recorded.
_OF_THE_TASK = ("env", "task_id", "frame_stack", "reward_clip", "normalise_observations", "gamma", "unroll_length")


def parse_onto(base: TrainConfig, arguments: Sequence[str], file: Mapping[str, Any] | None = None) -> TrainConfig:
    """`base` with what a file says, by field name, and then with what the arguments say."""
    before = {field.name: getattr(base, field.name) for field in dataclasses.fields(base)} | dict(file or {})
    groups = _group_classes(type(base))
    wrapper = dataclasses.make_dataclass(
        "Options",
        [(name, cls, dataclasses.field()) for name, cls in groups.items()],
    )
    defaults = wrapper(
        **{
            name: cls(**{field.name: before[field.name] for field in dataclasses.fields(cls)})
            for name, cls in groups.items()
        }
    )
    parsed: Any = tyro.cli(
        wrapper,
        prog=f"hpcrl train {base.algorithm}",
        description=f"{type(base).__doc__} {_ORDER}",
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


def _resumed(arguments: Sequence[str], file: ConfigFile) -> TrainConfig | None:
    """The configuration of the run that --resume and --run-dir name, where there is one."""
    folder = take_value(arguments, "--run-dir")[0] or file.values.get("run_dir")
    resumes = "--resume" in arguments or (file.values.get("resume", False) and "--no-resume" not in arguments)
    if not resumes or folder is None:
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
