"""Between elements of Gymnasium's spaces and the arrays that stand for them: observations in, actions out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from hpcrl.errors import ConfigError
from hpcrl.spaces import ACTION_MASK, Space, packed

#: The leaf of a plain observation beside an action mask.
_PLAIN = "observation"


def observation_space(space: gym.Space) -> Space:
    """How observations are stored.

    Box: its numbers, floats as float32. Discrete and MultiDiscrete: int64, counted from 0. MultiBinary: int8. Dict and
    Tuple of these, one within the other: packed, each leaf named by the way to it ("camera/left", "0").

    Raises:
        ConfigError: a space that holds something else.
    """
    return _stored(space, "observations")


def action_space(space: gym.Space) -> Space:
    """How actions are stored: as observations; a Box must be of floats, and brings its bounds.

    Raises:
        ConfigError: a space that holds something else.
    """
    for _, leaf in leaves_of(space):
        if isinstance(leaf, spaces.Box) and not np.issubdtype(leaf.dtype, np.floating):
            raise ConfigError(f"a Box of actions must be of floats, got {leaf}")
    return _stored(space, "actions")


def with_action_mask(observation: Space, num_choices: int) -> Space:
    """The space of observations that come with a mask, int8 [num_choices], of the actions that are allowed."""
    leaves = observation.leaves or ((_PLAIN, observation),)
    return packed((*leaves, (ACTION_MASK, Space("multi_binary", (num_choices,), "int8"))))


#: The way to a leaf: a key of a Dict or an index of a Tuple at each level.
_Path = tuple[Any, ...]


def _leaves_of(space: gym.Space) -> Iterator[tuple[_Path, gym.Space]]:
    """The leaves of a space, with the way to each; of a plain one itself."""
    if not isinstance(space, (spaces.Dict, spaces.Tuple)):
        yield (), space
        return
    parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
    for key, part in parts:
        for path, leaf in _leaves_of(part):
            yield (key, *path), leaf


def leaves_of(space: gym.Space) -> Iterator[tuple[str, gym.Space]]:
    """(name, leaf) of a space; of a plain one itself, without a name."""
    return ((_name(path), leaf) for path, leaf in _leaves_of(space))


def _name(path: _Path) -> str:
    return "/".join(map(str, path))


def _stored(space: gym.Space, what: str) -> Space:
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        leaves = tuple((name, _stored_leaf(leaf, what)) for name, leaf in leaves_of(space))
        if not leaves:
            raise ConfigError(f"{what} must hold something, got {space}")
        if len(dict(leaves)) < len(leaves):
            raise ConfigError(f"{what} have two parts of the same name among {', '.join(name for name, _ in leaves)}")
        return packed(leaves)
    return _stored_leaf(space, what)


def _stored_leaf(space: gym.Space, what: str) -> Space:
    if isinstance(space, spaces.Discrete):
        return Space("discrete", (), "int64", int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        return Space("multi_discrete", space.shape, "int64", nvec=tuple(map(int, space.nvec.reshape(-1))))
    if isinstance(space, spaces.MultiBinary):
        return Space("multi_binary", space.shape, "int8")
    if isinstance(space, spaces.Box) and math.prod(space.shape) > 0:
        # Networks compute in float32; storing more would only make unrolls larger.
        dtype = "float32" if np.issubdtype(space.dtype, np.floating) else np.dtype(space.dtype).name
        bounds = (tuple(map(float, bound.reshape(-1))) for bound in (space.low, space.high))
        low, high = bounds if what == "actions" else ((), ())
        return Space("box", space.shape, dtype, low=low, high=high)
    kinds = "Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of these"
    raise ConfigError(f"{what} must be {kinds}, got {space}")


def leaf_views(space: Space, elements: NDArray) -> dict[str, NDArray]:
    """Views of the leaves of packed elements uint8 [N, nbytes]: [N, *leaf.shape] by name, to read and to write."""
    views = {}
    for name, leaf, first, end in space.places:
        dtype = np.dtype(leaf.dtype)
        strides = (elements.strides[0], *np.empty(leaf.shape, dtype).strides)
        part = elements[:, first:end].view(dtype)
        views[name] = np.lib.stride_tricks.as_strided(part, (len(elements), *leaf.shape), strides)
    return views


class ObservationWriter:
    """Writes observations of an environment, or of a vector environment, into memory in their stored form.

    Args:
        space: Gymnasium's, of one environment.
        stored: as `observation_space` gives it, maybe with an action mask from the info.
        memory: [B, *stored.shape], contiguous.
    """

    def __init__(self, space: gym.Space, stored: Space, memory: NDArray) -> None:
        self._memory = memory
        self._paths = [path for path, _ in _leaves_of(space)]
        self._starts = [_start(leaf) for _, leaf in leaves_of(space)]
        self._views = list(leaf_views(stored, memory).values()) if stored.leaves else [memory]
        # A mask that comes with the info is the last leaf.
        self._mask = self._views.pop() if len(self._views) > len(self._paths) else None
        self._is_plain = not stored.leaves and not np.any(self._starts[0])

    def write(self, row: int, observation: Any, info: Mapping[str, Any]) -> None:
        """One environment's observation, and its mask where that is in the info."""
        if self._is_plain:
            self._memory[row] = observation
            return
        for view, path, start in zip(self._views, self._paths, self._starts, strict=True):
            view[row] = _at(observation, path) - start if np.any(start) else _at(observation, path)
        if self._mask is not None:
            self._mask[row] = info[ACTION_MASK]

    def write_batch(self, observations: Any, info: Mapping[str, Any]) -> None:
        """Those of a vector environment, leaf by leaf with the environment first."""
        for view, path, start in zip(self._views, self._paths, self._starts, strict=True):
            leaf = np.asarray(_at(observations, path))
            view[...] = leaf - start if np.any(start) else leaf
        if self._mask is not None:
            mask = info[ACTION_MASK]
            self._mask[...] = np.stack(list(mask)) if mask.dtype == object else mask


