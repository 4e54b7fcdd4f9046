"""All configurations by the name of their algorithm."""

from __future__ import annotations

from hpcrl.config.actor_critic import A2CConfig, A3CConfig, PPOConfig
from hpcrl.config.nearest import did_you_mean
from hpcrl.config.offline import BCConfig
from hpcrl.config.run_ahead import AppoConfig, ImpalaConfig
from hpcrl.config.train import TrainConfig
from hpcrl.errors import ConfigError

CONFIGS: dict[str, type[TrainConfig]] = {
    "a2c": A2CConfig,
    "ppo": PPOConfig,
    "a3c": A3CConfig,
    "impala": ImpalaConfig,
    "appo": AppoConfig,
    "bc": BCConfig,
}


def config_class(algorithm: str) -> type[TrainConfig]:
    """The configuration class of an algorithm; ConfigError for an unknown name."""
    if algorithm not in CONFIGS:
        hint = did_you_mean(algorithm, CONFIGS)
        raise ConfigError(f"unknown algorithm {algorithm!r}{hint}, expected one of: {', '.join(CONFIGS)}")
    return CONFIGS[algorithm]
