"""What one rank holds: the policy, its loop, and the ends of its transports, put together from a layout."""

from __future__ import annotations

import os

import threadpoolctl
import torch

from hpcrl.algorithms.a2c import STATISTICS
from hpcrl.cluster.links import Links
from hpcrl.cluster.ranks import Ranks
from hpcrl.cluster.transport import UnrollReceiver
from hpcrl.cluster.waiting import Waiter
from hpcrl.config import A2CConfig
from hpcrl.envs.episodes import EpisodeEnvs
from hpcrl.errors import ConfigError
from hpcrl.models.flat import FlatParameters
from hpcrl.models.policy import Policy
from hpcrl.roles.actor import Actor, ActorRank
from hpcrl.roles.learner import HostedReceiver, Learner
from hpcrl.signals import Requests
from hpcrl.spaces import Task
from hpcrl.unroll import UnrollSpec, num_finals


class Station:
    """The parts of one rank. Collective over the world to make.

    Attributes:
        policy, flat: the network and its flat vector; on a learner with room for statistics behind the gradient.
        actor: acts, on ranks that do.
        learner: learns, on ranks that do.
        role: the loop of this rank: the learner (which hosts its actor, where it has one), else the acting one.
    """

    def __init__(self, config: A2CConfig, task: Task, ranks: Ranks, requests: Requests, waiter: Waiter) -> None:
        self._config, self._task, self._ranks = config, task, ranks
        self._requests, self._waiter = requests, waiter
        self.policy = make_policy(config, task)
        self.flat = FlatParameters(self.policy, len(STATISTICS) if ranks.is_learner else 0)
        limit_threads(config.learner_cores if ranks.is_learner else 1)
        blocks = ranks.layout.env_blocks
        self._specs = {actor: _unroll_spec(config, task, block) for actor, block in blocks.items()}
        self._links = Links(ranks, self._specs, len(self.flat))
        self.actor = self._make_actor() if ranks.is_actor else None
        self.learner = self._make_learner() if ranks.is_learner else None
        self.role: Learner | ActorRank = self.learner or self._make_actor_rank()

    def _make_actor(self) -> Actor:
        config, rank = self._config, self._ranks.rank
        block = self._ranks.layout.env_blocks[rank]
        envs = EpisodeEnvs(config.env, config.vector, self._task, len(block), block.start, config.seed)
        return Actor(rank, envs, self.policy, config.seed, self._requests, self._waiter)

    def _make_actor_rank(self) -> ActorRank:
        assert self.actor is not None, "a rank acts or learns"
        return ActorRank(self.actor, self.flat.weights, self._links.subscriber(), self._links.sender(), self._waiter)

    def _make_learner(self) -> Learner:
        assert self._ranks.learners is not None
        fed_by = self._ranks.layout.actors_of(self._ranks.rank)
        return Learner(
            self._config,
            self._ranks.learners,
            self.policy,
            self.flat,
            [self._make_receiver(actor) for actor in fed_by],
            [self._specs[actor] for actor in fed_by],
            self._links.publisher(),
            self._requests,
            self._waiter,
        )

    def _make_receiver(self, actor: int) -> UnrollReceiver:
        if actor == self._ranks.rank:
            assert self.actor is not None
            return HostedReceiver(self.actor, actor, self._specs[actor])
        return self._links.receiver(actor)

    def close(self) -> None:
        """Close the environments and the links. Collective over the world."""
        if self.actor is not None:
            self.actor.envs.close()
        self._links.close(self._waiter)


def make_policy(config: A2CConfig, task: Task) -> Policy:
    """The untrained policy: a function of the configuration alone. Local."""
    # One thread first: the factorisation in the initial weights rounds differently on several.
    limit_threads(1)
    policy = Policy(task, config.hidden_sizes, config.activation, config.shared_encoder)
    policy.initialise(config.seed)
    return policy


def limit_threads(cores: int) -> None:
    """Keep torch's, OpenMP's and BLAS's pools to the cores that a rank owns. Local.

    Raises:
        ConfigError: more cores than this process may use.
    """
    available = len(os.sched_getaffinity(0))
    if cores > available:
        raise ConfigError(f"--learner-cores {cores} is more than the {available} cores that this rank may use")
    torch.set_num_threads(cores)
    threadpoolctl.threadpool_limits(cores)


def _unroll_spec(config: A2CConfig, task: Task, block: range) -> UnrollSpec:
    finals = num_finals(task, config.unroll_length, len(block))
    return UnrollSpec(task, config.unroll_length, len(block), block.start, finals)
