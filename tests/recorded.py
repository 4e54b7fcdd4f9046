"""Runs whose actors record what they do, in one process and without a learner; what they did is kept beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import tests.no_mpi  # noqa: F401

# isort: split
import gymnasium as gym

from hpcrl.config import PPOConfig
from hpcrl.envs.factory import describe_task
from hpcrl.envs.task_episodes import make_episodes
from hpcrl.envs.world import worlds_of
from hpcrl.models.acting import ActingNetwork, can_value_later
from hpcrl.models.policy import Policy
from hpcrl.roles.actor import Actor
from hpcrl.roles.inference import OwnInference
from hpcrl.roles.recording import make_recording
from hpcrl.roles.snapshot import split_environments
from hpcrl.signals import Requests
from hpcrl.storage.run_directory import RunDirectory
from hpcrl.unroll import Memory, Unroll, UnrollSpec, num_finals
from tests.playing import BusyWaiter

TIME = 8

#: CartPole, but every episode is truncated after 18 steps; some fall before.
SHORT_CARTPOLE = "hpcrl-tests/ShortCartPole-v0"
gym.register(SHORT_CARTPOLE, "gymnasium.envs.classic_control.cartpole:CartPoleEnv", max_episode_steps=18)


def config_of(env: str, **options: Any) -> PPOConfig:
    """A run of four environments that records."""
    small: dict[str, Any] = {"num_envs": 4, "unroll_length": TIME, "hidden_sizes": (6,), "core_size": 5, "seed": 5}
    return PPOConfig(env=env, record_trajectories=True, **small | options)


class Acting:
    """The actors of a run, each of some of its environments, which record.

    Args:
        config: of the run.
        run_dir: of the run.
        sizes: environments of each actor; all belong to one where None.
        number: of the actors' first shards.
        spare_finals: rows for last observations beyond one for each environment; None for as many as may be needed.

    Attributes:
        policy: that acts.
        unrolls: of each actor, in the order of time.
    """

    def __init__(
        self,
        config: PPOConfig,
        run_dir: Path,
        sizes: Sequence[int] | None = None,
        number: int = 0,
        spare_finals: int | None = None,
    ) -> None:
        world = worlds_of(config)[0]
        task = describe_task(world)
        self.policy = Policy(task, config)
        self.policy.initialise(2)
        # Values that depend visibly on what is seen.
        self.policy.value_head.weight.data.mul_(3)
        memory = Memory(self.policy.state_size, self.policy.num_history, config.normalise_returns)
        self.sizes = list(sizes or [config.num_envs])
        self.unrolls: list[list[Unroll]] = [[] for _ in self.sizes]
        self._actors, self._specs = [], []
        for rank, size in enumerate(self.sizes):
            block = range(sum(self.sizes[:rank]), sum(self.sizes[: rank + 1]))
            options = {"gamma": config.gamma, "keep_lasts": True}
            envs = make_episodes(world, task, size, block.start, config.seed, **options)
            network = ActingNetwork(self.policy, not can_value_later(self.policy))
            inference, waiter = OwnInference(network, 1), cast(Any, BusyWaiter())
            head, requests = self.policy.head, Requests()
            actor = Actor(rank, [envs], inference, head, 0.0, config.seed, requests, waiter, memory)
            directory = RunDirectory(run_dir).trajectories
            actor.recording = make_recording(config, task, self.policy, memory, rank, block, directory, number)
            finals = num_finals(task, config.unroll_length, size) if spare_finals is None else size + spare_finals
            self._specs.append(UnrollSpec(task, config.unroll_length, size, block.start, finals, memory=memory))
            self._actors.append(actor)

    def act(self, num_unrolls: int, close: bool = True) -> None:
        """Some unrolls of each actor, in one shard; `close` is false where it stays open."""
        for actor, spec, unrolls in zip(self._actors, self._specs, self.unrolls, strict=True):
            for _ in range(num_unrolls):
                unroll = Unroll(spec)
                # Memory that held something else before.
                unroll.buffer[:] = 1
                actor.fill(unroll, policy_version=len(unrolls) // 2)
                unrolls.append(unroll)
            if close:
                assert actor.recording is not None
                actor.recording.close_shard(0)

    def go_on_from(self, other: Acting) -> None:
        """Put the environments where those of another layout are."""
        (state,) = [actor.state() for actor in other._actors]
        for actor, part in zip(self._actors, split_environments(state, self.sizes), strict=True):
            actor.restore(part)
