"""What all ranks do together between two updates, as the learners agreed."""

from __future__ import annotations

from enum import IntFlag

from hpcrl.config import TrainConfig


class Boundary(IntFlag):
    """Flags of a control word; acted upon in this order by every rank, before the next unroll."""

    NONE = 0
    EVALUATE = 1
    REPORT = 2
    SAVE = 4
    STOP = 8


def decide(config: TrainConfig, before: int, after: int, stop_requested: bool, save_requested: bool) -> Boundary:
    """What is due once an update has taken the run from `before` to `after` environment steps.

    A function of numbers that all learners share, so that all decide the same. A stop that was asked for saves but
    reports nothing: the iteration goes on when the run is resumed.
    """
    flags = Boundary.NONE
    if _crossed(config.eval_every, before, after):
        flags |= Boundary.EVALUATE
    if iteration_of(config, after) > iteration_of(config, before):
        flags |= Boundary.REPORT
    if save_requested or _crossed(config.checkpoint_every, before, after):
        flags |= Boundary.SAVE
    if is_milestone(config, before, after):
        flags |= Boundary.SAVE
    if after >= config.total_env_steps or stop_requested:
        flags |= Boundary.SAVE | Boundary.STOP
    return flags


def due_at_start(config: TrainConfig, env_steps: int) -> Boundary:
    """What is due before the first update of a run, or of its resume, that stands at `env_steps`."""
    if env_steps >= config.total_env_steps:
        return Boundary.STOP
    return Boundary.EVALUATE | Boundary.REPORT if config.eval_at_start and env_steps == 0 else Boundary.NONE


def iteration_of(config: TrainConfig, env_steps: int) -> int:
    """Whole iterations that `env_steps` make up, at most num_iterations."""
    return min(env_steps * config.num_iterations // config.total_env_steps, config.num_iterations)


def is_milestone(config: TrainConfig, before: int, after: int) -> bool:
    """Whether a checkpoint at `after` env steps, the one before it being at `before`, stays for ever."""
    return _crossed(config.checkpoint_milestones, before, after)


def _crossed(interval: int, before: int, after: int) -> bool:
    return interval > 0 and after // interval > before // interval
