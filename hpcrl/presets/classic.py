"""Presets for classic control, the grid and LunarLander."""

from __future__ import annotations

from typing import Any

from hpcrl.config import A2CConfig, A3CConfig, ImpalaConfig, PPOConfig
from hpcrl.presets.preset import Preset


def first_light() -> A2CConfig:
    """CartPole-v0 (episodes end after 200 steps) in 10 iterations, from an untrained policy to nearly 200."""
    return A2CConfig(
        env="CartPole-v0",
        num_envs=16,
        total_env_steps=150_000,
        num_iterations=10,
        eval_at_start=True,
        eval_episodes=20,
        checkpoint_every=15_000,
    )


#: What both presets for GridNavigation-v0 say; they differ in the algorithm alone.
_GRID_NAVIGATION: dict[str, Any] = {
    "env": "GridNavigation-v0",
    "num_envs": 32,
    "unroll_length": 16,
    "total_env_steps": 60_000,
    "num_iterations": 10,
    "gamma": 0.95,
    "gae_lambda": 0.95,
    "entropy_coef": 0.02,
    "entropy_coef_final": 0.0,
    "optimizer": "adam",
    "optimizer_epsilon": 1e-8,
    "learning_rate": 5e-3,
}


def grid_navigation() -> A2CConfig:
    """GridNavigation-v0: the shortest way to the goal from every cell of an 8 x 8 grid."""
    return A2CConfig(**_GRID_NAVIGATION)


def a3c_grid_navigation() -> A3CConfig:
    """GridNavigation-v0 with asynchronous gradients: the shortest way from every cell, too."""
    return A3CConfig(**_GRID_NAVIGATION)


def cartpole_throughput() -> ImpalaConfig:
    """CartPole-v1 at the speed of the cores: 1024 environments in numpy, unrolls of 32 steps in batches of 512."""
    return ImpalaConfig(
        env="CartPole-v1",
        vector="native",
        num_envs=1024,
        total_env_steps=20_000_000,
        num_iterations=40,
        batch_envs=512,
        shared_encoder=True,
        checkpoint_every=5_000_000,
        episode_log=False,
    )


def a2c_cartpole() -> A2CConfig:
    """CartPole-v1 with a2c's defaults, which were chosen for it: 475 after 140,000 to 160,000 env steps and 2 s.

    Measured on one rank with seeds 1 to 3, as all that follow here.
    """
    return A2CConfig(env="CartPole-v1", total_env_steps=1_000_000)


def a3c_cartpole() -> A3CConfig:
    """CartPole-v1 with a3c's defaults, which were chosen for it: 475 after 140,000 to 160,000 env steps and 2 s."""
    return A3CConfig(env="CartPole-v1", total_env_steps=1_000_000)


def impala_cartpole() -> ImpalaConfig:
    """CartPole-v1 with impala's defaults, which were chosen for it: 475 after 220,000 to 281,000 env steps and 3 s."""
    return ImpalaConfig(env="CartPole-v1", total_env_steps=2_000_000)


def ppo_cartpole() -> PPOConfig:
    """CartPole-v1 with the values of RL Baselines3 Zoo (ppo.yml), but for a constant clip range: 475 after 69,000 to
    72,000 env steps and 8 s.
    """
    return PPOConfig(
        env="CartPole-v1",
        num_envs=8,
        unroll_length=32,
        total_env_steps=300_000,
        gamma=0.98,
        gae_lambda=0.8,
        epochs=20,
        minibatches=1,
        learning_rate=1e-3,
    )


#: What all presets for Acrobot-v1 share but for ppo's.
_ACROBOT: dict[str, Any] = {
    "env": "Acrobot-v1",
    "num_envs": 32,
    "unroll_length": 16,
    "total_env_steps": 1_000_000,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "entropy_coef": 0.01,
    "learning_rate": 2e-3,
}


def a2c_acrobot() -> A2CConfig:
    """Acrobot-v1; the values were found by trying: -100 after 160,000 to 200,000 env steps and 5 to 7 s."""
    return A2CConfig(**_ACROBOT)


def a3c_acrobot() -> A3CConfig:
    """Acrobot-v1; the values were found by trying: -100 after 160,000 to 200,000 env steps and 5 to 7 s."""
    return A3CConfig(**_ACROBOT)


def impala_acrobot() -> ImpalaConfig:
    """Acrobot-v1; the values were found by trying: -100 after 140,000 to 210,000 env steps and 5 to 7 s."""
    return ImpalaConfig(**_ACROBOT)


def ppo_acrobot() -> PPOConfig:
    """Acrobot-v1 with the values of RL Baselines3 Zoo (ppo.yml): -100 after 82,000 to 90,000 env steps and 8 s."""
    return PPOConfig(
        env="Acrobot-v1",
        num_envs=16,
        unroll_length=256,
        total_env_steps=1_000_000,
        normalise_observations=True,
        normalise_returns=True,
        reward_clip=10.0,
        gamma=0.99,
        gae_lambda=0.94,
        epochs=4,
        minibatches=64,
        learning_rate=3e-4,
        learning_rate_final=3e-4,
    )


def ppo_pendulum() -> PPOConfig:
    """Pendulum-v1 with the values of RL Baselines3 Zoo (ppo.yml), but for normal noise instead of gSDE: -250 after
    66,000 to 74,000 env steps and 13 s.
    """
    return PPOConfig(
        env="Pendulum-v1",
        num_envs=4,
        unroll_length=1024,
        total_env_steps=500_000,
        gamma=0.9,
        gae_lambda=0.95,
        epochs=10,
        minibatches=64,
        learning_rate=1e-3,
        learning_rate_final=1e-3,
    )


def ppo_lunar_lander() -> PPOConfig:
    """LunarLander-v3 (extra `box2d`) with the values of RL Baselines3 Zoo (ppo.yml): 200 after 0.8 to 1.2 M env steps.

    That took 73 to 112 s.
    """
    return PPOConfig(
        env="LunarLander-v3",
        num_envs=16,
        unroll_length=1024,
        total_env_steps=1_500_000,
        gamma=0.999,
        gae_lambda=0.98,
        entropy_coef=0.01,
        epochs=4,
        minibatches=256,
        learning_rate=3e-4,
        learning_rate_final=3e-4,
    )


PRESETS = [
    Preset("first-light", first_light),
    Preset("grid-navigation", grid_navigation),
    Preset("a3c-grid-navigation", a3c_grid_navigation),
    Preset("cartpole-throughput", cartpole_throughput, 475.0),
    Preset("cartpole", a2c_cartpole, 475.0),
    Preset("cartpole", ppo_cartpole, 475.0),
    Preset("cartpole", impala_cartpole, 475.0),
    Preset("cartpole", a3c_cartpole, 475.0),
    Preset("acrobot", a2c_acrobot, -100.0),
    Preset("acrobot", ppo_acrobot, -100.0),
    Preset("acrobot", impala_acrobot, -100.0),
    Preset("acrobot", a3c_acrobot, -100.0),
    Preset("pendulum", ppo_pendulum, -250.0),
    Preset("lunar-lander", ppo_lunar_lander, 200.0),
]
