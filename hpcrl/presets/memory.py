"""Presets for the memory task, which no policy without memory can solve."""

from __future__ import annotations

import dataclasses

from hpcrl.config import PPOConfig
from hpcrl.presets.preset import Preset


def memory_cue() -> PPOConfig:
    """MemoryCue-v0 with an LSTM: a cue at the start, 16 blank steps, a reward for the right answer at the end.

    The values were found by trying: 0.95 after 31,000 to 50,000 env steps and 2 to 4 s (one rank, seeds 1 to 3).
    """
    return PPOConfig(
        env="MemoryCue-v0",
        num_envs=32,
        unroll_length=18,
        total_env_steps=1_000_000,
        hidden_sizes=(64,),
        core="lstm",
        core_size=64,
        epochs=4,
        minibatches=4,
        entropy_coef=0.01,
        learning_rate=1e-3,
    )


def memory_cue_short() -> PPOConfig:
    """MemoryCue-v0 with unrolls of 6 steps, a third of an episode: what is remembered passes from one to the next. 0.8
    after 0.8 million env steps and 5 min, where it was stopped (one rank, seed 1).
    """
    return dataclasses.replace(memory_cue(), unroll_length=6)


def memory_cue_forgetful() -> PPOConfig:
    """MemoryCue-v0 without a recurrent core, which can but guess: 0.18 to 0.29 after a million env steps (3 seeds)."""
    return dataclasses.replace(memory_cue(), core="none")


PRESETS = [
    Preset("memory-cue", memory_cue, 0.95),
    Preset("memory-cue-short", memory_cue_short),
    Preset("memory-cue-forgetful", memory_cue_forgetful),
]
