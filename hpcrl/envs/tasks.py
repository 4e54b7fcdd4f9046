"""The tasks of a run: which environments belong to which, and what all of them have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

from hpcrl.errors import ConfigError
from hpcrl.spaces import Space, Task, packed

#: The leaf of an observation that names its task, int64.
TASK_LEAF = "task"
#: The leaf of a plain observation beside it.
_PLAIN = "observation"


def divide(whole: range, parts: int) -> list[range]:
    """Contiguous blocks whose sizes differ by at most one, the larger ones first.

    So the global indices of environments are dealt to tasks, whatever the layout. Where the number of actors is the
    number of tasks or a multiple of it, every task's are then dealt to actors of its own; else all are dealt to all
    actors, and some have environments of several tasks.
    """
    share, extra = divmod(len(whole), parts)
    edges = [whole.start + part * share + min(part, extra) for part in range(parts + 1)]
    return [range(*block) for block in pairwise(edges)]


class Group(NamedTuple):
    """Environments of one task that an actor steps together: the task's number, and their global indices."""

    task: int
    envs: range


def groups_of(block: range, tasks: Sequence[range], sizes: Callable[[int], Sequence[int]]) -> list[Group]:
    """The groups of an actor's environments: those of each task, cut further.

    Args:
        block: global indices of the actor's environments.
        tasks: those of each task.
        sizes: of the groups that so many environments of a task are cut into.
    """
    groups = []
    for number, task in enumerate(tasks):
        shared = range(max(block.start, task.start), min(block.stop, task.stop))
        edges = accumulate(sizes(len(shared)) if shared else (), initial=shared.start)
        groups += [Group(number, range(*ends)) for ends in pairwise(edges)]
    return groups


@dataclass(frozen=True, kw_only=True)
class NamedTask(Task):
    """What all environments of a run have in common, where observations name their task in a leaf `TASK_LEAF`.

    Attributes:
        unnamed: what each environment itself observes and does.
    """

    unnamed: Task


def common_task(env_ids: Sequence[str], tasks: Sequence[Task], named: bool) -> Task:
    """What the tasks of a run have in common; the one there is, where it is the only one.

    Args:
        env_ids: of the environments, one for each task.
        tasks: of the environments.
        named: whether observations name their task.

    Raises:
        ConfigError: two of them differ in their observations or actions, or can't be named.
    """
    first = tasks[0]
    for env_id, task in zip(env_ids, tasks, strict=True):
        _require_alike(env_ids[0], first, env_id, task)
    limits = [task.max_episode_steps for task in tasks if task.max_episode_steps is not None]
    common = Task(
        first.observation,
        first.action,
        min(limits, default=None),
        all(task.layout_invariant for task in tasks),
        first.info_mask_size,
    )
    return _name(env_ids[0], common, len(tasks)) if named else common


def _require_alike(env_id: str, task: Task, other_id: str, other: Task) -> None:
    both = f"--env: {env_id} and {other_id} can't be trained together"
    for what, mine, theirs in (("observes", task.observation, other.observation), ("does", task.action, other.action)):
        if mine != theirs:
            one, two = _describe(mine), _describe(theirs)
            bounds = " within other bounds" if one == two else ""
            raise ConfigError(f"{both}: the first {what} {one}, the second {two}{bounds}")
    if task.info_mask_size != other.info_mask_size:
        places = ["infos" if each.info_mask_size else "observations" for each in (task, other)]
        raise ConfigError(f"{both}: the first has its action mask in its {places[0]}, the second in its {places[1]}")


def _describe(space: Space) -> str:
    """A space in words."""
    if space.kind == "packed":
        return "(" + ", ".join(f"{name}: {_describe(leaf)}" for name, leaf in space.leaves) + ")"
    if space.kind == "discrete":
        return f"one of {space.num_choices} choices"
    if space.kind == "multi_discrete":
        return f"choices of {list(space.nvec)} in {list(space.shape)}"
    return f"{space.kind} {list(space.shape)} {space.dtype}"


def _name(env_id: str, task: Task, num_tasks: int) -> NamedTask:
    leaves = task.observation.leaves or ((_PLAIN, task.observation),)
    if any(name == TASK_LEAF for name, _ in leaves):
        raise ConfigError(f"--task-id adds {TASK_LEAF!r} to the observations, which those of {env_id} have already")
    leaf = (TASK_LEAF, Space("discrete", (), "int64", num_tasks))
    observation = packed((*leaves, leaf))
    limits = (task.max_episode_steps, task.layout_invariant, task.info_mask_size)
    return NamedTask(observation, task.action, *limits, unnamed=task)
