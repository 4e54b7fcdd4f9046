"""Whether the policy that a configuration asks for fits its task and its world."""

from __future__ import annotations

import dataclasses

from hpcrl.algorithms.registry import loss_of
from hpcrl.config import ActorCriticConfig, BCConfig, ImpalaConfig
from hpcrl.envs.atari import is_atari
from hpcrl.errors import ConfigError
from hpcrl.models.heads import check_mask
from hpcrl.models.policy import Policy
from hpcrl.spaces import ACTION_MASK, Task


def require_playable(config: ActorCriticConfig, task: Task, num_ranks: int) -> None:
    """ConfigError where the policy, the loss or the options of run-ahead algorithms don't fit the task or the world."""
    policy = Policy(task, config)
    head = policy.head
    loss_of(config)
    _require_use(config, policy)
    if isinstance(config, BCConfig) and config.source is None:
        raise ConfigError("bc needs --from-trajectories RUN_DIR, the directory of a run that recorded its trajectories")
    mask = dict(task.observation.leaves).get(ACTION_MASK)
    if mask is not None:
        check_mask(task.action, mask)
    if not isinstance(config, ImpalaConfig):
        return
    if config.behaviour_epsilon and not head.can_explore:
        raise ConfigError(f"--behaviour-epsilon needs discrete actions, {config.env} has a {task.action.kind} space")
    if config.inference == "learner" and (num_ranks == 1 or config.placement == "colocated"):
        raise ConfigError(
            "--inference learner needs actors on ranks of their own: --ranks of at least 2 and --placement split"
        )


def _require_use(config: ActorCriticConfig, policy: Policy) -> None:
    """ConfigError for an option that would do nothing in this world."""
    if config.precision != "float32" and not policy.inputs.images:
        raise ConfigError(f"--precision {config.precision} is for networks over images, {config.env} shows none")
    games = [env_id for env_id in config.env_ids if is_atari(env_id)]
    if games and config.vector == "native":
        raise ConfigError(f"--vector native: {games[0]} has no other form than --vector sync")
    for field in dataclasses.fields(config):
        if not games and field.metadata["group"] == "atari" and getattr(config, field.name) != field.default:
            raise ConfigError(f"--{field.name.replace('_', '-')} is for games of Atari, {config.env} is none")
