"""The configuration of a run: frozen dataclasses, checked when they are made, with a help text for every field."""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from hpcrl.errors import ConfigError

MAX_SEED = 2**63


def option(default: Any, help: str, group: str) -> Any:
    """A dataclass field that the command line shows in `group`."""
    return dataclasses.field(default=default, metadata={"help": help, "group": group})


@dataclass(frozen=True)
class TrainConfig:
    """What every algorithm shares: the run, its environment, layout, model and optimizer.

    Raises:
        ConfigError: a value outside its range, in one sentence.
    """

    algorithm: ClassVar[str] = ""

    env: str = option(
        "CartPole-v1",
        "Gymnasium environment id (or package.module:id, or package.module:function that makes one); several of "
        "them train one policy on all.",
        "environment",
    )
    task_id: bool = option(False, "Observations name their task, where there are several.", "environment")
    num_envs: int = option(16, "Environments in total, dealt out over all actors.", "environment")
    vector: Literal["sync", "native"] = option(
        "sync",
        "sync steps one environment after the other; native uses the environment's own vector form.",
        "environment",
    )

    isolated: bool = option(
        False, "Every environment in a process of its own, for those that may crash.", "environment"
    )
    env_restarts: int = option(
        0,
        "How often each rank makes environments anew that raised, hung or crashed, before that ends the run.",
        "environment",
    )
    env_timeout: float | None = option(
        None, "Seconds after which a step or reset counts as hung (default: any time).", "environment"
    )
    frame_stack: int = option(1, "Newest observations that the policy sees side by side.", "environment")
    reward_clip: float = option(
        0.0, "Rewards beyond this, either way, count as this for the loss (0: as they are).", "environment"
    )
    normalise_observations: bool = option(
        False, "Shift and scale observations by what all actors have seen so far.", "environment"
    )
    normalise_returns: bool = option(
        False, "Divide rewards by the standard deviation of discounted returns so far.", "environment"
    )

    frame_skip: int = option(4, "Frames that an action is held for.", "atari")
    sticky_actions: float = option(
        0.0, "Probability that a frame repeats the action before (0.25: Machado et al. 2018).", "atari"
    )
    full_action_set: bool = option(False, "All 18 actions instead of those that the game uses.", "atari")
    life_loss: bool = option(False, "A lost life ends the episode for the loss, though not its return.", "atari")
    noop_max: int = option(30, "Most frames without an action that an episode begins with.", "atari")
    fire_reset: bool = option(True, "An episode begins with FIRE in games that use it.", "atari")

    total_env_steps: int = option(500_000, "Environment steps to train for, over all actors.", "run")
    num_iterations: int = option(100, "Reports of equal length that the run is divided into.", "run")
    seed: int = option(1, "Seed of weights, environments and action noise.", "run")
    run_dir: Path | None = option(None, "Folder of the run (default: runs/ALGORITHM-ENV-seedS-TIME).", "run")
    resume: bool = option(
        False, "Go on from the newest good checkpoint of --run-dir (start where there is none).", "run"
    )
    stop_return: float | None = option(None, "Stop once rollout/return_last_100 reaches this.", "run")
    checkpoint_every: int = option(50_000, "Environment steps between checkpoints (0: only at the end).", "run")
    checkpoint_keep: int = option(2, "Newest checkpoints to keep beside the best.", "run")
    hang_timeout: float = option(300.0, "Seconds without a sign of life after which a rank counts as stuck.", "run")
    check_in_sync_every: int = option(
        100,
        "Updates between comparisons of the learners' weights (under a3c of all ranks', when they meet; 0: never).",
        "run",
    )
    tensorboard: bool = option(True, "Write TensorBoard events beside metrics.csv.", "run")
    episode_log: bool = option(True, "Write a row for every episode to episodes.csv.", "run")
    profile: bool = option(
        False, "Write what every rank did when to trace.json (the newest 100,000 spans a rank, 15 MB).", "run"
    )

    eval_every: int = option(0, "Environment steps between evaluations (0: none).", "evaluation")
    eval_episodes: int = option(20, "Episodes of an evaluation, of every task.", "evaluation")
    eval_at_start: bool = option(False, "Evaluate the untrained policy too.", "evaluation")
    eval_deterministic: bool = option(False, "Evaluate the most likely action instead of sampling.", "evaluation")

    ranks: int | None = option(None, "MPI ranks: started if there are none yet, else checked.", "layout")
    learners: Literal["auto"] | int = option("auto", "Learner ranks; auto: one per node that has actors too.", "layout")
    learner_ranks: Literal["spread", "first"] = option(
        "spread",
        "Which ranks learn. spread: over the nodes; first: the lowest, which are the first component of a "
        "heterogeneous job.",
        "layout",
    )
    placement: Literal["split", "colocated"] = option(
        "split", "split: a rank acts or learns; colocated: every rank does both.", "layout"
    )
    learner_cores: int = option(1, "Threads that a learner computes on.", "layout")
    pin_cores: Literal["auto", "on", "off"] = option(
        "auto",
        "Every rank keeps to cores of its own: learner_cores a learner, one an actor. auto: where srun gave the run "
        "CPUs that are nobody else's; on: everywhere.",
        "layout",
    )

    model: str = option(
        "auto",
        "Encoder of observations: mlp, nature, impala, impala-deep, or package.module:Class of one's own "
        "(auto: nature for images, mlp else).",
        "model",
    )
    hidden_sizes: tuple[int, ...] = option((64, 64), "Widths of the hidden layers over vectors.", "model")
    activation: Literal["tanh", "relu"] = option("tanh", "Activation of the hidden layers.", "model")
    core: Literal["none", "lstm", "gru"] = option("none", "Recurrent core behind the encoder.", "model")
    core_size: int = option(256, "Width of the recurrent core.", "model")
    precision: Literal["float32", "bfloat16"] = option(
        "float32",
        "What networks over images compute in; bfloat16 is faster where processors multiply it (weights stay float32).",
        "model",
    )
    shared_encoder: bool = option(
        False, "Policy and value share their encoder, as they always do with images or a recurrent core.", "model"
    )

    optimizer: Literal["adam", "rmsprop"] = option("rmsprop", "Optimizer.", "optimizer")
    learning_rate: float = option(5e-3, "Learning rate at the start.", "optimizer")
    learning_rate_final: float = option(0.0, "Learning rate at total_env_steps, reached linearly.", "optimizer")
    optimizer_epsilon: float = option(1e-5, "Epsilon in the optimizer's denominator.", "optimizer")
    rmsprop_decay: float = option(0.99, "RMSProp: decay of the mean square.", "optimizer")
    rmsprop_epsilon_inside: bool = option(
        True, "RMSProp: epsilon inside the square root, as in the papers (outside: as in PyTorch).", "optimizer"
    )
    rmsprop_initial_square: float = option(0.0, "RMSProp: first mean square (TensorFlow starts at 1).", "optimizer")
    max_grad_norm: float = option(0.5, "Clip of the global gradient norm, after the allreduce (0: none).", "optimizer")

    def __post_init__(self) -> None:
        for name in (
            "num_envs",
            "total_env_steps",
            "num_iterations",
            "eval_episodes",
            "learner_cores",
            "frame_stack",
            "core_size",
        ):
            self._require(name, getattr(self, name) >= 1, "a whole number of at least 1")
        for name in ("checkpoint_every", "check_in_sync_every", "eval_every", "max_grad_norm"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        for name in ("learning_rate", "hang_timeout"):
            self._require(name, 0 < getattr(self, name) < math.inf, "a finite number above 0")
        for name in ("learning_rate_final", "optimizer_epsilon", "rmsprop_initial_square", "reward_clip"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "a finite number of 0 or more")
        self._require("env_restarts", self.env_restarts >= 0, "0 or more")
        self._require(
            "env_timeout", self.env_timeout is None or 0 < self.env_timeout < math.inf, "a finite number above 0"
        )
        self._require("isolated", not (self.isolated and self.vector == "native"), "false with --vector native")
        self._require("frame_skip", 1 <= self.frame_skip <= 60, "1 to 60")
        self._require("sticky_actions", 0 <= self.sticky_actions < 1, "at least 0 and below 1")
        self._require("noop_max", 0 <= self.noop_max <= 10_000, "0 to 10000")
        self._require("rmsprop_decay", 0 <= self.rmsprop_decay < 1, "at least 0 and below 1")
        self._require("seed", 0 <= self.seed < MAX_SEED, "at least 0 and below 2**63")
        self._require("checkpoint_keep", self.checkpoint_keep >= 2, "at least 2")
        self._require("ranks", self.ranks is None or self.ranks >= 1, "a whole number of at least 1")
        self._require("learners", self.learners == "auto" or self.learners >= 1, "auto or a whole number of at least 1")
        self._require("hidden_sizes", all(width >= 1 for width in self.hidden_sizes), "widths of at least 1")
        self._require("stop_return", self.stop_return is None or math.isfinite(self.stop_return), "a finite number")
        self._require("env", bool(self.env_ids), "an environment id")
        self._require_tasks(self.env_ids)

    def _require_tasks(self, env_ids: list[str]) -> None:
        """What several environments need; `env_ids` has one at least."""
        num_tasks = len(env_ids)
        self._require("env", len(set(env_ids)) == num_tasks, "different environments")
        self._require(
            "num_envs", self.num_envs >= num_tasks, f"at least {num_tasks}, one for each environment of --env"
        )
        self._require("task_id", not self.task_id or num_tasks > 1, "false with one environment alone")
        self._require("task_id", not self.task_id or self.frame_stack == 1, "false with --frame-stack above 1")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} must be {expected}, got {getattr(self, name)!r}")

    @property
    def env_ids(self) -> list[str]:
        """The environments, one for each task."""
        return self.env.split()

    @property
    def iteration_env_steps(self) -> float:
        """Environment steps of one iteration."""
        return self.total_env_steps / self.num_iterations


