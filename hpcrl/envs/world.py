"""Which environments a run steps, and how: what the factory needs to make them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from hpcrl.config import TrainConfig
from hpcrl.envs.atari import AtariOptions


@dataclass(frozen=True)
class World:
    """One kind of environment.

    Attributes:
        env_id: Gymnasium id, `package.module:id`, or `package.module:function` that makes one.
        vector: "sync" steps one environment after the other; "native" uses the environment's own vector form.
        isolated: every environment runs in a process of its own.
        restarts: how often environments that broke are made anew.
        timeout_s: seconds after which a step or reset counts as hung; None for no limit.
        atari: how a game of Atari is played.
        task: number of the task, where a run has several; else None.
    """

    env_id: str
    vector: Literal["sync", "native"] = "sync"
    isolated: bool = False
    restarts: int = 0
    timeout_s: float | None = None
    atari: AtariOptions = AtariOptions()
    task: int | None = None

    @property
    def is_fragile(self) -> bool:
        """Whether environments may break without an end of the run."""
        return self.isolated or self.restarts > 0 or self.timeout_s is not None


def worlds_of(config: TrainConfig) -> list[World]:
    """The worlds of a run, one for each of its tasks."""
    atari = AtariOptions(
        frame_skip=config.frame_skip,
        sticky_actions=config.sticky_actions,
        full_action_set=config.full_action_set,
        life_loss=config.life_loss,
        noop_max=config.noop_max,
        fire_reset=config.fire_reset,
    )
    fragile = (config.isolated, config.env_restarts, config.env_timeout)
    worlds = [World(env_id, config.vector, *fragile, atari) for env_id in config.env_ids]
    if len(worlds) == 1:
        return worlds
    return [dataclasses.replace(world, task=number) for number, world in enumerate(worlds)]


def evaluation_worlds(config: TrainConfig) -> list[World]:
    """The worlds of a run's evaluations: stepped one after the other, as every episode has a seed."""
    return [dataclasses.replace(world, vector="sync") for world in worlds_of(config)]
