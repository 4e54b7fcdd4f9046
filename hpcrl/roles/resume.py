"""Checkpoints and runs: whether one fits the other, and what a resumed run says of itself."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from typing import Any

from hpcrl.config import TrainConfig
from hpcrl.envs.restore import Restored
from hpcrl.errors import CheckpointError
from hpcrl.models.policy import Policy
from hpcrl.roles.loading import checkpoint_config, require_policy
from hpcrl.roles.recorder import FORMAT_VERSION, changes_since
from hpcrl.roles.snapshot import load_weights
from hpcrl.roles.station import Station
from hpcrl.spaces import Task
from hpcrl.storage.checkpoints import Checkpoint
from hpcrl.storage.run_directory import RunDirectory

#: Fields whose change would make another run of it.
_FIXED = ("algorithm", "env", "num_envs", "seed", "vector", "optimizer")


def require_fit(checkpoint: Checkpoint, config: TrainConfig, task: Task) -> None:
    """CheckpointError where the checkpoint is of another format, run or model."""
    version = checkpoint.attributes.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{checkpoint.path} has format version {version}, expected {FORMAT_VERSION}")
    before = checkpoint_config(checkpoint)
    for name in _FIXED:
        old, new = getattr(before, name), getattr(config, name)
        if old != new:
            raise CheckpointError(f"{checkpoint.path} was made with {name} {old!r}, expected {new!r}")
    require_policy(checkpoint, Policy(task, config))


def load_into(station: Station, checkpoint: Checkpoint) -> None:
    """Put weights, optimizer and counters where the checkpoint stands. Local."""
    load_weights(station.flat, checkpoint.arrays)
    env_steps, updates = (int(checkpoint.attributes[name]) for name in ("env_steps", "learner_updates"))
    station.restore(checkpoint.arrays, env_steps, updates, checkpoint.group("progress/updates"))


def record_resume(
    directory: RunDirectory, facts: dict[str, Any], checkpoint: Checkpoint | None, restored: Restored
) -> None:
    """Write `config.json` from a run's facts; warn of what keeps a resume from being bit for bit. Local, on rank 0."""
    facts["resumes"] = []
    if checkpoint is not None:
        if directory.config_file.exists():
            before = directory.read_config()
            facts["resumes"] = before.get("resumes", [])
            if changed := changes_since(before, facts):
                _warn(f"resumed where {', '.join(changed)} differ: not bit for bit what an uninterrupted run gives")
        facts["resumes"].append({"env_steps": checkpoint.attributes["env_steps"], **asdict(restored)})
        if restored.begun_anew:
            _warn(f"{restored.begun_anew} environments could not be restored and begin new episodes")
    directory.write_config(facts)


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=3)
