"""The environments of a run alone: stepped with random actions, and nothing learned."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from hpcrl.config import TrainConfig
from hpcrl.envs.codec import leaf_views
from hpcrl.envs.task_episodes import make_episodes
from hpcrl.envs.tasks import divide
from hpcrl.envs.world import worlds_of
from hpcrl.spaces import ACTION_MASK, Space, Task

_DRAWN = 256
_WARM_UP = 20
_WIDEST = 1e3


def random_rate(config: TrainConfig, task: Task, num_envs: int, seconds: float) -> float:
    """Env steps a second of this process: `num_envs` environments of a run, dealt to its tasks. Local."""
    worlds = worlds_of(config)
    groups = [block for block in divide(range(num_envs), len(worlds)) if block]
    envs = [
        make_episodes(world, task, len(block), block.start, config.seed)
        for world, block in zip(worlds, groups, strict=False)
    ]
    rng = np.random.default_rng(config.seed)
    drawn = [[random_actions(task.action, len(block), rng) for _ in range(_DRAWN)] for block in groups]
    calls, start = -_WARM_UP, time.perf_counter()
    while calls <= 0 or time.perf_counter() < start + seconds:
        if calls == 0:
            start = time.perf_counter()
        for env, actions in zip(envs, drawn, strict=True):
            chosen = actions[calls % _DRAWN]
            env.step(allowed_actions(task, env.observation, rng) if task.has_action_mask else chosen)
        calls += 1
    rate = calls * num_envs / (time.perf_counter() - start)
    for env in envs:
        env.close()
    return rate


def random_actions(space: Space, size: int, rng: np.random.Generator) -> NDArray:
    """Actions [size, *space.shape] in their stored form, each number drawn evenly; normally where it has no bounds."""
    if space.kind == "packed":
        elements = np.zeros((size, space.nbytes), np.uint8)
        leaves = dict(space.leaves)
        for name, view in leaf_views(space, elements).items():
            view[...] = random_actions(leaves[name], size, rng)
        return elements
    if space.kind == "box":
        low, high = (np.array(bound, np.float64).reshape(space.shape) for bound in (space.low, space.high))
        normal = rng.standard_normal((size, *space.shape))
        is_bounded = (low > -_WIDEST) & (high < _WIDEST)
        low_or_0, width_or_0 = (
            np.where(is_bounded, low, 0),
            np.where(is_bounded, high, 0) - np.where(is_bounded, low, 0),
        )
        even = low_or_0 + rng.random(normal.shape) * width_or_0
        return np.where(is_bounded, even, np.clip(normal, low, high)).astype(space.dtype)
    choices = {"discrete": space.num_choices, "multi_binary": 2}.get(space.kind)
    highest = np.array(space.nvec).reshape(space.shape) if choices is None else choices
    return rng.integers(0, highest, (size, *space.shape)).astype(space.dtype)


def allowed_actions(task: Task, observation: NDArray, rng: np.random.Generator) -> NDArray:
    """Actions [B, ...] drawn evenly from those that the masks in packed observations uint8 [B, bytes] allow."""
    mask = leaf_views(task.observation, observation)[ACTION_MASK].reshape(len(observation), -1) != 0
    scores = rng.random(mask.shape) + mask
    sizes = task.action.nvec or (task.action.num_choices,)
    ends = np.cumsum(sizes)
    numbers = [scores[:, end - size : end].argmax(1) for end, size in zip(ends, sizes, strict=True)]
    return np.stack(numbers, 1).reshape(len(observation), *task.action.shape).astype(task.action.dtype)
