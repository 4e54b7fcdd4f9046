"""What the metadata of a Minari dataset says: names, spaces in their stored form, and the environment."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from hpcrl.envs.atari import is_atari
from hpcrl.envs.atari_console import import_atari
from hpcrl.envs.factory import find_spec
from hpcrl.envs.recipe import find_maker
from hpcrl.errors import ConfigError, TrajectoryError
from hpcrl.spaces import Space

_ID = re.compile(r"([-_\w][-_\w/]*[-_\w]/)?[-_\w]+-v\d+")

#: Leaves of a packed space by the keys that lead to them, level by level.
_Tree = dict[str, "_Tree | Space"]


def default_dataset_id(env_ids: Sequence[str], algorithm: str, kind: str) -> str:
    """As hpcrl/CartPole-v1-a2c-v0."""
    env = "-".join(env_id.rpartition(":")[2] for env_id in env_ids)
    role = "" if kind == "training" else f"-{kind}"
    return f"hpcrl/{re.sub(r'[^-_A-Za-z0-9]', '-', env)}-{algorithm}{role}-v0"


def require_dataset_id(dataset_id: str) -> None:
    """ConfigError for what Minari takes for no name of a dataset."""
    if not _ID.fullmatch(dataset_id):
        raise ConfigError(f"--dataset-id must be like NAMESPACE/NAME-v0, got {dataset_id!r}")


def space_as_text(space: Space) -> str:
    """The stored form of observations or actions as a space of Gymnasium, in Minari's JSON.

    Choices count from 0, floats are float32. Of a packed space every level whose keys are 0, 1, ... is a Tuple, else a
    Dict.
    """
    return json.dumps(_as_json(_tree_of(space) if space.leaves else space))


def leaf_places(space: Space) -> dict[str, str]:
    """The place in HDF5 of each leaf of a packed space, below its group, as Minari looks for it.

    Raises:
        TrajectoryError: leaves whose names are no places.
    """
    return dict(_places(_tree_of(space)))


def env_spec_text(env_ids: Sequence[str]) -> str | None:
    """The registration of the environment as JSON; None where there are several, or none that JSON can hold."""
    if len(env_ids) != 1:
        return None
    try:
        if is_atari(env_ids[0]):
            import_atari()
        elif find_maker(env_ids[0]) is not None:
            return None
        return find_spec(env_ids[0]).to_json()
    except (ConfigError, ImportError, AttributeError, TypeError, ValueError, gym.error.Error):
        return None


def _tree_of(space: Space) -> _Tree:
    tree: _Tree = {}
    for name, leaf in space.leaves:
        *way, key = name.split("/")
        node: Any = tree
        for step in way:
            node = node.setdefault(step, {}) if isinstance(node, dict) else node
        if not isinstance(node, dict) or key in node or not {*way, key}.isdisjoint(("", ".", "..")):
            raise TrajectoryError(f"HDF5 has no place for a part of an observation or action named {name!r}.")
        node[key] = leaf
    return tree


def _is_tuple(tree: _Tree) -> bool:
    return list(tree) == [str(number) for number in range(len(tree))]


def _places(tree: _Tree, name: str = "", place: str = "") -> list[tuple[str, str]]:
    """(name, place) of each leaf."""
    found = []
    for key, part in tree.items():
        names, places = name + key, place + (f"_index_{key}" if _is_tuple(tree) else key)
        found += [(names, places)] if isinstance(part, Space) else _places(part, f"{names}/", f"{places}/")
    return found


def _as_json(space: Space | _Tree) -> dict[str, Any]:
    if isinstance(space, dict):
        if _is_tuple(space):
            return {"type": "Tuple", "subspaces": [_as_json(part) for part in space.values()]}
        return {"type": "Dict", "subspaces": {key: _as_json(part) for key, part in space.items()}}
    if space.kind == "discrete":
        return {"type": "Discrete", "dtype": space.dtype, "start": 0, "n": space.num_choices}
    if space.kind == "multi_discrete":
        nvec = np.array(space.nvec, np.int64).reshape(space.shape)
        return {"type": "MultiDiscrete", "dtype": space.dtype, "nvec": nvec.tolist(), "start": (nvec * 0).tolist()}
    if space.kind == "multi_binary":
        return {"type": "MultiBinary", "n": space.shape[0] if len(space.shape) == 1 else list(space.shape)}
    low, high = _bounds(space)
    return {"type": "Box", "dtype": space.dtype, "shape": list(space.shape), "low": low, "high": high}


def _bounds(space: Space) -> tuple[Any, Any]:
    """Of a box; those of its dtype where it has none of its own."""
    dtype = np.dtype(space.dtype)
    if space.low:
        low, high = (np.array(bound, dtype).reshape(space.shape) for bound in (space.low, space.high))
    elif dtype.kind == "f":
        low, high = np.full(space.shape, -np.inf), np.full(space.shape, np.inf)
    elif dtype.kind == "b":
        low, high = np.zeros(space.shape, dtype), np.ones(space.shape, dtype)
    else:
        low, high = (np.full(space.shape, bound) for bound in (np.iinfo(dtype).min, np.iinfo(dtype).max))
    return low.tolist(), high.tolist()
