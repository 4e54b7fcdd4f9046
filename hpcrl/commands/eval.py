"""`hpcrl eval RUN_DIR`: plays the newest good checkpoint of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from numpy.typing import NDArray

from hpcrl.envs.factory import describe_task
from hpcrl.envs.tasks import common_task
from hpcrl.envs.world import evaluation_worlds
from hpcrl.errors import ConfigError
from hpcrl.models.flat import FlatParameters
from hpcrl.models.policy import Policy
from hpcrl.roles.evaluation import play_episodes
from hpcrl.roles.resume import checkpoint_config, require_policy
from hpcrl.roles.snapshot import load_weights
from hpcrl.storage.checkpoints import find_checkpoint


@dataclass(frozen=True)
class EvalOptions:
    """Play whole episodes with the policy of a checkpoint and print the mean and spread of their returns."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(help="Run directory, or one checkpoint file.")]
    episodes: Annotated[int, tyro.conf.arg(help="Episodes to play, of every task.")] = 100
    deterministic: Annotated[bool, tyro.conf.arg(help="Take the most likely action instead of sampling.")] = False
    seed: Annotated[int, tyro.conf.arg(help="Seed of environments and actions.")] = 0
    best: Annotated[bool, tyro.conf.arg(help="The best checkpoint instead of the newest.")] = False


def evaluate(arguments: Sequence[str]) -> int:
    """Play and print; the exit status."""
    options = tyro.cli(EvalOptions, prog="hpcrl eval", args=list(arguments), config=(tyro.conf.FlagCreatePairsOff,))
    if options.episodes < 1 or options.seed < 0:
        raise ConfigError(
            f"--episodes must be at least 1 and --seed at least 0, got {options.episodes}, {options.seed}"
        )
    checkpoint = find_checkpoint(options.run_dir, options.best)
    config = checkpoint_config(checkpoint)
    worlds = evaluation_worlds(config)
    task = common_task(config.env_ids, [describe_task(world) for world in worlds], config.task_id)
    policy = Policy(task, config)
    require_policy(checkpoint, policy)
    load_weights(FlatParameters(policy), checkpoint.arrays)
    print(f"{checkpoint.path} ({config.algorithm} on {config.env}, {checkpoint.attributes['env_steps']:,} env steps)")
    means = []
    for world in worlds:
        results = play_episodes(policy, world, task, range(options.episodes), options.seed, options.deterministic)
        means.append(results[:, 0].mean())
        print(("" if world.task is None else f"{world.env_id}: ") + _describe(results))
    if len(worlds) > 1:
        print(f"mean over {len(worlds)} tasks: return {np.mean(means):.2f}")
    return 0


def _describe(results: NDArray[np.float64]) -> str:
    """Returns and lengths [n, 2] of episodes in words."""
    returns, lengths = results.T
    return (
        f"{len(results)} episodes: return {returns.mean():.2f} +- {returns.std():.2f} "
        f"(min {returns.min():.2f}, median {np.median(returns):.2f}, max {returns.max():.2f}), "
        f"length {lengths.mean():.1f}"
    )
