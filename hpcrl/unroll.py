"""The unroll: the one piece of data that actors make and learners consume, and its table of fields."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpcrl.errors import ShapeError
from hpcrl.spaces import Task

_ALIGNMENT = 64


class Field(NamedTuple):
    """One row of the table: a name, a shape and a dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class Memory:
    """What policies and statistics remember from the time before an unroll.

    Attributes:
        state_size: S, numbers of an environment's recurrent state.
        num_history: frames before the first that are stacked with it.
        discounted_returns: whether the discounted returns so far are kept.
    """

    state_size: int = 0
    num_history: int = 0
    discounted_returns: bool = False


NO_MEMORY = Memory()


@dataclass(frozen=True)
class UnrollSpec:
    """Sizes of an unroll.

    Attributes:
        task: spaces of one environment.
        unroll_length: T, steps.
        num_envs: B, environments side by side (0 for an actor without any).
        first_env: global index of the first environment.
        num_finals: K, rows for the last observations of truncated episodes.
        versioned: whether the weights may change between two rows (central inference), so that each has its version.
        memory: what a policy that remembers needs of the time before.
    """

    task: Task
    unroll_length: int
    num_envs: int
    first_env: int
    num_finals: int
    versioned: bool = False
    memory: Memory = NO_MEMORY

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        """The table. Time first: [T, B, ...]; an observation more than actions, the bootstrap one."""
        time, envs, finals = self.unroll_length, self.num_envs, self.num_finals
        observation, action, memory = self.task.observation, self.task.action, self.memory
        rows: Sequence[tuple[str, tuple[int, ...], str]] = (
            ("header", (len(_HEADER),), "int64"),
            ("observation", (time + 1, envs, *observation.shape), observation.dtype),
            ("action", (time, envs, *action.shape), action.dtype),
            ("reward", (time, envs), "float32"),
            ("terminated", (time, envs), "bool"),
            ("truncated", (time, envs), "bool"),
            ("ended", (time, envs), "bool"),
            ("valid", (time, envs), "bool"),
            ("behaviour_log_prob", (time, envs), "float32"),
            ("final_observation", (finals, *observation.shape), observation.dtype),
            ("final_index", (finals, 2), "int64"),
            ("episode_number", (time, envs), "int64"),
            ("episode_return", (time, envs), "float64"),
            ("episode_length", (time, envs), "int64"),
            ("row_version", (time if self.versioned else 0, envs), "int64"),
            ("core_state", (envs, memory.state_size), "float32"),
            ("history", (memory.num_history, envs, *observation.shape), observation.dtype),
            ("discounted_return", (time if memory.discounted_returns else 0, envs), "float64"),
        )
        return tuple(Field(name, shape, np.dtype(dtype)) for name, shape, dtype in rows)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of one slot, every field aligned to a cache line."""
        return sum(_aligned(math.prod(field.shape) * field.dtype.itemsize) for field in self.fields)


def num_finals(task: Task, unroll_length: int, num_envs: int) -> int:
    """Rows for truncated episodes: what a known time limit can need, and one an environment to spare.

    An actor cuts its unroll where the next step could need more rows than are left; with one row an environment to
    spare, truncations by the time limit never come to that.
    """
    per_env = 1 if task.max_episode_steps is None else (unroll_length - 1) // task.max_episode_steps + 1
    return num_envs * min(per_env + 1, unroll_length)


_HEADER = (
    "actor",  # world rank of the actor
    "sequence",  # number of this unroll, from 0, without gaps
    "policy_version",  # learner updates that its weights had seen
    "first_env_step",  # steps that each environment had made before it
    "length",  # rows acted: below T only where the table of final observations was full
    "num_finals",  # rows of that table in use
    "stop_requested",
    "save_requested",
)


class Unroll:
    """Views over one flat buffer by the table of fields: numpy arrays, no copies.

    Attributes (T, B, K of the spec; the names of the table):
        observation: [T+1, B, ...]; row `length` is the bootstrap observation and the next unroll's first.
        action: [T, B, ...].
        reward: float32 [T, B].
        terminated, truncated: bool [T, B], of the transition that leaves row t.
        ended: bool [T, B], the same where an episode ends that counts; a life lost terminates, but ends no episode.
        valid: bool [T, B], false where the environment ignored the action (an autoreset row), where it broke, or where
            the unroll was cut.
        behaviour_log_prob: float32 [T, B], of the distribution that was sampled.
        final_observation: [K, ...], last observations of truncated episodes; the first `num_finals` rows count.
        final_index: int64 [K, 2], their (t, b).
        episode_number: int64 [T, B], episodes that the environment had finished before.
        episode_return: float64 [T, B], sum of raw rewards of the episode up to and with row t.
        episode_length: int64 [T, B], its steps.
        row_version: int64 [T, B] of a versioned unroll, else [0, B]: learner updates in the weights of each row.
        core_state: float32 [B, S], recurrent state before row 0: zeros where an episode begins there.
        history: [num_history, B, ...], the frames that are stacked with row 0, oldest first; before the first frame of
            an episode there is that frame.
        discounted_return: float64 [T, B] where it is kept, else [0, B]: sum of the episode's raw rewards up to and with
            row t, those before discounted once a step.
    """

    header: NDArray[np.int64]
    observation: NDArray
    action: NDArray
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    ended: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    behaviour_log_prob: NDArray[np.float32]
    final_observation: NDArray
    final_index: NDArray[np.int64]
    episode_number: NDArray[np.int64]
    episode_return: NDArray[np.float64]
    episode_length: NDArray[np.int64]
    row_version: NDArray[np.int64]
    core_state: NDArray[np.float32]
    history: NDArray
    discounted_return: NDArray[np.float64]

    def __init__(self, spec: UnrollSpec, buffer: NDArray[np.uint8] | None = None) -> None:
        if buffer is None:
            buffer = aligned_zeros(spec.nbytes)
        if buffer.dtype != np.uint8 or buffer.shape != (spec.nbytes,) or not buffer.flags.c_contiguous:
            raise ShapeError(f"an unroll needs {spec.nbytes} contiguous bytes, got {buffer.dtype} {list(buffer.shape)}")
        self.spec = spec
        self.buffer = buffer
        offset = 0
        for field in spec.fields:
            size = math.prod(field.shape) * field.dtype.itemsize
            setattr(self, field.name, buffer[offset : offset + size].view(field.dtype).reshape(field.shape))
            offset += _aligned(size)

    def __getattr__(self, name: str) -> int:
        if name in _HEADER_INDEX:
            return int(self.header[_HEADER_INDEX[name]])
        raise AttributeError(name)

    def set_header(self, **values: int) -> None:
        """Write header words by name."""
        for name, value in values.items():
            self.header[_HEADER_INDEX[name]] = value

    def truncate_to(self, length: int) -> None:
        """Cut the unroll: rows from `length` on hold nothing to learn from, and the bootstrap moves to row `length`."""
        self.set_header(length=length)
        self.valid[length:] = False
        self.terminated[length:] = self.truncated[length:] = self.ended[length:] = False
        self.reward[length:] = self.behaviour_log_prob[length:] = 0
        self.action[length:] = 0
        self.observation[length + 1 :] = self.observation[length]


_HEADER_INDEX = {name: index for index, name in enumerate(_HEADER)}


def aligned_zeros(nbytes: int) -> NDArray[np.uint8]:
    """Zeroed memory, uint8 [nbytes], that begins at a cache line.

    numpy's own begins where the heap has room, and matrix products may round differently by alignment: two runs would
    differ in their last bits.
    """
    memory = np.zeros(nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + nbytes]


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
