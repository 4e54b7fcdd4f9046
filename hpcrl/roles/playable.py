"""Whether the policy that a configuration asks for fits its task and its world."""

from __future__ import annotations

from hpcrl.config import ActorCriticConfig, ImpalaConfig
from hpcrl.errors import ConfigError
from hpcrl.models.heads import check_mask
from hpcrl.models.policy import Policy
from hpcrl.spaces import ACTION_MASK, Task


def require_playable(config: ActorCriticConfig, task: Task, num_ranks: int) -> None:
    """ConfigError where the policy, or the options of run-ahead algorithms, don't fit the task or the world."""
    head = Policy(task, config).head
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
