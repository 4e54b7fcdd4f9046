"""Checkpoints of policies that were never trained, but act in ways worth comparing."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from hpcrl.config import TrainConfig, to_json
from hpcrl.envs.factory import describe_task
from hpcrl.envs.tasks import common_task
from hpcrl.envs.world import evaluation_worlds
from hpcrl.models.flat import FlatParameters
from hpcrl.models.policy import Policy
from hpcrl.roles.snapshot import weight_arrays
from hpcrl.storage.checkpoints import CheckpointStore


def save_untrained(run_dir: Path, config: TrainConfig, gain: float = 1.0, seed: int = 1) -> Path:
    """A run directory with one checkpoint, of first weights; those of the action head are times `gain`.

    Where observations are normalised, means and scales are far from 0 and 1.
    """
    task = common_task(config.env_ids, [describe_task(world) for world in evaluation_worlds(config)], config.task_id)
    policy = Policy(task, config)
    policy.initialise(seed)
    with torch.no_grad():
        policy.head.weight.mul_(gain)
        if policy.inputs.mean is not None and policy.inputs.scale is not None:
            generator = torch.Generator().manual_seed(seed)
            policy.inputs.mean.uniform_(-0.1, 0.1, generator=generator)
            policy.inputs.scale.uniform_(0.5, 3.0, generator=generator)
    attributes = {"config": json.dumps(to_json(config)), "env_steps": 1000 * seed, "learner_updates": seed}
    store = CheckpointStore(run_dir / "checkpoints")
    store.save(f"step_{seed}", weight_arrays(FlatParameters(policy)), attributes, score=-seed)
    return run_dir
