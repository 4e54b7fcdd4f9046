"""`hpcrl presets`: what presets there are."""

from __future__ import annotations

from hpcrl.presets import PRESETS


def list_presets() -> int:
    """Print a line for each preset."""
    for preset in PRESETS.values():
        print(f"{preset.name:20} {preset.algorithm:8} {preset.description}")
    return 0
