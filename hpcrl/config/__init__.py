"""The configuration of a run: frozen dataclasses, checked when they are made, with a help text for every field."""

from __future__ import annotations

from hpcrl.config.actor_critic import A2CConfig, A3CConfig, ActorCriticConfig, PPOConfig
from hpcrl.config.as_json import from_facts, from_json, to_json
from hpcrl.config.fields import MAX_SEED, option
from hpcrl.config.offline import BCConfig
from hpcrl.config.registry import CONFIGS, config_class
from hpcrl.config.run_ahead import AppoConfig, ImpalaConfig
from hpcrl.config.train import TrainConfig

__all__ = [
    "CONFIGS",
    "MAX_SEED",
    "A2CConfig",
    "A3CConfig",
    "ActorCriticConfig",
    "AppoConfig",
    "BCConfig",
    "ImpalaConfig",
    "PPOConfig",
    "TrainConfig",
    "config_class",
    "from_facts",
    "from_json",
    "option",
    "to_json",
]
