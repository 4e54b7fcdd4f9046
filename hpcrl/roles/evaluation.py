"""Plays whole episodes with a fixed policy, in environments and with seeds of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hpcrl.envs.task_episodes import make_episodes
from hpcrl.envs.world import World
from hpcrl.models.policy import Policy
from hpcrl.noise import Purpose, seeds, uniforms
from hpcrl.roles.evaluation_recording import EvaluationRecorder
from hpcrl.roles.memory import ActingMemory
from hpcrl.spaces import Task
from hpcrl.unroll import Memory

#: Episodes that are played side by side.
_WAVE = 32

_RESAMPLES = 10_000
_NUMBERS_AT_ONCE = 1_000_000


class Played(NamedTuple):
    """Episodes that were played.

    Attributes:
        returns: float64 [n], of raw rewards.
        lengths: int64 [n], steps.
        seeds: int64 [n], that `env.reset` got.
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    seeds: NDArray[np.int64]


def play(
    policy: Policy,
    world: World,
    task: Task,
    episodes: range,
    seed: int,
    deterministic: bool,
    tick: Callable[[], None] = lambda: None,
    recorder: EvaluationRecorder | None = None,
) -> Played:
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
    """
    waves = [range(start, min(start + _WAVE, episodes.stop)) for start in range(episodes.start, episodes.stop, _WAVE)]
    results = [_play_wave(policy, world, task, wave, seed, deterministic, tick, recorder) for wave in waves]
    return joined(results)


def joined(parts: Sequence[Played]) -> Played:
    """Episodes one after the other."""
    none = Played(np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64))
    return Played(*map(np.concatenate, zip(*(none, *parts), strict=True)))


def _play_wave(
    policy: Policy,
    world: World,
    task: Task,
    wave: range,
    seed: int,
    deterministic: bool,
    tick: Callable[[], None],
    recorder: EvaluationRecorder | None,
) -> Played:
    options = {"purpose": Purpose.EVALUATION_SEED, "keep_lasts": recorder is not None}
    envs = make_episodes(world, task, len(wave), wave.start, seed, **options)
    observation = np.array(envs.observation, task.observation.dtype)
    memory = ActingMemory(task.observation, Memory(policy.state_size, policy.num_history), observation)
    returns, lengths, numbers = np.zeros(len(wave)), np.zeros(len(wave), np.int64), np.zeros(len(wave), np.int64)
    is_done = np.zeros(len(wave), np.bool_)
    recording = None if recorder is None else recorder.begin(wave, world.task or 0)
    while not is_done.all():
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
            said = (log_prob, value.numpy())
            recording.add(observation, action.numpy(), *said, step, envs.lasts, is_done, before)
        observation = step.observation
        memory.observe(observation, step.terminated | step.truncated | ~step.valid)
        first_end = step.ended & ~is_done
        returns[first_end] = step.episode_return[first_end]
        lengths[first_end] = step.episode_length[first_end]
        numbers[first_end] = step.episode_number[first_end]
        is_done = is_done | first_end
        tick()
    if recording is not None:
        recording.finish()
    envs.close()
    # An environment that broke begins another episode, with the seed of the next number.
    return Played(returns, lengths, seeds(seed, envs.env_index, numbers, Purpose.EVALUATION_SEED))


def interval_of_mean(returns: NDArray[np.float64]) -> tuple[float, float] | None:
    """Where the mean return of all episodes lies, with a confidence of 95 %; None for fewer than two episodes.

    The percentile bootstrap (Efron 1979, "Bootstrap methods: another look at the jackknife"): 2.5 % and 97.5 % of the
    means of 10,000 samples of as many episodes, drawn with replacement; always the same ones. It is too narrow for a
    handful of episodes, and a point where all returns are equal.

    Args:
        returns: float64 [n].
    """
    if len(returns) < 2:
        return None
    rng = np.random.default_rng(0)
    means = np.empty(_RESAMPLES)
    share = max(1, _NUMBERS_AT_ONCE // len(returns))
    for first in range(0, _RESAMPLES, share):
        some = means[first : first + share]
        some[:] = returns[rng.integers(len(returns), size=(len(some), len(returns)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
