"""Evaluations during a run: episodes dealt out over the actors, and one score of them all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpcrl.cluster.collectives import gather
from hpcrl.cluster.ranks import Ranks
from hpcrl.cluster.waiting import Waiter
from hpcrl.config import TrainConfig
from hpcrl.envs.world import evaluation_worlds
from hpcrl.metrics import Row
from hpcrl.roles.evaluation import Played, joined, play
from hpcrl.roles.station import Station
from hpcrl.spaces import Task


def evaluate(config: TrainConfig, task: Task, ranks: Ranks, station: Station, waiter: Waiter) -> Row:
    """Play the episodes of an evaluation, dealt out over the actors. Collective over the world.

    Returns:
        its columns, as `score` gives them, on rank 0; {} elsewhere.
    """
    results: list[Played] = []
    if station.actor is not None:
        results = _play_share(config, task, ranks, station, waiter)
    parts = gather(ranks.world, results, waiter)
    if not parts:
        return {}
    by_task = zip(*(part for part in parts if part), strict=True)
    return score(config.env_ids, [joined(results) for results in by_task])


def _play_share(config: TrainConfig, task: Task, ranks: Ranks, station: Station, waiter: Waiter) -> list[Played]:
    """This actor's episodes of each task. Local."""
    actors, worlds = ranks.layout.actors, evaluation_worlds(config)
    shares = share(len(worlds), config.eval_episodes, actors.index(ranks.rank), len(actors))
    options = (config.seed, config.eval_deterministic, waiter.tick, station.evaluation_recorder)
    return [
        play(station.policy, world, task, episodes, *options) for world, episodes in zip(worlds, shares, strict=True)
    ]


def share(num_tasks: int, num_episodes: int, place: int, count: int) -> list[range]:
    """Which of the episodes of each task the one at `place` among `count` plays."""
    first, end = (num_tasks * num_episodes * edge // count for edge in (place, place + 1))
    starts = [task * num_episodes for task in range(num_tasks)]
    return [range(*(min(max(edge - start, 0), num_episodes) for edge in (first, end))) for start in starts]


def score(env_ids: Sequence[str], results: Sequence[Played]) -> Row:
    """The columns of an evaluation: the means over the tasks of mean and standard deviation, and each task's mean.

    Args:
        env_ids: of the tasks.
        results: of each task.
    """
    returns = [played.returns for played in results]
    row = {
        "eval/episode_return_mean": float(np.mean([task.mean() for task in returns])),
        "eval/episode_return_std": float(np.mean([task.std() for task in returns])),
    }
    if len(env_ids) > 1:
        means = zip(env_ids, returns, strict=True)
        row |= {f"eval/episode_return_mean/{env_id}": float(task.mean()) for env_id, task in means}
    return row
