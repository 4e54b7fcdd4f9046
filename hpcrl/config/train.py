"""The configuration that all algorithms share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from hpcrl.config.fields import (
    COUNT,
    FINITE_NOT_NEGATIVE,
    MAX_SEED,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE_BELOW_1,
    Range,
    option,
)
from hpcrl.errors import ConfigError


@dataclass(frozen=True)
class TrainConfig:
    """What every algorithm shares: the run, its environment, layout, model and optimizer.

    Raises:
        ConfigError: a value outside its range, in one sentence.
    """

    algorithm: ClassVar[str] = ""

    # Environment

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

    # Atari

    frame_skip: int = option(4, "Frames that an action is held for.", "atari")
    sticky_actions: float = option(
        0.0, "Probability that a frame repeats the action before (0.25: Machado et al. 2018).", "atari"
    )
    full_action_set: bool = option(False, "All 18 actions instead of those that the game uses.", "atari")
    life_loss: bool = option(False, "A lost life ends the episode for the loss, though not its return.", "atari")
    noop_max: int = option(30, "Most frames without an action that an episode begins with.", "atari")
    fire_reset: bool = option(True, "An episode begins with FIRE in games that use it.", "atari")

    # Run

    total_env_steps: int = option(500_000, "Environment steps to train for, over all actors.", "run")
    num_iterations: int = option(100, "Reports of equal length that the run is divided into.", "run")
    seed: int = option(1, "Seed of weights, environments and action noise.", "run")
    run_dir: Path | None = option(None, "Folder of the run (default: runs/ALGORITHM-ENV-seedS-TIME).", "run")
    resume: bool = option(
        False, "Go on from the newest good checkpoint of --run-dir (start where there is none).", "run"
    )
    stop_return: float | None = option(None, "Stop once rollout/return_last_100 reaches this.", "run")
    checkpoint_every: int = option(50_000, "Environment steps between checkpoints (0: only at the end).", "run")
    checkpoint_keep: int = option(2, "Newest checkpoints to keep beside the best and the milestones.", "run")
    checkpoint_milestones: int = option(
        0, "Environment steps between checkpoints that are kept for ever, whatever the others (0: none).", "run"
    )
    checkpoint_local: Path | None = option(
        None,
        "Folder of the node where checkpoints are written before they are copied to the run in one stream: for shared "
        "file systems that are slow at small pieces. '$TMPDIR', in quotes, is looked up on the node.",
        "run",
    )
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

    # Trajectories

    record_trajectories: bool = option(
        False, "Write what is acted to trajectories/ of the run directory, in HDF5.", "trajectories"
    )
    record_evaluation: bool = option(False, "Write the episodes of evaluations there too.", "trajectories")
    record_fraction: float = option(
        1.0, "Share of the environments whose episodes are recorded, spread evenly.", "trajectories"
    )
    record_compression: Literal["gzip", "zstd", "none"] = option(
        "gzip", "How: gzip opens everywhere; zstd is faster and smaller (pip install 'hpcrl[zstd]').", "trajectories"
    )
    record_shard_mb: int = option(256, "Megabytes after which an actor begins another file.", "trajectories")

    # Evaluation

    eval_every: int = option(0, "Environment steps between evaluations (0: none).", "evaluation")
    eval_episodes: int = option(20, "Episodes of an evaluation, of every task.", "evaluation")
    eval_at_start: bool = option(False, "Evaluate the untrained policy too.", "evaluation")
    eval_deterministic: bool = option(False, "Evaluate the most likely action instead of sampling.", "evaluation")

    # Layout

    ranks: int | None = option(None, "MPI ranks: started if there are none yet, else checked.", "layout")
    learners: Literal["auto"] | int = option(
        "auto",
        "Learner ranks; auto: one for every GPU of a node, or one per node that has actors too.",
        "layout",
    )
    device: Literal["auto", "cpu", "cuda"] = option(
        "cpu",
        "What learners compute on. auto: a GPU each, where they see one and the policy has 100,000 weights or more.",
        "layout",
    )
    allreduce: Literal["auto", "host", "nccl"] = option(
        "auto",
        "How learners sum their gradients. host: through MPI in host memory; nccl: between GPUs, of which each learner "
        "needs its own; auto: nccl where it can be and passes its test, else host.",
        "layout",
    )
    compile: Literal["none", "kernels", "graphs"] = option(
        "none",
        "How GPUs compute updates. none: operation by operation; kernels: compiled by torch, which takes a minute or "
        "so at first; graphs: these, started together as CUDA graphs.",
        "layout",
    )
    share_gpus: bool = option(False, "Learners share GPUs where there are fewer.", "layout")
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

    # Model

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

    # Optimizer

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

    # Checks

    def __post_init__(self) -> None:
        self._check_environment()
        self._check_tasks()
        self._check_atari()
        self._check_run()
        self._check_trajectories()
        self._check_evaluation()
        self._check_layout()
        self._check_device()
        self._check_model()
        self._check_optimizer()

    def _check_environment(self) -> None:
        self._require_range(COUNT, "num_envs", "frame_stack")
        self._require_range(FINITE_NOT_NEGATIVE, "reward_clip")
        self._require_range(NOT_NEGATIVE, "env_restarts")
        self._require_range(POSITIVE.or_none(), "env_timeout")
        self._require("isolated", not (self.isolated and self.vector == "native"), "false with --vector native")
        self._require("env", bool(self.env_ids), "an environment id")

    def _check_tasks(self) -> None:
        """What several environments need."""
        num_tasks = len(self.env_ids)
        self._require("env", len(set(self.env_ids)) == num_tasks, "different environments")
        self._require(
            "num_envs", self.num_envs >= num_tasks, f"at least {num_tasks}, one for each environment of --env"
        )
        self._require("task_id", not self.task_id or num_tasks > 1, "false with one environment alone")
        self._require("task_id", not self.task_id or self.frame_stack == 1, "false with --frame-stack above 1")

    def _check_atari(self) -> None:
        self._require("frame_skip", 1 <= self.frame_skip <= 60, "1 to 60")
        self._require_range(SHARE_BELOW_1, "sticky_actions")
        self._require("noop_max", 0 <= self.noop_max <= 10_000, "0 to 10000")

    def _check_run(self) -> None:
        self._require_range(COUNT, "total_env_steps", "num_iterations")
        self._require_range(NOT_NEGATIVE, "checkpoint_every", "checkpoint_milestones", "check_in_sync_every")
        self._require_range(POSITIVE, "hang_timeout")
        self._require("seed", 0 <= self.seed < MAX_SEED, "at least 0 and below 2**63")
        self._require("checkpoint_keep", self.checkpoint_keep >= 2, "at least 2")
        self._require("stop_return", self.stop_return is None or math.isfinite(self.stop_return), "a finite number")

    def _check_trajectories(self) -> None:
        self._require("record_fraction", 0 < self.record_fraction <= 1, "above 0 and at most 1")
        records = self.record_trajectories or self.record_evaluation
        for name, default in (("record_fraction", 1.0), ("record_compression", "gzip"), ("record_shard_mb", 256)):
            self._require(name, records or getattr(self, name) == default, f"{default} where nothing is recorded")
        self._require(
            "record_fraction",
            not self.record_trajectories or int(self.num_envs * self.record_fraction) > 0,
            "large enough to hold one of the --num-envs environments",
        )
        self._require_range(COUNT, "record_shard_mb")
        evaluates = self.eval_every > 0 or self.eval_at_start
        self._require("record_evaluation", not self.record_evaluation or evaluates, "false without --eval-every")

    def _check_evaluation(self) -> None:
        self._require_range(NOT_NEGATIVE, "eval_every")
        self._require_range(COUNT, "eval_episodes")

    def _check_layout(self) -> None:
        self._require_range(COUNT, "learner_cores")
        self._require_range(COUNT.or_none(), "ranks")
        self._require("learners", self.learners == "auto" or self.learners >= 1, "auto or a whole number of at least 1")

    def _check_device(self) -> None:
        self._require("share_gpus", not (self.share_gpus and self.device == "cpu"), "false with --device cpu")
        self._require("allreduce", self.allreduce != "nccl" or self.device != "cpu", "auto or host with --device cpu")
        self._require("compile", self.compile == "none" or self.device != "cpu", "none with --device cpu")

    def _check_model(self) -> None:
        self._require_range(COUNT, "core_size")
        self._require("hidden_sizes", all(width >= 1 for width in self.hidden_sizes), "widths of at least 1")

    def _check_optimizer(self) -> None:
        self._require_range(POSITIVE, "learning_rate")
        self._require_range(FINITE_NOT_NEGATIVE, "learning_rate_final", "optimizer_epsilon", "rmsprop_initial_square")
        self._require_range(SHARE_BELOW_1, "rmsprop_decay")
        self._require_range(NOT_NEGATIVE, "max_grad_norm")

    def _require_range(self, allowed: Range, *names: str) -> None:
        for name in names:
            self._require(name, allowed.holds(getattr(self, name)), allowed.expected)

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
