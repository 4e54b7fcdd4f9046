"""Configurations as JSON data and back."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any, Literal

from hpcrl.config.registry import config_class
from hpcrl.config.train import TrainConfig
from hpcrl.errors import ConfigError


def to_json(config: TrainConfig) -> dict[str, Any]:
    """The configuration as JSON data, with its algorithm."""
    data: dict[str, Any] = {"algorithm": config.algorithm}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        data[field.name] = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
    return data


def from_json(data: object) -> TrainConfig:
    """The configuration that `to_json` wrote; ConfigError for an unknown field or a value of another type."""
    if not isinstance(data, dict):
        raise ConfigError(f"a configuration must be a JSON object, got {type(data).__name__}")
    cls = config_class(str(data.get("algorithm")))
    kinds = typing.get_type_hints(cls)
    fields = {field.name for field in dataclasses.fields(cls)}
    values = {name: value for name, value in data.items() if name != "algorithm"}
    if unknown := sorted(set(values) - fields):
        raise ConfigError(f"the configuration has unknown fields: {', '.join(unknown)}")
    return cls(**{name: decode(name, kinds[name], value) for name, value in values.items()})


def from_facts(facts: dict[str, Any]) -> TrainConfig:
    """The configuration in what a run directory's `config.json` holds."""
    return from_json(facts.get("config"))


def decode(name: str, kind: Any, value: Any) -> Any:
    """`value` as the type that the field's annotation names."""
    if typing.get_origin(kind) is tuple:
        if isinstance(value, list) and all(type(item) is int for item in value):
            return tuple(value)
        raise ConfigError(f"field {name} of the configuration must be a list of whole numbers, got {value!r}")
    choices = typing.get_args(kind) or (kind,)
    for choice in choices:
        if typing.get_origin(choice) is Literal and value in typing.get_args(choice):
            return value
        if choice is type(None) and value is None:
            return None
        if choice is Path and isinstance(value, str):
            return Path(value)
        if choice is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if choice in (bool, int, str) and type(value) is choice:
            return value
    if typing.get_origin(kind) is Literal and value in choices:
        return value
    raise ConfigError(f"field {name} of the configuration has an unexpected value {value!r}")
