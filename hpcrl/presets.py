"""Presets: configurations that are known to learn, by name; the command line overrides what they say."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from hpcrl.config import A2CConfig, A3CConfig, ImpalaConfig, TrainConfig
from hpcrl.errors import ConfigError


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


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    "first-light": first_light,
    "grid-navigation": grid_navigation,
    "a3c-grid-navigation": a3c_grid_navigation,
    "cartpole-throughput": cartpole_throughput,
}


def preset(name: str, algorithm: str) -> TrainConfig:
    """The preset called `name`; ConfigError where there is none or it is for another algorithm."""
    if name not in PRESETS:
        near = get_close_matches(name, PRESETS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(f"unknown preset {name!r}{hint}, expected one of: {', '.join(PRESETS)}")
    config = PRESETS[name]()
    if config.algorithm != algorithm:
        raise ConfigError(f"preset {name} is for {config.algorithm}, not for {algorithm}")
    return config
