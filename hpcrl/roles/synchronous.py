"""What a rank holds where gradients are summed over the learners: a learner, an actor, or both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcrl.algorithms.loss import STATISTICS
from hpcrl.cluster.backends import choose_reduction
from hpcrl.cluster.inference import AnswerChannel, QuestionSpec, group_sizes
from hpcrl.cluster.links import Links, LinkSizes
from hpcrl.cluster.ranks import Ranks
from hpcrl.cluster.reductions import Reduction
from hpcrl.cluster.transport import UnrollReceiver
from hpcrl.cluster.waiting import Waiter
from hpcrl.config import ActorCriticConfig, ImpalaConfig
from hpcrl.devices.accelerator import Accelerator
from hpcrl.envs.tasks import Group
from hpcrl.models.acting import ActingNetwork
from hpcrl.roles.actor import Actor, ActorRank
from hpcrl.roles.batching import Batcher
from hpcrl.roles.device_batching import DeviceBatcher
from hpcrl.roles.device_inference import DeviceAnsweringService, DeviceNetwork
from hpcrl.roles.hosting import HostedReceiver
from hpcrl.roles.inference import AnsweringService, Inference, LearnerInference, OwnInference
from hpcrl.roles.intake import Intake
from hpcrl.roles.learner import Learner
from hpcrl.roles.replaying import ReplayActor
from hpcrl.roles.schedule import make_schedule
from hpcrl.roles.snapshot import load_optimizer
from hpcrl.roles.station import Station
from hpcrl.roles.workplace import OnAccelerator, OnHost, Workplace, copy_of
from hpcrl.signals import Requests
from hpcrl.spaces import Task


class SynchronousStation(Station):
    """The parts of one rank. Collective over the world to make.

    Args:
        config, task, ranks, requests, waiter: of the rank.
        accelerator: what it learns on; None: the CPU.

    Attributes:
        learner: learns, on ranks that do; the loop of the rank then, which hosts its actor where it has one.
        why_reduction: how learners sum their gradients, and why, in a sentence; on those.
    """

    def __init__(
        self,
        config: ActorCriticConfig,
        task: Task,
        ranks: Ranks,
        requests: Requests,
        waiter: Waiter,
        accelerator: Accelerator | None = None,
    ) -> None:
        self._accelerator = accelerator
        self._reduction: Reduction | None = None
        self.why_reduction = ""
        super().__init__(config, task, ranks, requests, waiter, num_extra=len(STATISTICS) if ranks.is_learner else 0)
        self._central = isinstance(config, ImpalaConfig) and config.inference == "learner"
        self._schedule = make_schedule(config, hosted=ranks.layout.is_colocated)
        blocks = ranks.layout.env_blocks
        self._specs = {actor: self.unroll_spec(block, self._central) for actor, block in blocks.items()}
        self._links = Links(ranks, self._link_sizes(), waiter)
        self.learner: Learner | None = None
        if ranks.is_actor:
            self.actor = self._make_actor()
        if ranks.is_learner:
            self.learner = self._make_learner()
        self.role: Learner | ActorRank = self.learner or self._make_actor_rank()

    def _link_sizes(self) -> LinkSizes:
        blocks = self._ranks.layout.env_blocks
        questions = {}
        if self._central:
            dtype = getattr(torch, self.policy.space.dtype)
            example = torch.zeros(1, *self.policy.space.shape, dtype=dtype), torch.zeros(1, self.policy.state_size)
            # The value comes behind them.
            num_parameters = self.policy.step(*example)[0].shape[-1] + self._config.record_trajectories
            questions = {
                actor: [
                    QuestionSpec(self.policy.space, len(group.envs), num_parameters, self.policy.state_size)
                    for group in self.groups_of(block, group_sizes)
                ]
                for actor, block in blocks.items()
            }
        schedule = self._schedule
        return LinkSizes(
            self._specs, questions, schedule.num_slots, len(self.flat), schedule.ring_slots, schedule.exact
        )

    def _make_actor(self) -> Actor | ReplayActor:
        if self.source is not None:
            return self.make_replay(self.source)
        block = self._ranks.layout.env_blocks[self._ranks.rank]
        groups = self.groups_of(block, group_sizes) if self._central else self.groups_of(block)
        # An actor without environments has a group without any.
        groups = groups or [Group(0, block)]
        inference: Inference = OwnInference(self.acting_network(), len(groups))
        if self._central:
            inference = LearnerInference(self._links.questions(), self._waiter, self._config.record_trajectories)
        epsilon = self._config.behaviour_epsilon if isinstance(self._config, ImpalaConfig) else 0.0
        return self.make_actor(groups, inference, epsilon)

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
        receivers = [self._make_receiver(actor) for actor in fed_by]
        workplace = self._make_workplace(receivers)
        intake = Intake(
            self._schedule,
            self._ranks.learners,
            self._ranks.rank,
            receivers,
            sum(len(blocks[actor]) for actor in fed_by),
            workplace.batcher,
            self._config.num_epochs,
            self._requests,
            self._waiter,
        )
        if self._central:
            channels = [channel for actor in fed_by for channel in self._links.answers(actor)]
            self._waiter.chores.append(self._make_service(channels, workplace).serve)
        self._reduction, self.why_reduction = choose_reduction(
            self._config.allreduce, self._ranks.learners, workplace.flat.weights.device, self._waiter
        )
        return Learner(
            self._config,
            self._schedule,
            self._ranks.learners,
            workplace,
            self._reduction,
            self.flat,
            intake,
            self._links.publisher(),
            self._waiter,
        )

    def _make_workplace(self, receivers: Sequence[UnrollReceiver]) -> Workplace:
        unroll_length = self._config.unroll_length
        if self._accelerator is None:
            return OnHost(self.policy, self.flat, Batcher(self._task, unroll_length, self.memory))
        self._accelerator.pin(unroll.buffer for receiver in receivers for unroll in receiver.unrolls)
        batcher = DeviceBatcher(self._task, unroll_length, self._accelerator, self._waiter, self.memory)
        policy = copy_of(self.policy, self._config, self._task, self._accelerator)
        return OnAccelerator(policy, self.flat, batcher, self._accelerator, self._waiter, self._config.compile)

    def _make_service(
        self, channels: Sequence[AnswerChannel], workplace: Workplace
    ) -> AnsweringService | DeviceAnsweringService:
        accelerator = self._accelerator
        if accelerator is None:
            own = ActingNetwork(self.policy, self._config.record_trajectories)
            return AnsweringService(own, channels, self._version, self._waiter)
        policy = copy_of(self.policy, self._config, self._task, accelerator)
        num_envs = sum(len(channel.observation) for channel in channels)
        num_parameters = max((channel.parameters.shape[-1] for channel in channels), default=0)
        how, with_value = self._config.compile, self._config.record_trajectories
        network = DeviceNetwork(policy, workplace.flat, accelerator, num_envs, num_parameters, how, with_value)
        return DeviceAnsweringService(network, channels, self._version, self._waiter)

    def _make_receiver(self, actor: int) -> UnrollReceiver:
        if actor != self._ranks.rank:
            return self._links.receiver(actor)
        assert self.actor is not None
        return HostedReceiver(self.actor, actor, self._specs[actor], self._schedule.num_slots, self._version)

    def _version(self) -> int:
        """Learner updates in this rank's weights; before there is a learner nobody acts with them."""
        return 0 if self.learner is None else self.learner.learner_updates

    def gather_optimizer(self) -> Mapping[str, Tensor] | None:
        """Every learner has all of it; None elsewhere."""
        return None if self.learner is None else self.learner.optimizer.state

    def normaliser_arrays(self) -> Mapping[str, NDArray]:
        """What normalises observations and rewards, on learners; {} elsewhere. Local."""
        return {} if self.learner is None else self.learner.normalisers.state()

    def restore(
        self, arrays: Mapping[str, NDArray], env_steps: int, learner_updates: int, updates: Mapping[str, NDArray]
    ) -> None:
        """Optimizer and counters of the learner."""
        if self.learner is not None:
            load_optimizer(self.flat, self.learner.optimizer.state, arrays)
            normalisers = {
                path.removeprefix("normalisers/"): array
                for path, array in arrays.items()
                if path.startswith("normalisers/")
            }
            self.learner.restore(env_steps, learner_updates, updates, normalisers)

    def _close_links(self) -> None:
        if self._reduction is not None:
            self._reduction.close()
        if self._accelerator is not None:
            self._accelerator.close()
        self._links.close()
