"""Algorithms whose actors run ahead of the learners."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from hpcrl.config.actor_critic import ActorCriticConfig
from hpcrl.config.fields import COUNT, POSITIVE, SHARE, option


@dataclass(frozen=True)
class ImpalaConfig(ActorCriticConfig):
    """Importance-weighted actor-learner: actors run ahead of the learners, V-trace corrects for it."""

    algorithm: ClassVar[str] = "impala"

    num_envs: int = option(32, "Environments in total, dealt out over all actors.", "environment")
    total_env_steps: int = option(1_000_000, "Environment steps to train for, over all actors.", "run")

    schedule: Literal["run-ahead", "lockstep"] = option(
        "run-ahead", "run-ahead: actors do not wait for the learner; lockstep: they take turns.", "run_ahead"
    )
    batch_envs: int = option(32, "Columns [T, .] of one update, over all learners.", "run_ahead")
    replay_epochs: int = option(1, "Updates from every batch.", "run_ahead")
    max_lag: int | None = option(
        None,
        "Most updates between the weights that acted and those that learn (default: twice what num_envs, batch_envs "
        "and replay_epochs need, and 8).",
        "run_ahead",
    )
    on_stale: Literal["drop", "wait"] = option(
        "drop",
        "Unrolls older than max_lag are dropped; or actors and learners wait for each other, so that none is.",
        "run_ahead",
    )
    deterministic: bool = option(
        False, "Unroll k of every actor is acted with the weights of exactly max_lag updates before.", "run_ahead"
    )
    inference: Literal["actor", "learner"] = option(
        "actor", "actor: every actor has the network; learner: it answers for all its actors at once.", "run_ahead"
    )
    behaviour_epsilon: float = option(
        0.0, "Share of uniformly random actions; V-trace corrects for it (discrete actions).", "run_ahead"
    )
    from_trajectories: Path | None = option(
        None, "Run directory whose recorded trajectories are learned from, instead of acting.", "trajectories"
    )
    rho_bar: float = option(1.0, "V-trace: clip of the ratios in the value targets.", "algorithm")
    c_bar: float = option(1.0, "V-trace: clip of the ratios in the trace.", "algorithm")
    pg_rho_bar: float = option(1.0, "V-trace: clip of the ratios in the policy gradient.", "algorithm")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_range(COUNT, "batch_envs", "replay_epochs")
        self._require_range(SHARE, "behaviour_epsilon")
        for name in ("rho_bar", "c_bar", "pg_rho_bar"):
            self._require(name, getattr(self, name) > 0, "above 0")
        self._require(
            "max_lag",
            self.max_lag is None or self.max_lag >= self.least_lag,
            f"at least {self.least_lag}, since unrolls of {self.num_envs} environments in batches of {self.batch_envs} "
            f"with {self.replay_epochs} updates each are learned from over so many updates",
        )
        self._require(
            "deterministic", not (self.deterministic and self.inference == "learner"), "false with --inference learner"
        )
        self._require_offline()
        offline = "with --from-trajectories, where nothing is acted"
        acts = self.from_trajectories is None
        self._require("inference", acts or self.inference == "actor", f"actor {offline}")
        self._require("behaviour_epsilon", acts or not self.behaviour_epsilon, f"0 {offline}")
        central_minibatches = self.inference == "learner" and self.in_lockstep and self.num_envs > self.batch_envs
        self._require(
            "schedule",
            not central_minibatches,
            f"run-ahead with --inference learner where a round of {self.num_envs} environments makes several updates",
        )

    @property
    def source(self) -> Path | None:
        """The run whose recorded trajectories are learned from."""
        return self.from_trajectories

    @property
    def update_envs(self) -> int:
        """Columns [T, .] of one update, over all learners."""
        return self.batch_envs

    @property
    def num_epochs(self) -> int:
        """Updates from every batch."""
        return self.replay_epochs

    @property
    def least_lag(self) -> int:
        """Updates between the first and the last that learn from one unroll: the lag without any run-ahead."""
        divisor = math.gcd(self.num_envs, self.batch_envs)
        envs, batch = self.num_envs // divisor, self.batch_envs // divisor
        return self.replay_epochs * ((envs + batch - 2) // batch) + self.replay_epochs - 1

    @property
    def lag_bound(self) -> int:
        """The most updates that an unroll may be behind: `max_lag`, or its default."""
        # What is queued while as much again is acted, and some room for ranks that are not equally fast.
        return 2 * self.least_lag + 8 if self.max_lag is None else self.max_lag

    @property
    def in_lockstep(self) -> bool:
        """Actors and learners take turns."""
        return self.schedule == "lockstep" or self.max_lag == 0


@dataclass(frozen=True)
class AppoConfig(ImpalaConfig):
    """As impala, with the clipped surrogate of PPO in place of the weighted policy gradient."""

    algorithm: ClassVar[str] = "appo"

    clip_range: float = option(0.2, "Clip of the ratio of new to behaviour probabilities.", "algorithm")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_range(POSITIVE, "clip_range")
