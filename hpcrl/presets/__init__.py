"""Presets: configurations that are known to learn, by name and algorithm; the command line overrides what they say."""

from __future__ import annotations

from hpcrl.config import TrainConfig
from hpcrl.config.nearest import did_you_mean
from hpcrl.errors import ConfigError
from hpcrl.presets import atari, classic, memory, robots
from hpcrl.presets.preset import Preset

#: By (name, algorithm), in the order in which they are listed.
PRESETS: dict[tuple[str, str], Preset] = {
    (preset.name, preset.algorithm): preset for room in (classic, memory, robots, atari) for preset in room.PRESETS
}


def find_preset(name: str, algorithm: str) -> Preset:
    """The preset called `name` for an algorithm; ConfigError where there is none or it is for others."""
    names = list(dict.fromkeys(known for known, _ in PRESETS))
    if name not in names:
        raise ConfigError(f"unknown preset {name!r}{did_you_mean(name, names)}, expected one of: {', '.join(names)}")
    if (name, algorithm) not in PRESETS:
        others = " and ".join(other for known, other in PRESETS if known == name)
        raise ConfigError(f"preset {name} is for {others}, not for {algorithm}")
    return PRESETS[name, algorithm]


def preset(name: str, algorithm: str) -> TrainConfig:
    """The configuration of `find_preset`."""
    return find_preset(name, algorithm).make()
