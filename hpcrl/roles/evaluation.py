"""Plays whole episodes with a fixed policy, in environments and with seeds of their own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from hpcrl.envs.task_episodes import make_episodes
from hpcrl.envs.world import World
from hpcrl.models.policy import Policy
from hpcrl.noise import Purpose, uniforms
from hpcrl.roles.evaluation_recording import EvaluationRecorder
from hpcrl.roles.memory import ActingMemory
from hpcrl.spaces import Task
from hpcrl.unroll import Memory

#: Episodes that are played side by side.
_WAVE = 32


def play_episodes(
    policy: Policy,
    world: World,
    task: Task,
    episodes: range,
    seed: int,
    deterministic: bool,
    tick: Callable[[], None] = lambda: None,
    recorder: EvaluationRecorder | None = None,
) -> NDArray[np.float64]:
    """Play the episodes of the given numbers, each with seeds that depend on `seed` and its number alone. Local.

    Args:
        policy: acts; its weights are not changed.
        world: which environment.
        task: of the run.
        episodes: numbers of the episodes.
        seed: of the evaluation.
        deterministic: take the most likely action instead of sampling.
        tick: called at every step.
        recorder: records them.

    Returns:
        float64 [n, 2]: return (raw rewards) and length of each episode.
    """
    waves = [range(start, min(start + _WAVE, episodes.stop)) for start in range(episodes.start, episodes.stop, _WAVE)]
    results = [_play_wave(policy, world, task, wave, seed, deterministic, tick, recorder) for wave in waves]
    return np.concatenate(results) if results else np.empty((0, 2))


def _play_wave(
    policy: Policy,
    world: World,
    task: Task,
    wave: range,
    seed: int,
    deterministic: bool,
    tick: Callable[[], None],
    recorder: EvaluationRecorder | None,
) -> NDArray[np.float64]:
    options = {"purpose": Purpose.EVALUATION_SEED, "keep_lasts": recorder is not None}
    envs = make_episodes(world, task, len(wave), wave.start, seed, **options)
    observation = np.array(envs.observation, task.observation.dtype)
    memory = ActingMemory(task.observation, Memory(policy.state_size, policy.num_history), observation)
    results = np.full((len(wave), 2), np.nan)
    recording = None if recorder is None else recorder.begin(wave, world.task or 0)
    while np.isnan(results[:, 1]).any():
        seen = memory.seen(torch.from_numpy(observation))
        before = memory.before()
        parameters, memory.state, value = policy.step_and_value(seen, memory.state)
        if deterministic:
            action = policy.head.mode(parameters)
        else:
            noise = uniforms(seed, envs.env_index, envs.rows, Purpose.EVALUATION_ACTION, policy.head.noise_size)
            action = policy.head.sample(parameters, torch.from_numpy(noise))
        step = envs.step(action.numpy())
        if recording is not None:
            log_prob = policy.head.log_prob(parameters, action).numpy()
            is_done = ~np.isnan(results[:, 1])
            said = (log_prob, value.numpy())
            recording.add(observation, action.numpy(), *said, step, envs.lasts, is_done, before)
        observation = step.observation
        memory.observe(observation, step.terminated | step.truncated | ~step.valid)
        first_end = step.ended & np.isnan(results[:, 1])
        results[first_end, 0] = step.episode_return[first_end]
        results[first_end, 1] = step.episode_length[first_end]
        tick()
    if recording is not None:
        recording.finish()
    envs.close()
    return results
