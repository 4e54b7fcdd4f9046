"""Plays whole episodes with a fixed policy, in environments and with seeds of their own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from hpcrl.envs.episodes import EpisodeEnvs
from hpcrl.models.policy import Policy
from hpcrl.noise import Purpose, uniforms
from hpcrl.spaces import Task

#: Episodes that are played side by side.
_WAVE = 32


def play_episodes(
    policy: Policy,
    env_id: str,
    task: Task,
    episodes: range,
    seed: int,
    deterministic: bool,
    tick: Callable[[], None] = lambda: None,
) -> NDArray[np.float64]:
    """Play the episodes of the given numbers, each with seeds that depend on `seed` and its number alone. Local.

    Args:
        policy: acts; its weights are not changed.
        env_id: Gymnasium id.
        task: its spaces.
        episodes: numbers of the episodes.
        seed: of the evaluation.
        deterministic: take the most likely action instead of sampling.
        tick: called at every step.

    Returns:
        float64 [n, 2]: return (raw rewards) and length of each episode.
    """
    waves = [range(start, min(start + _WAVE, episodes.stop)) for start in range(episodes.start, episodes.stop, _WAVE)]
    results = [_play_wave(policy, env_id, task, wave, seed, deterministic, tick) for wave in waves]
    return np.concatenate(results) if results else np.empty((0, 2))


def _play_wave(
    policy: Policy, env_id: str, task: Task, wave: range, seed: int, deterministic: bool, tick: Callable[[], None]
) -> NDArray[np.float64]:
    envs = EpisodeEnvs(env_id, "sync", task, len(wave), wave.start, seed, Purpose.EVALUATION_SEED)
    results = np.full((len(wave), 2), np.nan)
    while np.isnan(results[:, 1]).any():
        observation = torch.from_numpy(np.asarray(envs.observation, task.observation.dtype))
        if deterministic:
            action = policy.act_greedily(observation)
        else:
            noise = uniforms(seed, envs.env_index, envs.rows, Purpose.EVALUATION_ACTION, policy.head.noise_size)
            action, _ = policy.act(observation, torch.from_numpy(noise))
        step = envs.step(action.numpy())
        first_end = (step.terminated | step.truncated) & np.isnan(results[:, 1])
        results[first_end, 0] = step.episode_return[first_end]
        results[first_end, 1] = step.episode_length[first_end]
        tick()
    envs.close()
    return results
