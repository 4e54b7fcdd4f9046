"""The state of a run as arrays by name, as a checkpoint holds it: assembled on rank 0, taken apart on every rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from hpcrl.errors import CheckpointError
from hpcrl.models.flat import FlatParameters

Arrays = dict[str, NDArray]

#: Arrays of an environment state whose first axis is not the environment, with the array that counts their rows.
_RAGGED = {"replay_actions": "replay_counts"}


def weight_arrays(flat: FlatParameters) -> Arrays:
    """`weights/<parameter name>`: copies, float32."""
    return {f"weights/{name}": piece.numpy().copy() for name, piece in flat.split(flat.weights.detach()).items()}


def load_weights(flat: FlatParameters, arrays: Mapping[str, NDArray]) -> None:
    """Copy `weights/...` into the module."""
    for name, piece in flat.split(flat.weights.detach()).items():
        piece.copy_(torch.from_numpy(arrays[f"weights/{name}"]))


def optimizer_arrays(flat: FlatParameters, optimizer: torch.optim.Optimizer) -> Arrays:
    """`optimizer/<state>/<parameter name>` for what the optimizer keeps of every weight, `optimizer/<state>` else."""
    arrays: Arrays = {}
    for key, value in optimizer.state[flat.weights].items():
        if value.numel() == len(flat):
            arrays |= {f"optimizer/{key}/{name}": piece.numpy().copy() for name, piece in flat.split(value).items()}
        else:
            arrays[f"optimizer/{key}"] = value.numpy().copy().reshape(-1)
    return arrays


def load_optimizer(flat: FlatParameters, optimizer: torch.optim.Optimizer, arrays: Mapping[str, NDArray]) -> None:
    """Give the optimizer back what `optimizer_arrays` took; CheckpointError for arrays of another optimizer."""
    stored: dict[str, torch.Tensor] = {}
    for path, array in arrays.items():
        prefix, _, rest = path.partition("/")
        key, _, name = rest.partition("/")
        if prefix != "optimizer":
            continue
        if not name:
            stored[key] = torch.from_numpy(array.copy()).reshape(())
            continue
        vector = stored.setdefault(key, torch.zeros_like(flat.weights.detach()))
        pieces = flat.split(vector)
        if name not in pieces or pieces[name].shape != array.shape or array.dtype != np.float32:
            raise CheckpointError(f"the checkpoint holds {path} {list(array.shape)}, which this model has no place for")
        pieces[name].copy_(torch.from_numpy(array))
    expected = {"step", "exp_avg", "exp_avg_sq"} if isinstance(optimizer, torch.optim.Adam) else {"square_avg"}
    if stored and set(stored) != expected:
        raise CheckpointError(
            f"the checkpoint holds optimizer state {sorted(stored)}, expected {sorted(expected)} for this --optimizer"
        )
    optimizer.state[flat.weights].update(stored)


def merge_environments(states: Sequence[Mapping[str, NDArray]]) -> Arrays:
    """Environment states of all actors, in the order of their blocks, as `environments/...` by global index."""
    filled = [state for state in states if len(state["rows"])]
    return {f"environments/{key}": np.concatenate([state[key] for state in filled]) for key in filled[0]}


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
    part: Arrays = {}
    for key, array in stored.items():
        if key not in _RAGGED:
            if len(array) != num_envs:
                raise CheckpointError(f"the checkpoint holds {len(array)} rows of {key}, expected {num_envs}")
            part[key] = array[block.start : block.stop]
            continue
        ends = np.cumsum([0, *stored[_RAGGED[key]]])
        part[key] = array[ends[block.start] : ends[block.stop]]
    return part