@dataclass(frozen=True)
class ActorCriticConfig(TrainConfig):
    """What all actor-critics share: unrolls, returns and the parts of the loss."""

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
        self._require("unroll_length", self.unroll_length >= 1, "a whole number of at least 1")
        for name in ("gamma", "gae_lambda"):
            self._require(name, 0 <= getattr(self, name) <= 1, "between 0 and 1")
        for name in ("entropy_coef", "value_coef", "entropy_coef_final"):
            value = getattr(self, name)
            self._require(name, value is None or 0 <= value < math.inf, "a finite number of 0 or more")

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
        for name in ("epochs", "minibatches"):
            self._require(name, getattr(self, name) >= 1, "a whole number of at least 1")
        for name in ("clip_range", "value_clip_range", "target_kl"):
            value = getattr(self, name)
            self._require(name, value is None or 0 < value < math.inf, "a finite number above 0")
        final = self.clip_range_final
        self._require("clip_range_final", final is None or 0 <= final < math.inf, "a finite number of 0 or more")
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
        self._require("max_lag", self.max_lag is None or self.max_lag >= 0, "a whole number of 0 or more")
        for name in ("normalise_observations", "normalise_returns"):
            self._require(name, not getattr(self, name), "false under a3c, whose workers share no statistics")


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
    rho_bar: float = option(1.0, "V-trace: clip of the ratios in the value targets.", "algorithm")
    c_bar: float = option(1.0, "V-trace: clip of the ratios in the trace.", "algorithm")
    pg_rho_bar: float = option(1.0, "V-trace: clip of the ratios in the policy gradient.", "algorithm")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_envs", "replay_epochs"):
            self._require(name, getattr(self, name) >= 1, "a whole number of at least 1")
        self._require("behaviour_epsilon", 0 <= self.behaviour_epsilon <= 1, "between 0 and 1")
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

        central_minibatches = self.inference == "learner" and self.in_lockstep and self.num_envs > self.batch_envs
        self._require(
            "schedule",
            not central_minibatches,
            f"run-ahead with --inference learner where a round of {self.num_envs} environments makes several updates",
        )

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
        self._require("clip_range", 0 < self.clip_range < math.inf, "a finite number above 0")


