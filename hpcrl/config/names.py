"""The names of options, as fields and files have them and as they are typed."""

from __future__ import annotations

import dataclasses

from hpcrl.config.registry import CONFIGS, config_class


def option_names(algorithm: str) -> list[str]:
    """The options of an algorithm as its fields are called."""
    return [field.name for field in dataclasses.fields(config_class(algorithm))]


def as_flag(name: str) -> str:
    """A field's option as it is typed."""
    return "--" + name.replace("_", "-")


def flags(algorithm: str) -> list[str]:
    """All that may be typed behind `hpcrl train ALGORITHM`."""
    fields = dataclasses.fields(config_class(algorithm))
    switches = [as_flag(f"no_{field.name}") for field in fields if isinstance(field.default, bool)]
    return ["--preset", "--config", "--print-config", "--help", *map(as_flag, option_names(algorithm)), *switches]


def others_with(name: str, algorithm: str) -> str:
    """ " (an option of X and Y)" where other algorithms have a field of that name; "" where none has."""
    others = [other for other in CONFIGS if other != algorithm and name in option_names(other)]
    return f" (an option of {' and '.join(others)})" if others else ""
