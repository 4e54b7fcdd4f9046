"""Registers hpcrl's environments with Gymnasium; importing this module imports nothing else."""

from __future__ import annotations

GRID_NAVIGATION_ID = "GridNavigation-v0"


def register_environments() -> None:
    """Registers GridNavigation-v0 with Gymnasium, once however often it is called.

    It has no `max_episode_steps`, as the environment counts its own: the limit depends on the grid's size.
    """
    # Only this submodule: a plugin loader may call while the gymnasium package itself is half imported.
    from gymnasium.envs.registration import register, registry

    if GRID_NAVIGATION_ID not in registry:
        register(id=GRID_NAVIGATION_ID, entry_point="hpcrl.envs.grid_navigation:GridNavigation")
