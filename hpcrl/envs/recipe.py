"""How one environment is made, as data that any process can follow."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym

from hpcrl.errors import ConfigError


@dataclass(frozen=True)
class Call:
    """A callable as `package.module:name`, and the keyword arguments that it gets."""

    path: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """How one environment is made, in any process; it can be pickled where its arguments can.

    Attributes:
        env: Gymnasium id, `package.module:id`, or `package.module:function` that makes one.
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
    module, _, name = recipe.env.rpartition(":")
    function = getattr(importlib.import_module(module), name, None) if module else None
    env = function(**recipe.kwargs) if callable(function) else _make_registered(name, recipe.kwargs)
    for wrapper in recipe.wrappers:
        module, _, name = wrapper.path.rpartition(":")
        env = getattr(importlib.import_module(module), name)(env, **wrapper.kwargs)
    if not isinstance(env, gym.Env):
        raise ConfigError(f"{recipe.env} must make a gymnasium.Env, got {type(env).__name__}")
    return env


def _make_registered(name: str, kwargs: Mapping[str, Any]) -> gym.Env:
    spec = copy.copy(gym.spec(name))
    spec.order_enforce = False
    return gym.make(spec, disable_env_checker=True, **kwargs)
