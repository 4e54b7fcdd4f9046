"""What a rank holds where gradients are applied as they arrive: a worker, an owner of a shard, or both."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcrl.algorithms.optimizers import make_optimizer
from hpcrl.cluster.collectives import gather
from hpcrl.cluster.gradients import check_in_sync
from hpcrl.cluster.mesh import Mesh
from hpcrl.cluster.ranks import Ranks
from hpcrl.cluster.shards import ShardedWeights, split_weights
from hpcrl.cluster.waiting import Waiter
from hpcrl.config import A3CConfig
from hpcrl.envs.tasks import Group
from hpcrl.roles.async_rank import AsyncRank
from hpcrl.roles.async_worker import AsyncWorker
from hpcrl.roles.inference import OwnInference
from hpcrl.roles.parameter_owner import ParameterOwner
from hpcrl.roles.snapshot import load_optimizer
from hpcrl.roles.station import Station
from hpcrl.signals import Requests
from hpcrl.spaces import Task


class AsynchronousStation(Station):
    """The parts of one rank. Collective over the world to make.

    Attributes:
        owner: of a shard, on ranks that own one.
    """

    def __init__(self, config: A3CConfig, task: Task, ranks: Ranks, requests: Requests, waiter: Waiter) -> None:
        super().__init__(config, task, ranks, requests, waiter)
        self._a3c = config
        self._owners = ranks.layout.learners
        self._shards = split_weights(len(self.flat), len(self._owners))
        self._mesh = Mesh(ranks, self._shards, waiter)
        subscribers = self._mesh.subscribers()
        weights = ShardedWeights(self.flat.weights.detach().numpy(), self._shards, subscribers)
        self.owner = self._make_owner() if ranks.is_learner else None
        worker = self._make_worker(weights) if ranks.is_actor else None
        if self.actor is not None and not self.actor.num_envs:
            worker = None
        self._rank = AsyncRank(
            ranks.world, self._owners, worker, self.owner, weights, subscribers[0], waiter, self._check_in_sync
        )
        self.role = self._rank
        self._checked = 0

    def _own_shard(self) -> slice:
        return self._shards[self._owners.index(self._ranks.rank)]

    def _make_owner(self) -> ParameterOwner:
        owner = ParameterOwner(
            self._a3c,
            self.flat.weights[self._own_shard()],
            self._mesh.receivers(),
            self._mesh.publisher(),
            self._ranks.rank == self._owners[0],
            self._requests,
            self._waiter,
        )
        self._waiter.chores.append(owner.serve)
        return owner

    def _make_worker(self, weights: ShardedWeights) -> AsyncWorker:
        block = self._ranks.layout.env_blocks[self._ranks.rank]
        # A worker without environments has a group without any.
        groups = self.groups_of(block) or [Group(0, block)]
        network = self.acting_network()
        self.actor = self.make_actor(groups, OwnInference(network, len(groups)), epsilon=0.0)
        return AsyncWorker(
            self._a3c,
            self.actor,
            self.unroll_spec(block),
            self.policy,
            self.flat,
            weights,
            self._mesh.senders(),
            self._shards,
            self._waiter,
        )

    def _check_in_sync(self, version: int) -> None:
        """Compare the weights of all ranks where enough updates have gone by. Collective over the world."""
        every = self._a3c.check_in_sync_every
        if every and self._ranks.size > 1 and version - self._checked >= every:
            self._checked = version
            check_in_sync(self._ranks.world, self.flat.weights, version, self._waiter, "rank")

    def gather_optimizer(self) -> Mapping[str, Tensor] | None:
        """Shard by shard, from their owners; None but on rank 0."""
        state = {} if self.owner is None else self.owner.optimizer.state
        mine = {key: part.numpy() for key, part in state.items()}
        parts = gather(self._ranks.world, mine, self._waiter)
        if not parts:
            return None
        whole = self._whole_optimizer()
        for shard, owner in zip(self._shards, self._owners, strict=True):
            for key, value in whole.items():
                # Single numbers are the same in every shard.
                part = torch.from_numpy(parts[owner][key])
                (value[shard] if value.dim() else value).copy_(part)
        return whole

    def _whole_optimizer(self) -> dict[str, Tensor]:
        return make_optimizer(self.flat.weights, self._a3c).state

    def restore(
        self, arrays: Mapping[str, NDArray], env_steps: int, learner_updates: int, updates: Mapping[str, NDArray]
    ) -> None:
        """The owner's part of the optimizer, and its counters."""
        if self.owner is not None:
            state = self._whole_optimizer()
            load_optimizer(self.flat, state, arrays)
            for key, value in self.owner.optimizer.state.items():
                value.copy_(state[key][self._own_shard()] if value.dim() else state[key])
            self.owner.env_steps, self.owner.version = env_steps, learner_updates
        if self._ranks.rank == 0:
            self._rank.reducer.restore(updates)

    def _close_links(self) -> None:
        self._mesh.close()
