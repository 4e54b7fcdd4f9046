"""What one rank holds: the policy, its loop, and the ends of its transports, put together from a layout."""

from __future__ import annotations

import os

import threadpoolctl
import torch

from hpcrl.algorithms.loss import STATISTICS
from hpcrl.cluster.inference import QuestionSpec, group_sizes
from hpcrl.cluster.links import Links, LinkSizes
from hpcrl.cluster.ranks import Ranks
from hpcrl.cluster.transport import UnrollReceiver
from hpcrl.cluster.waiting import Waiter
from hpcrl.config import ActorCriticConfig, ImpalaConfig, TrainConfig
from hpcrl.envs.episodes import EpisodeEnvs
from hpcrl.errors import ConfigError
from hpcrl.models.acting import ActingNetwork
from hpcrl.models.flat import FlatParameters
from hpcrl.models.policy import Policy
from hpcrl.roles.actor import Actor, ActorRank
from hpcrl.roles.batching import Batcher
from hpcrl.roles.hosting import HostedReceiver
from hpcrl.roles.inference import AnsweringService, Inference, LearnerInference, OwnInference
from hpcrl.roles.intake import Intake
from hpcrl.roles.learner import Learner
from hpcrl.roles.schedule import make_schedule
from hpcrl.signals import Requests
from hpcrl.spaces import Task
from hpcrl.unroll import UnrollSpec, num_finals

#: Just below the largest threshold that glibc learns from what is freed.
_LARGEST_KEPT_BYTES = 31 * 2**20


class Station:
    """The parts of one rank. Collective over the world to make.

    Attributes:
        policy, flat: the network and its flat vector; on a learner with room for statistics behind the gradient.
        actor: acts, on ranks that do.
        learner: learns, on ranks that do.
        role: the loop of this rank: the learner (which hosts its actor, where it has one), else the acting one.
    """

    def __init__(self, config: ActorCriticConfig, task: Task, ranks: Ranks, requests: Requests, waiter: Waiter) -> None:
        self._config, self._task, self._ranks = config, task, ranks
        self._requests, self._waiter = requests, waiter
        self._central = isinstance(config, ImpalaConfig) and config.inference == "learner"
        self._schedule = make_schedule(config, hosted=ranks.layout.is_colocated)
        self.policy = make_policy(config, task)
        self.flat = FlatParameters(self.policy, len(STATISTICS) if ranks.is_learner else 0)
        limit_threads(config.learner_cores if ranks.is_learner else 1)
        keep_freed_memory()
        self._specs = {actor: self._unroll_spec(block) for actor, block in ranks.layout.env_blocks.items()}
        self._links = Links(ranks, self._link_sizes(), waiter)
        self.actor: Actor | None = None
        self.learner: Learner | None = None
        if ranks.is_actor:
            self.actor = self._make_actor()
        if ranks.is_learner:
            self.learner = self._make_learner()
        self.role: Learner | ActorRank = self.learner or self._make_actor_rank()

    def _unroll_spec(self, block: range) -> UnrollSpec:
        finals = num_finals(self._task, self._config.unroll_length, len(block))
        return UnrollSpec(self._task, self._config.unroll_length, len(block), block.start, finals, self._central)

    def _link_sizes(self) -> LinkSizes:
        blocks = self._ranks.layout.env_blocks
        questions = {}
        if self._central:
            observation = self._task.observation
            example = torch.zeros(1, *observation.shape, dtype=getattr(torch, observation.dtype))
            num_parameters = self.policy.parameters_of(example).shape[-1]
            questions = {
                actor: [QuestionSpec(observation, size, num_parameters) for size in group_sizes(len(block))]
                for actor, block in blocks.items()
            }
        schedule = self._schedule
        return LinkSizes(
            self._specs, questions, schedule.num_slots, len(self.flat), schedule.ring_slots, schedule.exact
        )

    def _make_actor(self) -> Actor:
        config, rank = self._config, self._ranks.rank
        block = self._ranks.layout.env_blocks[rank]
        sizes = group_sizes(len(block)) if self._central else [len(block)]
        groups, first = [], block.start
        for size in sizes or [0]:
            groups.append(EpisodeEnvs(config.env, config.vector, self._task, size, first, config.seed))
            first += size
        inference: Inference = OwnInference(ActingNetwork(self.policy), len(groups))
        if self._central:
            inference = LearnerInference(self._links.questions(), self._waiter)
        epsilon = config.behaviour_epsilon if isinstance(config, ImpalaConfig) else 0.0
        return Actor(rank, groups, inference, self.policy.head, epsilon, config.seed, self._requests, self._waiter)

    def _make_actor_rank(self) -> ActorRank:
        assert self.actor is not None, "a rank acts or learns"
        return ActorRank(
            self.actor,
            self._schedule,
            self.flat.weights,
            self._links.subscriber(),
            self._links.sender(),
            self._waiter,
            own_network=not self._central,
        )

    def _make_learner(self) -> Learner:
        assert self._ranks.learners is not None
        blocks = self._ranks.layout.env_blocks
        # An actor without environments sends nothing.
        fed_by = [actor for actor in self._ranks.layout.actors_of(self._ranks.rank) if blocks[actor]]
        intake = Intake(
            self._schedule,
            self._ranks.learners,
            self._ranks.rank,
            [self._make_receiver(actor) for actor in fed_by],
            sum(len(blocks[actor]) for actor in fed_by),
            Batcher(self._task, self._config.unroll_length),
            self._config.num_epochs,
            self._requests,
            self._waiter,
        )
        if self._central:
            channels = [channel for actor in fed_by for channel in self._links.answers(actor)]
            service = AnsweringService(ActingNetwork(self.policy), channels, self._version, self._waiter)
            self._waiter.chores.append(service.serve)
        return Learner(
            self._config,
            self._schedule,
            self._ranks.learners,
            self.policy,
            self.flat,
            intake,
            self._links.publisher(),
            self._waiter,
        )

    def _make_receiver(self, actor: int) -> UnrollReceiver:
        if actor != self._ranks.rank:
            return self._links.receiver(actor)
        assert self.actor is not None
        return HostedReceiver(self.actor, actor, self._specs[actor], self._schedule.num_slots, self._version)

    def _version(self) -> int:
        """Learner updates in this rank's weights; before there is a learner nobody acts with them."""
        return 0 if self.learner is None else self.learner.learner_updates

    def close(self) -> None:
        """Close the environments and the links. Collective over the world."""
        if self.actor is not None:
            self.actor.close()
        self._links.close()


def make_policy(config: TrainConfig, task: Task) -> Policy:
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


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, for the next update. Local.

    glibc gives pieces of some megabytes back to the system and takes them anew at every update, page by page, until
    it has seen a larger one freed.
    """
    torch.empty(_LARGEST_KEPT_BYTES, dtype=torch.uint8)
