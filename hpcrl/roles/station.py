"""What one rank holds: the policy, its loop, and the ends of its transports; what all algorithms share of it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

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
from hpcrl.models.flat import FlatParameters
from hpcrl.models.policy import Policy
from hpcrl.roles.actor import Actor
from hpcrl.roles.inference import Inference
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
        actor: acts, on ranks that do.
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
        limit_threads(config.learner_cores if ranks.is_learner else 1)
        keep_freed_memory()
        self.actor: Actor | None = None
        self.restarts = Restarts(config.env_restarts, sleep=self._rest)
        self.role: Role

    def unroll_spec(self, block: range, versioned: bool = False) -> UnrollSpec:
        """Sizes of the unrolls of a block of environments. Local."""
        finals = num_finals(self._task, self._config.unroll_length, len(block))
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
            )
            for group in groups
        ]
        head, requests, waiter = self.policy.head, self._requests, self._waiter
        return Actor(rank, envs, inference, head, epsilon, config.seed, requests, waiter, self.memory)

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
