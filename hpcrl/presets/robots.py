"""Presets for MuJoCo's robots, which need the extra `mujoco`."""

from __future__ import annotations

from hpcrl.config import PPOConfig
from hpcrl.presets.preset import Preset


def _ppo_robot(env: str) -> PPOConfig:
    """Values of Schulman et al. 2017, arXiv:1707.06347, table 3, with normalised observations and returns.

    2048 steps an update come from 8 environments side by side instead of one.
    """
    return PPOConfig(
        env=env,
        num_envs=8,
        unroll_length=256,
        total_env_steps=1_000_000,
        normalise_observations=True,
        normalise_returns=True,
        reward_clip=10.0,
        gamma=0.99,
        gae_lambda=0.95,
        epochs=10,
        minibatches=32,
        learning_rate=3e-4,
        learning_rate_final=0.0,
    )


def half_cheetah() -> PPOConfig:
    """HalfCheetah-v5 with the values of Schulman et al. 2017 (table 3), observations and returns normalised: 1,600 to
    3,200 after a million env steps and 6 min. Measured on one rank on one core with seeds 1 to 3, as the others here.
    """
    return _ppo_robot("HalfCheetah-v5")


def hopper() -> PPOConfig:
    """Hopper-v5 with the values of Schulman et al. 2017 (table 3), observations and returns normalised: 2,830 to 2,850
    after a million env steps and 6 to 8 min.
    """
    return _ppo_robot("Hopper-v5")


def walker() -> PPOConfig:
    """Walker2d-v5 with the values of Schulman et al. 2017 (table 3), observations and returns normalised: 3,100 to
    4,100 after a million env steps and 7 min.
    """
    return _ppo_robot("Walker2d-v5")


PRESETS = [Preset("half-cheetah", half_cheetah), Preset("hopper", hopper), Preset("walker", walker)]
