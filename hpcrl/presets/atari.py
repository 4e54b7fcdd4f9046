"""Presets for games of Atari, which need the extra `atari`: raw scores as returns, rewards clipped for the loss."""

from __future__ import annotations

from hpcrl.config import ImpalaConfig, PPOConfig
from hpcrl.presets.preset import Preset


def _impala(env: str) -> ImpalaConfig:
    """Values of Espeholt et al. 2018, arXiv:1802.01561, appendix G (Atari, a single game).

    Frames of 4, no sticky actions, all 18 actions, a lost life ends an episode for the loss, up to 30 frames without an
    action at the start, no FIRE at the start.
    """
    return ImpalaConfig(
        env=env,
        frame_stack=4,
        frame_skip=4,
        sticky_actions=0.0,
        full_action_set=True,
        life_loss=True,
        noop_max=30,
        fire_reset=False,
        reward_clip=1.0,
        model="impala",
        num_envs=32,
        unroll_length=20,
        batch_envs=32,
        total_env_steps=50_000_000,
        num_iterations=500,
        checkpoint_every=1_000_000,
        gamma=0.99,
        gae_lambda=1.0,
        entropy_coef=0.01,
        value_coef=0.5,
        loss_reduction="sum",
        optimizer="rmsprop",
        learning_rate=6e-4,
        learning_rate_final=0.0,
        rmsprop_decay=0.99,
        optimizer_epsilon=0.01,
        rmsprop_epsilon_inside=True,
        rmsprop_initial_square=1.0,
        max_grad_norm=40.0,
    )


def _ppo(env: str) -> PPOConfig:
    """Values of Schulman et al. 2017, arXiv:1707.06347, table 5, and of its code where the paper is silent.

    Frames of 4, no sticky actions, the actions that the game uses, a lost life ends an episode for the loss, up to 30
    frames without an action and then FIRE at the start; 4 epochs as in the code (3 in the paper).
    """
    return PPOConfig(
        env=env,
        frame_stack=4,
        frame_skip=4,
        sticky_actions=0.0,
        full_action_set=False,
        life_loss=True,
        noop_max=30,
        fire_reset=True,
        reward_clip=1.0,
        model="nature",
        num_envs=8,
        unroll_length=128,
        total_env_steps=10_000_000,
        num_iterations=500,
        checkpoint_every=500_000,
        gamma=0.99,
        gae_lambda=0.95,
        epochs=4,
        minibatches=4,
        clip_range=0.1,
        clip_range_final=0.0,
        value_coef=0.5,
        entropy_coef=0.01,
        learning_rate=2.5e-4,
        learning_rate_final=0.0,
    )


def impala_pong() -> ImpalaConfig:
    """ALE/Pong-v5 with the values of Espeholt et al. 2018 (appendix G): not run long enough to learn; still -20 after
    0.6 million env steps (seed 1).
    """
    return _impala("ALE/Pong-v5")


def impala_breakout() -> ImpalaConfig:
    """ALE/Breakout-v5 with the values of Espeholt et al. 2018 (appendix G): not run long enough to learn."""
    return _impala("ALE/Breakout-v5")


def ppo_pong() -> PPOConfig:
    """ALE/Pong-v5 with the values of Schulman et al. 2017 (table 5): from -20 to 15, and still rising, in 1.6 million
    env steps (6.6 million frames), which took an hour. Measured with `--placement colocated --precision bfloat16` on
    two ranks of two cores with seed 1.
    """
    return _ppo("ALE/Pong-v5")


def ppo_breakout() -> PPOConfig:
    """ALE/Breakout-v5 with the values of Schulman et al. 2017 (table 5): 7 after 0.18 million env steps and 6.5 min,
    where it was stopped. Measured as Pong.
    """
    return _ppo("ALE/Breakout-v5")


PRESETS = [
    Preset("pong", impala_pong),
    Preset("breakout", impala_breakout),
    Preset("pong", ppo_pong),
    Preset("breakout", ppo_breakout),
]
