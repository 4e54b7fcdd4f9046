"""Makes vector environments from an id, and describes their spaces as plain data."""

from __future__ import annotations

import copy
import importlib
import math

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

from hpcrl.envs.native_cartpole import SeededCartPole
from hpcrl.envs.registration import register_environments
from hpcrl.envs.sequential import SequentialEnvs
from hpcrl.errors import ConfigError
from hpcrl.spaces import Space, Task

#: Environments whose native form is replaced by ours, with a stream of its own for each sub-environment.
_SEEDED_NATIVE = {"CartPole-v0": SeededCartPole, "CartPole-v1": SeededCartPole}


def find_spec(env_id: str) -> EnvSpec:
    """The registration of `env_id`; ConfigError in one sentence where there is none."""
    register_environments()
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        return gym.spec(name)
    except (gym.error.Error, ImportError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"--env {env_id!r} is not a registered Gymnasium environment: {reason}") from None


def make_vector_env(env_id: str, num_envs: int, vector: str) -> VectorEnv:
    """A vector environment of `num_envs` >= 1 sub-environments, without autoreset where that is offered.

    Args:
        env_id: Gymnasium id.
        num_envs: sub-environments.
        vector: "sync" or "native".

    Raises:
        ConfigError: unknown id, no native form, or an environment that can't be made.
    """
    spec = find_spec(env_id)
    try:
        if vector == "native":
            return _make_native(spec, num_envs)
        # Wrappers that check cost as much as a small environment: `describe_task` looks at the spaces once, and nothing
        # here steps an environment before it is reset.
        spec = copy.copy(spec)
        spec.order_enforce = False
        maker = lambda: gym.make(spec, disable_env_checker=True)  # noqa: E731
        return SequentialEnvs([maker] * num_envs)
    except (gym.error.Error, ImportError, TypeError) as error:
        raise ConfigError(f"--env {env_id!r} can't be made: {' '.join(str(error).split())}") from error


def _make_native(spec: EnvSpec, num_envs: int) -> VectorEnv:
    if spec.id in _SEEDED_NATIVE:
        return _SEEDED_NATIVE[spec.id](num_envs=num_envs, max_episode_steps=spec.max_episode_steps or 500)
    if spec.vector_entry_point is None:
        raise ConfigError(f"--vector native: {spec.id} has no vector form of its own, use --vector sync")
    return gym.make_vec(spec, num_envs=num_envs, vectorization_mode="vector_entry_point")


def describe_task(env_id: str, vector: str) -> Task:
    """Spaces and limits of one environment, found by making it once.

    Raises:
        ConfigError: a space that no policy of ours can handle, or an unknown autoreset mode.
    """
    envs = make_vector_env(env_id, 1, vector)
    try:
        seeded = vector == "sync" or isinstance(envs, SeededCartPole)
        return Task(
            observation=_observation_space(envs.single_observation_space),
            action=_action_space(envs.single_action_space),
            max_episode_steps=find_spec(env_id).max_episode_steps,
            layout_invariant=seeded,
        )
    finally:
        envs.close()


def _observation_space(space: gym.Space) -> Space:
    if isinstance(space, gym.spaces.Discrete):
        return Space("discrete", (), "int64", int(space.n))
    if isinstance(space, gym.spaces.Box) and math.prod(space.shape) > 0:
        # Networks compute in float32; storing more would only make unrolls larger.
        dtype = "float32" if np.issubdtype(space.dtype, np.floating) else np.dtype(space.dtype).name
        return Space("box", space.shape, dtype)
    raise ConfigError(f"observations must be a Box or Discrete space, got {space}")


def _action_space(space: gym.Space) -> Space:
    if isinstance(space, gym.spaces.Discrete):
        return Space("discrete", (), "int64", int(space.n))
    if isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.floating) and len(space.shape) == 1:
        return Space(
            "box", space.shape, "float32", low=tuple(map(float, space.low)), high=tuple(map(float, space.high))
        )
    raise ConfigError(f"actions must be a Discrete space or a one-dimensional Box of floats, got {space}")
