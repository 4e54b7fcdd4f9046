"""`hpcrl presets`: what presets there are."""

from __future__ import annotations

from hpcrl.presets import PRESETS


def list_presets() -> int:
    """Print a line for each preset."""
    for name, make in PRESETS.items():
        description = " ".join((make.__doc__ or "").split())
        print(f"{name:18} {make().algorithm:8} {description}")
    return 0
