"""The defaults of configurations, and what a run does otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from hpcrl.config import config_class, to_json
from hpcrl.errors import ConfigError


@cache
def defaults(algorithm: str) -> Mapping[str, Any]:
    """The default configuration of an algorithm as JSON data; empty for an unknown one."""
    try:
        return to_json(config_class(algorithm)())
    except ConfigError:
        return {}


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as JSON data, with the defaults of options that an older version did not have."""
    return {**defaults(str(config.get("algorithm"))), **config}


def differing(config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Value and default of each option that is not at its default, or has none that is known; but the algorithm."""
    known = defaults(str(config.get("algorithm")))
    return {
        name: (value, known.get(name))
        for name, value in config.items()
        if name != "algorithm" and (name not in known or value != known[name])
    }