CONFIGS: dict[str, type[TrainConfig]] = {
    "a2c": A2CConfig,
    "ppo": PPOConfig,
    "a3c": A3CConfig,
    "impala": ImpalaConfig,
    "appo": AppoConfig,
}


def config_class(algorithm: str) -> type[TrainConfig]:
    """The configuration class of an algorithm; ConfigError for an unknown name."""
    if algorithm not in CONFIGS:
        raise ConfigError(f"unknown algorithm {algorithm!r}, expected one of: {', '.join(CONFIGS)}")
    return CONFIGS[algorithm]


def to_json(config: TrainConfig) -> dict[str, Any]:
    """The configuration as JSON data, with its algorithm."""
    data: dict[str, Any] = {"algorithm": config.algorithm}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        data[field.name] = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
    return data


def from_json(data: object) -> TrainConfig:
    """The configuration that `to_json` wrote; ConfigError for an unknown field or a value of another type."""
    if not isinstance(data, dict):
        raise ConfigError(f"a configuration must be a JSON object, got {type(data).__name__}")
    cls = config_class(str(data.get("algorithm")))
    kinds = typing.get_type_hints(cls)
    fields = {field.name for field in dataclasses.fields(cls)}
    values = {name: value for name, value in data.items() if name != "algorithm"}
    if unknown := sorted(set(values) - fields):
        raise ConfigError(f"the configuration has unknown fields: {', '.join(unknown)}")
    return cls(**{name: _decode(name, kinds[name], value) for name, value in values.items()})


def from_facts(facts: dict[str, Any]) -> TrainConfig:
    """The configuration in what a run directory's `config.json` holds."""
    return from_json(facts.get("config"))


def _decode(name: str, kind: Any, value: Any) -> Any:
    """`value` as the type that the field's annotation names."""
    if typing.get_origin(kind) is tuple:
        if isinstance(value, list) and all(type(item) is int for item in value):
            return tuple(value)
        raise ConfigError(f"field {name} of the configuration must be a list of whole numbers, got {value!r}")
    choices = typing.get_args(kind) or (kind,)
    for choice in choices:
        if typing.get_origin(choice) is Literal and value in typing.get_args(choice):
            return value
        if choice is type(None) and value is None:
            return None
        if choice is Path and isinstance(value, str):
            return Path(value)
        if choice is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if choice in (bool, int, str) and type(value) is choice:
            return value
    if typing.get_origin(kind) is Literal and value in choices:
        return value
    raise ConfigError(f"field {name} of the configuration has an unexpected value {value!r}")
