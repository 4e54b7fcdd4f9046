"""The state of a run as arrays by name, as a checkpoint holds it: assembled on rank 0, taken apart on every rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcrl.envs.task_episodes import TASK_OF, split_key
from hpcrl.errors import CheckpointError
from hpcrl.models.flat import FlatParameters

Arrays = dict[str, NDArray]

#: Arrays of an environment state whose first axis is not the environment, with the array that counts their rows.
_RAGGED = {"replay_actions": "replay_counts"}


def weight_arrays(flat: FlatParameters, room: Mapping[str, NDArray] | None = None) -> Arrays:
    """`weights/<parameter name>`: copies, float32, in the arrays of these names in `room` where it has them."""
    pieces = flat.split(flat.weights.detach()).items()
    return {f"weights/{name}": _copy(piece, f"weights/{name}", room) for name, piece in pieces}


def load_weights(flat: FlatParameters, arrays: Mapping[str, NDArray]) -> None:
    """Copy `weights/...` into the module."""
    for name, piece in flat.split(flat.weights.detach()).items():
        piece.copy_(torch.from_numpy(arrays[f"weights/{name}"]))


def optimizer_arrays(
    flat: FlatParameters, state: Mapping[str, Tensor], room: Mapping[str, NDArray] | None = None
) -> Arrays:
    """`optimizer/<state>/<parameter name>` for what the optimizer keeps of every weight, `optimizer/<state>` else.

    Copies, in `room` as for `weight_arrays`.
    """
    arrays: Arrays = {}
    for key, value in state.items():
        if value.dim():
            pieces = {f"optimizer/{key}/{name}": piece for name, piece in flat.split(value.cpu()).items()}
            arrays |= {name: _copy(piece, name, room) for name, piece in pieces.items()}
        else:
            arrays[f"optimizer/{key}"] = value.numpy().copy().reshape(1)
    return arrays


def _copy(piece: Tensor, name: str, room: Mapping[str, NDArray] | None) -> NDArray:
    copy = np.empty(piece.shape, np.float32) if room is None or name not in room else room[name]
    np.copyto(copy, piece.numpy())
    return copy


def load_optimizer(flat: FlatParameters, state: Mapping[str, Tensor], arrays: Mapping[str, NDArray]) -> None:
    """Put back what `optimizer_arrays` took, in place; CheckpointError for arrays of another optimizer."""
    expected = optimizer_arrays(flat, state)
    stored = {path: array for path, array in arrays.items() if path.startswith("optimizer/")}
    for path in sorted(expected.keys() | stored.keys()):
        mine, theirs = (_outline(group.get(path)) for group in (expected, stored))
        if mine != theirs:
            raise CheckpointError(f"the checkpoint's {path} is {theirs}, expected {mine} for this --optimizer")
    for key, value in state.items():
        if not value.dim():
            value.fill_(int(stored[f"optimizer/{key}"][0]))
            continue
        for name, piece in flat.split(value).items():
            piece.copy_(torch.from_numpy(stored[f"optimizer/{key}/{name}"]))


def _outline(array: NDArray | None) -> str:
    return "missing" if array is None else f"{list(array.shape)} {array.dtype}"


def concatenate_environments(states: Sequence[Mapping[str, NDArray]]) -> Arrays:
    """Environment states one after the other; those without any environment add nothing."""
    filled = [state for state in states if len(state["rows"])] or states[:1]
    keys = dict.fromkeys(key for state in filled for key in state)
    return {key: np.concatenate([state[key] for state in filled if key in state]) for key in keys}


def split_environments(state: Mapping[str, NDArray], sizes: Sequence[int]) -> list[Arrays]:
    """An environment state as the states of groups of so many environments."""
    parts: list[Arrays] = []
    first = 0
    for size in sizes:
        parts.append({key: array[_rows_of(state, key, first, first + size)] for key, array in state.items()})
        first += size
    return parts


def _rows_of(state: Mapping[str, NDArray], key: str, first: int, end: int) -> slice:
    """The rows of an array that belong to environments `first` to `end`."""
    task, name = split_key(key)
    first, end = (_count(state, task, edge) for edge in (first, end))
    if name not in _RAGGED:
        return slice(first, end)
    ends = np.cumsum([0, *state[key.removesuffix(name) + _RAGGED[name]]])
    return slice(int(ends[first]), int(ends[end]))


def _count(state: Mapping[str, NDArray], task: int | None, end: int) -> int:
    """How many of the environments before `end` are of a task; all where that is None."""
    return end if task is None else int(np.count_nonzero(state[TASK_OF][:end] == task))


def merge_environments(states: Sequence[Mapping[str, NDArray]]) -> Arrays:
    """Environment states of all actors, in the order of their blocks, as `environments/...` by global index."""
    return {f"environments/{key}": array for key, array in concatenate_environments(states).items()}


def environments_of(arrays: Mapping[str, NDArray], block: range, num_envs: int) -> Arrays:
    """The part of `environments/...` that belongs to the environments of `block`.

    Raises:
        CheckpointError: the checkpoint holds another number of environments, or counts that don't add up.
    """
    prefix = "environments/"
    stored = {path.removeprefix(prefix): array for path, array in arrays.items() if path.startswith(prefix)}
    if "rows" not in stored:
        raise CheckpointError("the checkpoint holds no state of environments")
    if len(stored["rows"]) != num_envs:
        raise CheckpointError(
            f"the checkpoint holds {len(stored['rows'])} environments, --num-envs is {num_envs}: they must be equal"
        )
    for key, array in stored.items():
        task, name = split_key(key)
        if task is not None and TASK_OF not in stored:
            raise CheckpointError(f"the checkpoint holds {key}, but not which environments that is of")
        expected = _count(stored, task, num_envs)
        if name not in _RAGGED and len(array) != expected:
            raise CheckpointError(f"the checkpoint holds {len(array)} rows of {key}, expected {expected}")
    return {key: array[_rows_of(stored, key, block.start, block.stop)] for key, array in stored.items()}
