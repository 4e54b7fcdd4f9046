"""A policy as a checkpoint holds it, ready to act; knows no MPI."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from hpcrl.config import TrainConfig, from_json
from hpcrl.envs.factory import describe_task
from hpcrl.envs.tasks import common_task
from hpcrl.envs.world import World, evaluation_worlds
from hpcrl.errors import CheckpointError, ConfigError
from hpcrl.models.flat import FlatParameters
from hpcrl.models.policy import Policy
from hpcrl.roles.snapshot import load_weights
from hpcrl.spaces import Task
from hpcrl.storage.checkpoints import Checkpoint, require_matching


@dataclass(frozen=True, eq=False)
class Loaded:
    """A policy and what it plays.

    Attributes:
        path: of the checkpoint.
        config: of the run.
        env_steps, learner_updates: of the run when the checkpoint was made.
        worlds: one for each task of the run.
        task: what all of them have in common.
        policy: acts with the checkpoint's weights and scales of observations.
    """

    path: Path
    config: TrainConfig
    env_steps: int
    learner_updates: int
    worlds: list[World]
    task: Task
    policy: Policy


def load(checkpoint: Checkpoint) -> Loaded:
    """The policy of a checkpoint; every environment of the run is made once, to learn what it observes. Local.

    Raises:
        CheckpointError: it holds no configuration, or the weights of another model.
        ConfigError: an environment that can't be made.
    """
    config = checkpoint_config(checkpoint)
    worlds = evaluation_worlds(config)
    task = common_task(config.env_ids, [describe_task(world) for world in worlds], config.task_id)
    policy = Policy(task, config)
    require_policy(checkpoint, policy)
    load_weights(FlatParameters(policy), checkpoint.arrays)
    env_steps, updates = (int(checkpoint.attributes[name]) for name in ("env_steps", "learner_updates"))
    return Loaded(checkpoint.path, config, env_steps, updates, worlds, task, policy)


def checkpoint_config(checkpoint: Checkpoint) -> TrainConfig:
    """The configuration that a checkpoint was made with; CheckpointError where it holds none."""
    try:
        return from_json(json.loads(str(checkpoint.attributes.get("config"))))
    except (ValueError, ConfigError) as error:
        raise CheckpointError(f"{checkpoint.path} holds no configuration that can be read: {error}") from error


def require_policy(checkpoint: Checkpoint, policy: Policy) -> None:
    """CheckpointError where the weights are of another model."""
    expected = {name: (tuple(value.shape), "float32") for name, value in policy.named_parameters()}
    require_matching(checkpoint, "weights", expected)
