"""Actor-critics whose actors and learners take turns, and A3C, where nobody waits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from hpcrl.config.fields import COUNT, FINITE_NOT_NEGATIVE, POSITIVE, SHARE, WHOLE, option
from hpcrl.config.train import TrainConfig


@dataclass(frozen=True)
class ActorCriticConfig(TrainConfig):
    """What all actor-critics share: unrolls, returns and the parts of the loss."""

    loss: str = option(
        "auto", "auto: the algorithm's own; package.module:function: a loss of your own in its place.", "algorithm"
    )
    unroll_length: int = option(32, "Steps T of an unroll.", "algorithm")
    gamma: float = option(0.98, "Discount.", "algorithm")
    gae_lambda: float = option(1.0, "Lambda of generalised advantages (1: n-step returns).", "algorithm")
    entropy_coef: float = option(0.0, "Weight of the entropy bonus at the start.", "algorithm")
    entropy_coef_final: float | None = option(
        None,
        "Weight of the entropy bonus at total_env_steps, reached linearly (default: as at the start).",
        "algorithm",
    )
    value_coef: float = option(0.5, "Weight of the value loss.", "algorithm")
    normalise_advantages: bool = option(
        False, "Standardise advantages over the whole batch of all learners.", "algorithm"
    )
    loss_reduction: Literal["mean", "sum"] = option(
        "mean", "Loss as a mean or a sum over the batch's steps.", "algorithm"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_range(COUNT, "unroll_length")
        self._require_range(SHARE, "gamma", "gae_lambda")
        self._require_range(FINITE_NOT_NEGATIVE.or_none(), "entropy_coef", "value_coef", "entropy_coef_final")

    def _require_offline(self) -> None:
        """What can't be asked of a run whose actors read what another one recorded, if this is such a run."""
        if self.source is None:
            return
        why = "with --from-trajectories, where nothing is acted"
        for name in ("record_trajectories", "normalise_returns"):
            self._require(name, not getattr(self, name), f"false {why}")
        self._require("stop_return", self.stop_return is None, f"left out {why}: --eval-every tells how good it is")

    @property
    def source(self) -> Path | None:
        """The run whose recorded trajectories are learned from, instead of acting; None where actors act."""
        return None

    @property
    def update_envs(self) -> int:
        """Columns [T, .] of one update, over all learners."""
        return self.num_envs

    @property
    def num_epochs(self) -> int:
        """Updates from every batch."""
        return 1


@dataclass(frozen=True)
class A2CConfig(ActorCriticConfig):
    """Synchronous advantage actor-critic; an update learns from T x num_envs steps."""

    algorithm: ClassVar[str] = "a2c"


@dataclass(frozen=True)
class PPOConfig(ActorCriticConfig):
    """Proximal policy optimisation; several epochs of minibatches over T x num_envs steps."""

    algorithm: ClassVar[str] = "ppo"

    num_envs: int = option(8, "Environments in total, dealt out over all actors.", "environment")
    unroll_length: int = option(128, "Steps T of an unroll.", "algorithm")
    gae_lambda: float = option(0.95, "Lambda of generalised advantages (1: n-step returns).", "algorithm")
    normalise_advantages: bool = option(
        True, "Standardise advantages over every minibatch of all learners.", "algorithm"
    )
    optimizer: Literal["adam", "rmsprop"] = option("adam", "Optimizer.", "optimizer")
    learning_rate: float = option(3e-4, "Learning rate at the start.", "optimizer")

    epochs: int = option(10, "How often a batch of T x num_envs steps is learned from.", "algorithm")
    minibatches: int = option(
        4, "Updates of an epoch, each from another part of the batch, over all learners.", "algorithm"
    )
    clip_range: float = option(0.2, "Clip of the ratio of new to behaviour probabilities.", "algorithm")
    clip_range_final: float | None = option(
        None, "Clip of the ratio at total_env_steps, reached linearly (default: as at the start).", "algorithm"
    )
    value_clip_range: float | None = option(
        None, "Clip of the change of values within a batch, in the value loss (default: none).", "algorithm"
    )
    target_kl: float | None = option(
        None,
        "A batch is done with once the policy is 1.5 times this KL divergence from the one that acted (default: any).",
        "algorithm",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_range(COUNT, "epochs", "minibatches")
        self._require_range(POSITIVE.or_none(), "clip_range", "value_clip_range", "target_kl")
        self._require_range(FINITE_NOT_NEGATIVE.or_none(), "clip_range_final")
        steps = self.num_envs * self.unroll_length
        self._require("minibatches", self.minibatches <= steps, f"at most {steps}, the steps of a batch")
        self._require(
            "minibatches",
            self.core == "none" or self.minibatches <= self.num_envs,
            f"at most {self.num_envs}, the environments, with a recurrent core",
        )


@dataclass(frozen=True)
class A3CConfig(ActorCriticConfig):
    """Asynchronous advantage actor-critic; every worker's gradient is applied as it arrives."""

    algorithm: ClassVar[str] = "a3c"

    max_lag: int | None = option(
        None,
        "Most updates that a gradient's weights may be behind when it is sent; older ones are dropped (default: any).",
        "asynchronous",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_range(WHOLE.or_none(), "max_lag")
        self._require("allreduce", self.allreduce != "nccl", "auto or host under a3c, which sums none")
        self._require("device", self.device != "cuda", "cpu or auto under a3c, whose workers compute on CPUs")
        for name in ("normalise_observations", "normalise_returns"):
            self._require(name, not getattr(self, name), "false under a3c, whose workers share no statistics")
