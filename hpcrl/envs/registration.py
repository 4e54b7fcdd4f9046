"""Registers hpcrl's environments with Gymnasium; importing this module imports nothing else."""

from __future__ import annotations

_ENTRY_POINTS = {
    "GridNavigation-v0": "hpcrl.envs.grid_navigation:GridNavigation",
    "MemoryCue-v0": "hpcrl.envs.memory_cue:MemoryCue",
}


def register_environments() -> None:
    """Registers GridNavigation-v0 and MemoryCue-v0 with Gymnasium, once however often it is called.

    They have no `max_episode_steps`, as they count their own: how long an episode is depends on their arguments.
    """
    # Only this submodule: a plugin loader may call while the gymnasium package itself is half imported.
    from gymnasium.envs.registration import register, registry

    for name, entry_point in _ENTRY_POINTS.items():
        if name not in registry:
            register(id=name, entry_point=entry_point)
