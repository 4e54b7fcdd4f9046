"""Algorithms that learn from what other runs recorded, and from nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from hpcrl.config.actor_critic import ActorCriticConfig
from hpcrl.config.fields import option


@dataclass(frozen=True)
class BCConfig(ActorCriticConfig):
    """Behaviour cloning: the policy imitates recorded actions, its values are fitted to the recorded rewards."""

    algorithm: ClassVar[str] = "bc"

    num_envs: int = option(32, "Columns [T, .] of one update, each of one recorded environment.", "environment")
    from_trajectories: Path | None = option(
        None, "Run directory whose recorded trajectories are learned from.", "trajectories"
    )
    min_return: float | None = option(
        None, "Only episodes that are recorded whole and have this return at least are learned from.", "trajectories"
    )
    total_env_steps: int = option(1_500_000, "Environment steps to learn from, over all epochs.", "run")
    gamma: float = option(0.99, "Discount.", "algorithm")
    optimizer: Literal["adam", "rmsprop"] = option("adam", "Optimizer.", "optimizer")
    learning_rate: float = option(1e-3, "Learning rate at the start.", "optimizer")

    def __post_init__(self) -> None:
        super().__post_init__()
        finite = self.min_return is None or math.isfinite(self.min_return)
        self._require("min_return", finite, "a finite number")
        self._require("normalise_advantages", not self.normalise_advantages, "false under bc, which uses none")
        self._require_offline()

    @property
    def source(self) -> Path | None:
        """The run whose trajectories are learned from."""
        return self.from_trajectories
