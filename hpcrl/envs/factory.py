"""Makes vector environments of a world, and describes their spaces as plain data."""

from __future__ import annotations

import importlib
import itertools
import math
import traceback
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

from hpcrl.config.nearest import did_you_mean
from hpcrl.envs.atari import is_atari, make_atari_vector
from hpcrl.envs.codec import action_space
from hpcrl.envs.isolated import IsolatedEnv
from hpcrl.envs.native_cartpole import SeededCartPole
from hpcrl.envs.rebuilding import FragileEnvs
from hpcrl.envs.recipe import Recipe, find_maker, make
from hpcrl.envs.registration import register_environments
from hpcrl.envs.restarts import BrokenEpisode, Restarts
from hpcrl.envs.sequential import SequentialEnvs, stored_observation
from hpcrl.envs.stored import StoredForm
from hpcrl.envs.watch import Hung, guarded_call
from hpcrl.envs.world import World
from hpcrl.errors import ConfigError, EnvironmentFailure, HpcrlError
from hpcrl.spaces import ACTION_MASK, Task

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
        reason = did_you_mean(name, gym.registry) or f": {' '.join(str(error).split())}"
        raise ConfigError(f"--env {env_id!r} is not a registered Gymnasium environment{reason}") from None


def make_vector_env(world: World, num_envs: int, task: Task | None = None, restarts: Restarts | None = None) -> Any:
    """A vector environment of `num_envs` >= 1 sub-environments, without autoreset where that is offered.

    Args:
        world: which.
        num_envs: sub-environments.
        task: spaces of a sub-environment, where they are known.
        restarts: counts environments that break; by default those of this vector environment alone.

    Returns:
        a vector environment whose observations and actions are in their stored form.

    Raises:
        ConfigError: unknown id, no native form, or an environment that can't be made.
    """
    if is_atari(world.env_id):
        return _make_atari(world, num_envs)
    mask_size = 0 if task is None else task.info_mask_size
    _find(world.env_id)
    try:
        if world.vector == "native":
            return _make_native(find_spec(world.env_id), num_envs, mask_size)
        recipe = Recipe(world.env_id)
        if not world.is_fragile:
            return SequentialEnvs([partial(make, recipe)] * num_envs, mask_size)
        maker = partial(IsolatedEnv, recipe, world.timeout_s) if world.isolated else partial(make, recipe)
        return FragileEnvs([maker] * num_envs, world.timeout_s, restarts or Restarts(world.restarts), mask_size)
    except HpcrlError:
        raise
    except (gym.error.Error, ImportError, TypeError) as error:
        raise ConfigError(f"--env {world.env_id!r} can't be made: {' '.join(str(error).split())}") from error


def _make_atari(world: World, num_envs: int) -> VectorEnv:
    if world.is_fragile:
        raise ConfigError(
            f"--isolated, --env-restarts and --env-timeout are for environments that may break, {world.env_id} does not"
        )
    return make_atari_vector(world.env_id, num_envs, world.atari)


def _find(env_id: str) -> EnvSpec | None:
    """The registration of `env_id`; None where it names a function that makes environments."""
    register_environments()
    try:
        return None if find_maker(env_id) is not None else find_spec(env_id)
    except (ImportError, AttributeError) as error:
        where = " (modules are looked for in the current folder and on PYTHONPATH)"
        hint = where if isinstance(error, ModuleNotFoundError) else ""
        raise ConfigError(f"--env {env_id!r} can't be imported: {error}{hint}") from None


def _make_native(spec: EnvSpec, num_envs: int, mask_size: int) -> Any:
    if spec.id in _SEEDED_NATIVE:
        return _SEEDED_NATIVE[spec.id](num_envs=num_envs, max_episode_steps=spec.max_episode_steps or 500)
    if spec.vector_entry_point is None:
        raise ConfigError(f"--vector native: {spec.id} has no vector form of its own, use --vector sync")
    envs = gym.make_vec(spec, num_envs=num_envs, vectorization_mode="vector_entry_point")
    return StoredForm(envs, mask_size)


def describe_task(world: World, limit_s: float | None = None) -> Task:
    """Spaces and limits of one environment, found by making it and beginning an episode.

    Args:
        world: which.
        limit_s: seconds that each of both may take, where the world has no limit of its own; None for any time.

    Raises:
        ConfigError: a space that no policy of ours can handle.
        EnvironmentFailure: it took too long, or an environment that may break did so once more than is allowed.
    """
    try:
        envs, info = _begin_one(world, limit_s)
    except EnvironmentFailure as error:
        if not isinstance(error.__cause__, Hung):
            raise
        where = "".join(traceback.format_exception(error.__cause__)).rstrip()
        raise EnvironmentFailure(f"--env {world.env_id!r} was not made and reset in time:\n{where}") from error
    try:
        mask_size = int(np.size(info[ACTION_MASK])) if ACTION_MASK in info else 0
        return Task(
            observation=stored_observation(envs.single_observation_space, mask_size),
            action=action_space(envs.single_action_space),
            max_episode_steps=_max_episode_steps(world),
            layout_invariant=world.vector == "sync" or hasattr(envs, "reset_rows"),
            info_mask_size=mask_size,
        )
    finally:
        envs.close()


def _begin_one(world: World, limit_s: float | None) -> tuple[Any, dict[str, Any]]:
    """A vector environment of one, and what that tells beside its first observation; made anew where it breaks."""
    restarts = Restarts(world.restarts)
    for seed in itertools.count():
        envs = guarded_call(partial(make_vector_env, world, 1, restarts=restarts), limit_s)
        if not hasattr(envs, "first_info"):
            break
        try:
            return envs, guarded_call(partial(envs.first_info, seed), _reset_limit(world, limit_s))
        except Exception as error:
            envs.close()
            if not world.is_fragile:
                raise
            restarts.failed(BrokenEpisode(0, seed, seed), error)
    return envs, {}


def _reset_limit(world: World, limit_s: float | None) -> float | None:
    """Seconds for a first reset, where nobody else looks: an environment in a process of its own has its own limit."""
    if world.timeout_s is None:
        return limit_s
    return None if world.isolated else world.timeout_s


def _max_episode_steps(world: World) -> int | None:
    if is_atari(world.env_id):
        return math.ceil(world.atari.max_frames / world.atari.frame_skip)
    spec = _find(world.env_id)
    return None if spec is None else spec.max_episode_steps
