"""What a shard of trajectories holds: N rows of B environments side by side, and the tables beside them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpcrl.spaces import Space, Task
from hpcrl.unroll import Memory

FORMAT_VERSION = 1

#: What a shard was recorded in.
Kind = Literal["training", "evaluation"]


class Row(NamedTuple):
    """One line of the table: a dataset, the shape of a row of it and its dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype


class Episodes(NamedTuple):
    """Columns of the table of episodes, each [E]: the part of an episode that lies in one shard.

    Attributes:
        column: of the shard.
        env_index: global index of the environment.
        number: of the episode in that environment, from 0.
        seed: that the environment was reset with.
        first_row, end_row: its rows [first, end), which are all valid.
        first_step: steps of the episode before `first_row`, in other shards (or lost); 0 where it begins here.
        episode_return: float64, sum of its raw rewards up to `end_row`, those before `first_row` included.
        is_over: bool, it ended with row `end_row - 1`.
        final: row of `finals/observation` that holds its last observation; -1 where it is not over.
    """

    column: NDArray[np.int64]
    env_index: NDArray[np.int64]
    number: NDArray[np.int64]
    seed: NDArray[np.int64]
    first_row: NDArray[np.int64]
    end_row: NDArray[np.int64]
    first_step: NDArray[np.int64]
    episode_return: NDArray[np.float64]
    is_over: NDArray[np.bool_]
    final: NDArray[np.int64]


class Block(NamedTuple):
    """Some rows L of all B environments of an actor, of one unroll.

    Attributes:
        series: arrays [L, B, ...] by the names of `series_of`.
        next_observation: [B, ...], what follows row L - 1; row 0 of the next block.
        episode_number, episode_length: int64 [L, B]; episode_return: float64 [L, B]; as in an unroll.
        final_observation: [F, ...], last observations of all episodes that ended, by row and then column.
        header: words of the unroll's header, by the names of `UNROLL_COLUMNS` but for the first two.
        core_state: float32 [B, S], before row 0.
        history: [num_history, B, ...], frames before row 0.
    """

    series: dict[str, NDArray]
    next_observation: NDArray
    episode_number: NDArray[np.int64]
    episode_length: NDArray[np.int64]
    episode_return: NDArray[np.float64]
    final_observation: NDArray
    header: dict[str, int]
    core_state: NDArray[np.float32]
    history: NDArray


#: Columns of the table of unrolls, int64 [U] each: rows [first_row, first_row + length), and words of their header.
UNROLL_COLUMNS = ("first_row", "length", "policy_version", "first_env_step")


@dataclass(frozen=True)
class About:
    """What a shard says of itself.

    Attributes:
        kind: what it was recorded in.
        actor: world rank that wrote it.
        number: of the shard in its run; no two have the same for one actor.
        first_env: first of the actor's environments, recorded or not.
        first_env_step: rows that this environment had made before the shard's row 0.
        env_steps: of the run, when the actor began it (what the run had learned from, over all actors).
        unroll_length: T.
        state_size, num_history: of the policy that acted, see `hpcrl.unroll.Memory`.
        observation, action: stored forms.
        config: of the run, JSON data.
        versions: of packages, by name.
        task: number of the task that was played, in a shard of evaluations; 0 where there is one, and in training,
            whose environments have indices of their own.
    """

    kind: Kind
    actor: int
    number: int
    first_env: int
    first_env_step: int
    env_steps: int
    unroll_length: int
    state_size: int
    num_history: int
    observation: Space
    action: Space
    config: dict[str, Any]
    versions: dict[str, str | None]
    task: int = 0

    def as_text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> About:
        """What `as_text` wrote; ValueError, TypeError or KeyError for anything else."""
        data = json.loads(text)
        for name in ("observation", "action"):
            data[name] = _space(data[name])
        about = cls(**data)
        places = (about.actor, about.number, about.first_env, about.first_env_step, about.env_steps, about.task)
        sizes = (about.unroll_length, about.state_size, about.num_history)
        if not all(type(number) is int and 0 <= number < 1 << 62 for number in (*places, *sizes)):
            raise ValueError("it says something of itself that is no number")
        if about.kind not in ("training", "evaluation") or not isinstance(about.config, dict):
            raise ValueError("it does not say what it was recorded in")
        if not isinstance(about.versions, dict) or not all(
            isinstance(each, str | None) for each in about.versions.values()
        ):
            raise ValueError("it has no versions of packages")
        return about


def _space(data: dict[str, Any]) -> Space:
    """A space from what `dataclasses.asdict` made of it."""
    lists: dict[str, Any] = {name: tuple(data.pop(name)) for name in ("shape", "low", "high", "nvec")}
    leaves = tuple((str(name), _space(leaf)) for name, leaf in data.pop("leaves"))
    if not all(type(size) is int and size >= 0 for size in lists["shape"]):
        raise ValueError("a space has a shape that is none")
    return Space(**data, **lists, leaves=leaves)


def series_of(task: Task, memory: Memory, num_columns: int, versioned: bool) -> list[Row]:
    """The datasets with a row for each step: [N, B, ...]; `observation` has one more, what follows the last step."""
    shapes: list[tuple[str, tuple[int, ...], str]] = [
        ("observation", task.observation.shape, task.observation.dtype),
        ("action", task.action.shape, task.action.dtype),
        ("reward", (), "float32"),
        ("terminated", (), "bool"),
        ("truncated", (), "bool"),
        ("ended", (), "bool"),
        ("valid", (), "bool"),
        ("behaviour_log_prob", (), "float32"),
        ("value", (), "float32"),
    ]
    if versioned:
        shapes.append(("row_version", (), "int64"))
    if memory.discounted_returns:
        shapes.append(("discounted_return", (), "float64"))
    return [Row(name, (num_columns, *shape), np.dtype(dtype)) for name, shape, dtype in shapes]
