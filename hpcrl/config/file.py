"""Configurations as TOML files: what a person writes for `--config`, and what `--print-config` prints."""

from __future__ import annotations

import dataclasses
import json
import tomllib
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hpcrl.config.as_json import decode, to_json
from hpcrl.config.names import option_names, others_with
from hpcrl.config.nearest import did_you_mean
from hpcrl.config.registry import config_class
from hpcrl.config.train import TrainConfig
from hpcrl.errors import ConfigError

#: Stands for no value, which TOML has no word for.
_NONE = "none"
_EXPECTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text in quotes",
    Path: "a path in quotes",
    type(None): f'"{_NONE}"',
}


@dataclass(frozen=True)
class ConfigFile:
    """What a file says.

    Attributes:
        preset: the preset that comes before it, if it names one.
        values: by field name; ranges are checked once all else that was said is known.
    """

    preset: str | None = None
    values: dict[str, Any] = dataclasses.field(default_factory=dict)


def read_config_file(path: Path, algorithm: str) -> ConfigFile:
    """What `path` says for an algorithm; its keys are the names of options.

    Raises:
        ConfigError: a file that is not there or not TOML, of another algorithm, with an unknown key, or with a value
            of another type.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path} can't be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--config {path} is not TOML: {error}") from None
    kinds = typing.get_type_hints(config_class(algorithm))
    values: dict[str, Any] = {}
    for key, value in data.items():
        try:
            name = _field_name(key, value, algorithm)
            if name in values:
                raise ConfigError(f"{key} is there twice, as {name} too")
            values[name] = _value(name, kinds.get(name, str), value)
        except ConfigError as error:
            raise ConfigError(f"--config {path}: {error}") from None
    if (other := values.pop("algorithm", algorithm)) != algorithm:
        raise ConfigError(f"--config {path}: algorithm is {other!r}, expected {algorithm!r}, as the command has it")
    return ConfigFile(values.pop("preset", None), values)


def to_toml(config: TrainConfig) -> str:
    """The configuration as a file that `read_config_file` understands, with every option."""
    data = to_json(config)
    lines = [f"# for hpcrl train {config.algorithm} --config FILE", f"algorithm = {_toml(data['algorithm'])}"]
    fields = dataclasses.fields(config)
    for group in dict.fromkeys(field.metadata["group"] for field in fields):
        lines += ["", f"# {group.replace('_', ' ')}"]
        names = [field.name for field in fields if field.metadata["group"] == group]
        lines += [f"{name} = {_toml(data[name])}" for name in names]
    return "\n".join(lines) + "\n"


def _field_name(key: str, value: object, algorithm: str) -> str:
    name, known = key.replace("-", "_"), [*option_names(algorithm), "algorithm", "preset"]
    if isinstance(value, dict):
        raise ConfigError(f"table [{key}] is not expected, write the options of {algorithm} without tables")
    if name in known:
        return name
    hint = others_with(name, algorithm) or did_you_mean(name, known)
    raise ConfigError(f"unknown key {key} for {algorithm}{hint}")


def _value(name: str, kind: Any, value: Any) -> Any:
    if value == _NONE and type(None) in typing.get_args(kind):
        return None
    try:
        decoded = decode(name, kind, value)
    except ConfigError:
        choices = [choice for part in (kind, *typing.get_args(kind)) for choice in _choices(part)]
        hint = did_you_mean(value, choices) if isinstance(value, str) else ""
        raise ConfigError(f"{name} must be {_expected(kind)}, got {value!r}{hint}") from None
    return decoded.expanduser() if isinstance(decoded, Path) else decoded


def _choices(kind: Any) -> tuple[str, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def _expected(kind: Any) -> str:
    if choices := _choices(kind):
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    if typing.get_origin(kind) is tuple:
        return "a list of whole numbers"
    return " or ".join(_expected(part) for part in typing.get_args(kind)) or _EXPECTED[kind]


def _toml(value: Any) -> str:
    """A value as TOML has it; floats so that the same one is read."""
    if value is None:
        return f'"{_NONE}"'
    if isinstance(value, str):
        # JSON's form, but for the one control character that it leaves as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value)