class ActionReader:
    """Reads actions in their stored form as elements of Gymnasium's spaces; those outside a Box are clipped.

    Args:
        space: Gymnasium's, of one environment.
        stored: as `action_space` gives it.
    """

    def __init__(self, space: gym.Space, stored: Space) -> None:
        self._stored = stored
        parts = stored.leaves or (("", stored),)
        leaves = (leaf for _, leaf in leaves_of(space))
        self._converters = {name: _converter(leaf) for (name, _), leaf in zip(parts, leaves, strict=True)}
        self._build = _builder(space)

    def rows(self, actions: NDArray) -> Any:
        """Stored actions [B, *shape] -> an action for each of B environments: an array, or a list."""
        if self._stored.kind != "packed":
            return self._converters[""](actions)
        columns = {name: self._converters[name](view) for name, view in self._leaves(actions)}
        return [self._build({name: column[row] for name, column in columns.items()}) for row in range(len(actions))]

    def batch(self, actions: NDArray) -> Any:
        """Stored actions [B, *shape] -> those of a vector environment, leaf by leaf with the environment first."""
        if self._stored.kind != "packed":
            return self._converters[""](actions)
        return self._build({name: self._converters[name](view) for name, view in self._leaves(actions)})

    def _leaves(self, actions: NDArray) -> Iterator[tuple[str, NDArray]]:
        yield from leaf_views(self._stored, np.ascontiguousarray(actions)).items()


def _converter(leaf: gym.Space) -> Callable[[NDArray], NDArray]:
    """From stored actions of one leaf [B, ...] to the environment's."""
    dtype = leaf.dtype
    if isinstance(leaf, spaces.Box):
        low, high = leaf.low, leaf.high
        return lambda actions: actions.astype(dtype, copy=False).clip(low, high)
    start = _start(leaf)
    if np.any(start):
        return lambda actions: (actions + start).astype(dtype, copy=False)
    return lambda actions: actions.astype(dtype, copy=False)


def _builder(space: gym.Space, path: _Path = ()) -> Callable[[Mapping[str, Any]], Any]:
    """From leaves by name to an element of the space."""
    if isinstance(space, spaces.Dict):
        builders = {key: _builder(part, (*path, key)) for key, part in space.spaces.items()}
        return lambda leaves: {key: build(leaves) for key, build in builders.items()}
    if isinstance(space, spaces.Tuple):
        parts = [_builder(part, (*path, key)) for key, part in enumerate(space.spaces)]
        return lambda leaves: tuple(build(leaves) for build in parts)
    name = _name(path)
    return lambda leaves: leaves[name]


def _start(leaf: gym.Space) -> Any:
    """What the environment's numbers begin with."""
    if isinstance(leaf, spaces.Discrete):
        return int(leaf.start)
    return leaf.start if isinstance(leaf, spaces.MultiDiscrete) else 0


def _at(element: Any, path: _Path) -> Any:
    for key in path:
        element = element[key]
    return element
