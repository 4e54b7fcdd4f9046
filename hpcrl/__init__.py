"""hpcrl: reinforcement learning over MPI, from a laptop to a cluster.

Importing it starts nothing: neither MPI nor torch is loaded before a trainer is made, or a policy loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hpcrl.config import A2CConfig, A3CConfig, AppoConfig, BCConfig, ImpalaConfig, PPOConfig, TrainConfig
from hpcrl.envs.registration import register_environments
from hpcrl.errors import HpcrlError

if TYPE_CHECKING:
    from hpcrl.trained_policy import TrainedPolicy, load_policy
    from hpcrl.trainer import Trainer

__version__ = "0.1.0"
__all__ = [
    "A2CConfig",
    "A3CConfig",
    "AppoConfig",
    "BCConfig",
    "HpcrlError",
    "ImpalaConfig",
    "PPOConfig",
    "TrainConfig",
    "TrainedPolicy",
    "Trainer",
    "__version__",
    "load_policy",
]

register_environments()


def __getattr__(name: str) -> Any:
    if name == "Trainer":
        from hpcrl.trainer import Trainer

        return Trainer
    if name in ("TrainedPolicy", "load_policy"):
        from hpcrl import trained_policy

        return getattr(trained_policy, name)
    raise AttributeError(f"module 'hpcrl' has no attribute {name!r}")
