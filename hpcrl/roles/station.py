"""What one rank holds: the policy, its loop, and the ends of its transports; what all algorithms share of it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import threadpoolctl
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcrl.cluster.affinity import usable_cpus
from hpcrl.cluster.ranks import Ranks
from hpcrl.cluster.waiting import Waiter
from hpcrl.config import ActorCriticConfig, TrainConfig
from hpcrl.envs.restarts import Restarts
from hpcrl.envs.task_episodes import make_episodes
from hpcrl.envs.tasks import Group, divide, groups_of
from hpcrl.envs.world import worlds_of
from hpcrl.errors import ConfigError
from hpcrl.models.acting import ActingNetwork, can_value_later
from hpcrl.models.flat import FlatParameters
from hpcrl.models.policy import Policy
from hpcrl.roles.actor import Actor
from hpcrl.roles.evaluation_recording import EvaluationRecorder
from hpcrl.roles.inference import Inference
from hpcrl.roles.recording import make_recording
from hpcrl.roles.replaying import ReplayActor, Source, shuffled
from hpcrl.roles.role import Role
from hpcrl.signals import Requests
from hpcrl.spaces import Task
from hpcrl.unroll import Memory, UnrollSpec, num_finals

#: Just below the largest threshold that glibc learns from what is freed.
_LARGEST_KEPT_BYTES = 31 * 2**20


class Station(ABC):
    """The parts of one rank. Collective over the world to make.

    Args:
        config, task, ranks, requests, waiter: of the rank.
        num_extra: numbers that travel with the gradient.

    Attributes:
        policy, flat: the network and its flat vector.
        memory: what unrolls keep of the time before them.
        source: what the run learns from instead of acting; None where actors act.
        actor: acts, on ranks that do.
        evaluation_recorder: records the episodes of evaluations; None where nothing does.
        restarts: of this rank's environments.
        role: the loop of this rank.
    """

    def __init__(
        self,
        config: ActorCriticConfig,
        task: Task,
        ranks: Ranks,
        requests: Requests,
        waiter: Waiter,
        num_extra: int = 0,
    ) -> None:
        self._config, self._task, self._ranks = config, task, ranks
        self._requests, self._waiter = requests, waiter
        self.policy = make_policy(config, task)
        self.memory = Memory(self.policy.state_size, config.frame_stack - 1, config.normalise_returns)
        self.flat = FlatParameters(self.policy, num_extra)
        self.source = None if config.source is None else Source(config, task, self.policy)
        limit_threads(config.learner_cores if ranks.is_learner else 1)
        keep_freed_memory()
        self.actor: Actor | ReplayActor | None = None
        self.evaluation_recorder: EvaluationRecorder | None = None
        self.restarts = Restarts(config.env_restarts, sleep=self._rest)
        self.role: Role

    def unroll_spec(self, block: range, versioned: bool = False) -> UnrollSpec:
        """Sizes of the unrolls of a block of environments. Local."""
        finals = num_finals(self._task, self._config.unroll_length, len(block))
        if self.source is not None:
            finals = len(block) * self.source.finals_per_column
        return UnrollSpec(
            self._task, self._config.unroll_length, len(block), block.start, finals, versioned, self.memory
        )

    def groups_of(self, block: range, sizes: Callable[[int], Sequence[int]] = lambda size: [size]) -> list[Group]:
        """The groups of a block of environments: those of each task, cut further as `sizes` says. Local."""
        return groups_of(block, divide(range(self._config.num_envs), len(self._config.env_ids)), sizes)

    def make_actor(self, groups: Sequence[Group], inference: Inference, epsilon: float) -> Actor:
        """This rank's actor. Local."""
        config, rank = self._config, self._ranks.rank
        worlds = worlds_of(config)
        envs = [
            make_episodes(
                worlds[group.task],
                self._task,
                len(group.envs),
                group.envs.start,
                config.seed,
                gamma=config.gamma,
                restarts=self.restarts,
                keep_lasts=config.record_trajectories,
            )
            for group in groups
        ]
        head, requests, waiter = self.policy.head, self._requests, self._waiter
        return Actor(rank, envs, inference, head, epsilon, config.seed, requests, waiter, self.memory)

    def record(self, directory: Path, number: int, env_steps: int) -> None:
        """Record what this rank's actor does from now on. Local.

        Args:
            directory: of the shards.
            number: of the first one.
            env_steps: that the run has learned from.
        """
        if self.actor is None:
            return
        config, rank, task, memory = self._config, self._ranks.rank, self._task, self.memory
        if config.record_trajectories:
            envs = self._ranks.layout.env_blocks[rank]
            recording = make_recording(config, task, self.policy, memory, rank, envs, directory, number)
            if recording is not None:
                recording.env_steps = env_steps
            self.actor.recording = recording
        if config.record_evaluation:
            self.evaluation_recorder = EvaluationRecorder(config, task, memory, rank, directory, number)

    def recording_failures(self) -> int:
        """How often the disk refused what this rank records. Local."""
        recording = None if self.actor is None else self.actor.recording
        both = (recording, self.evaluation_recorder)
        return sum(each.complaints.count for each in both if each is not None)

    def make_replay(self, source: Source) -> ReplayActor:
        """This rank's actor where nothing is acted. Local."""
        config, rank = self._config, self._ranks.rank
        order = shuffled(config.seed, source.num_columns)
        envs = self._ranks.layout.env_blocks[rank]
        parts = (self._requests, self._waiter, self.memory)
        return ReplayActor(rank, source, order, envs, config.num_envs, *parts)

    def acting_network(self) -> ActingNetwork:
        """The network of an actor that has its own. Local."""
        return ActingNetwork(self.policy, self._config.record_trajectories and not can_value_later(self.policy))

    def _rest(self, seconds: float) -> None:
        """Sleep, with signs of life. Local."""
        end = time.monotonic() + seconds
        self._waiter.until(lambda: time.monotonic() >= end)

    @abstractmethod
    def gather_optimizer(self) -> Mapping[str, Tensor] | None:
        """What the optimizer remembers of all weights, on rank 0 (elsewhere maybe None). Collective over the world."""

    def normaliser_arrays(self) -> Mapping[str, NDArray]:
        """What normalises observations and rewards, on rank 0. Local."""
        return {}

    @abstractmethod
    def restore(
        self, arrays: Mapping[str, NDArray], env_steps: int, learner_updates: int, updates: Mapping[str, NDArray]
    ) -> None:
        """Go on from where a checkpoint stands; the weights are in `flat` already. Local.

        Args:
            arrays: of the checkpoint, `optimizer/...` among them.
            env_steps, learner_updates: so far.
            updates: what rank 0's reducer knew of the running iteration.
        """

    def close(self) -> None:
        """Close the environments and the links. Collective over the world."""
        if self.actor is not None:
            self.actor.close()
        self._close_links()

    @abstractmethod
    def _close_links(self) -> None: ...


def make_policy(config: TrainConfig, task: Task) -> Policy:
    """The untrained policy: a function of the configuration alone. Local."""
    # One thread first: the factorisation in the initial weights rounds differently on several.
    limit_threads(1)
    policy = Policy(task, config)
    policy.initialise(config.seed)
    return policy


def limit_threads(cores: int) -> None:
    """Keep torch's, OpenMP's and BLAS's pools to the cores that a rank owns. Local.

    Raises:
        ConfigError: more cores than this process may use; its own only, where it has some.
    """
    available = len(usable_cpus())
    if cores > available:
        raise ConfigError(f"--learner-cores {cores} is more than the {available} CPUs that this rank may use")
    torch.set_num_threads(cores)
    threadpoolctl.threadpool_limits(cores)


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, for the next update. Local.

    glibc gives pieces of some megabytes back to the system and takes them anew at every update, page by page, until
    it has seen a larger one freed.
    """
    torch.empty(_LARGEST_KEPT_BYTES, dtype=torch.uint8)
