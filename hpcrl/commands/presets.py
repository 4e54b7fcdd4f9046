"""`hpcrl presets`: what presets there are."""

from __future__ import annotations

from collections.abc import Sequence

from hpcrl.errors import ConfigError
from hpcrl.presets import PRESETS


def list_presets(arguments: Sequence[str]) -> int:
    """Print a line for each preset; the exit status."""
    if {"-h", "--help"} & set(arguments):
        print("usage: hpcrl presets\n\nPrint the presets: name, algorithm, and what they are for.")
        return 0
    if arguments:
        raise ConfigError(f"hpcrl presets takes no arguments, got {' '.join(arguments)}")
    for preset in PRESETS.values():
        print(f"{preset.name:20} {preset.algorithm:8} {preset.description}")
    return 0
