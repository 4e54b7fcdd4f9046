"""How one environment is made, as data that any process can follow."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

import gymnasium as gym

from hpcrl.errors import ConfigError

#: Where packages say which functions make their environments.
ENTRY_POINTS = "hpcrl.environments"


@dataclass(frozen=True)
class Call:
    """A callable as `package.module:name`, and the keyword arguments that it gets."""

    path: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """How one environment is made, in any process; it can be pickled where its arguments can.

    Attributes:
        env: Gymnasium id, `package.module:id`, `package.module:function` that makes one, or the name of an entry point
            of the group `ENTRY_POINTS` for such a function.
        kwargs: what it is made with.
        wrappers: called one after the other, each with what the one before made as its first argument.
    """

    env: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    wrappers: tuple[Call, ...] = ()


def make(recipe: Recipe) -> gym.Env:
    """The environment, without Gymnasium's wrappers that check the order of calls and what is returned.

    Raises:
        ConfigError: what was made is no environment.
        Exception: whatever the environment raises, or `gymnasium.error.Error` for an id that is not registered.
    """
    function = find_maker(recipe.env)
    env = function(**recipe.kwargs) if function is not None else _make_registered(recipe.env, recipe.kwargs)
    for wrapper in recipe.wrappers:
        module, _, name = wrapper.path.rpartition(":")
        env = getattr(importlib.import_module(module), name)(env, **wrapper.kwargs)
    if not isinstance(env, gym.Env):
        raise ConfigError(f"{recipe.env} must make a gymnasium.Env, got {type(env).__name__}")
    return env


def find_maker(env: str) -> Callable[..., Any] | None:
    """The function that `env` names, as `package.module:function` or as an entry point; None where it is an id.

    Raises:
        ImportError: what it names can't be imported.
    """
    module, _, name = env.rpartition(":")
    if module:
        found = getattr(importlib.import_module(module), name, None)
        return found if callable(found) else None
    if env in gym.registry:
        return None
    return next((point.load() for point in entry_points(group=ENTRY_POINTS, name=env)), None)


def _make_registered(env: str, kwargs: Mapping[str, Any]) -> gym.Env:
    spec = copy.copy(gym.spec(env.rpartition(":")[2]))
    spec.order_enforce = False
    return gym.make(spec, disable_env_checker=True, **kwargs)
