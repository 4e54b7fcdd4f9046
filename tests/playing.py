"""An actor in one process, with its own network or asking a learner that sits beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import tests.no_mpi  # noqa: F401

# isort: split
import torch

from hpcrl.activity import Activity, Phase
from hpcrl.cluster.inference import QuestionSpec, SharedChannel, group_sizes
from hpcrl.envs.episodes import EpisodeEnvs
from hpcrl.envs.factory import describe_task
from hpcrl.envs.world import World
from hpcrl.models.acting import ActingNetwork
from hpcrl.roles.actor import Actor
from hpcrl.roles.batching import Batcher
from hpcrl.roles.inbox import Piece
from hpcrl.roles.inference import AnsweringService, Inference, LearnerInference, OwnInference
from hpcrl.signals import Requests
from hpcrl.unroll import Unroll, UnrollSpec, aligned_zeros
from tests.policies import policy_of

SEED, TIME = 5, 8


class Blocked(Exception):
    """A wait that only another rank can end."""


class BusyWaiter:
    """A waiter that doesn't sleep: what others would do meanwhile is called, and must help."""

    def __init__(self) -> None:
        self.activity, self.ticks = Activity(), 0
        self.chores: list[Callable[[], bool]] = []

    def tick(self) -> None:
        self.ticks += 1

    def until(self, ready: Callable[[], bool], _phase: Phase = Phase.WAITING, longest_sleep_s: float = 0.0) -> None:
        while not ready():
            if not any([chore() for chore in self.chores]):
                raise Blocked


class Playing:
    """An actor, and what it was made of."""

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        num_finals: int,
        first_env: int = 0,
        rank: int = 3,
        vector: Literal["sync", "native"] = "sync",
        epsilon: float = 0.0,
        central: bool = False,
        time: int = TIME,
    ) -> None:
        task = describe_task(World(env_id, vector))
        self.policy = policy_of(task, (6,))
        self.policy.initialise(2)
        self.requests, self.waiter = Requests(), BusyWaiter()
        sizes = group_sizes(num_envs) if central else [num_envs]
        firsts = [first_env + sum(sizes[:group]) for group in range(len(sizes))]
        self.groups = [
            EpisodeEnvs(World(env_id, vector), task, size, first, SEED)
            for size, first in zip(sizes, firsts, strict=True)
        ]
        self.envs = self.groups[0]
        self.spec = UnrollSpec(task, time, num_envs, first_env, num_finals, central)
        inference: Inference = OwnInference(ActingNetwork(self.policy), 1)
        self.channels: list[SharedChannel] = []
        if central:
            with torch.no_grad():
                num_parameters = self.policy(torch.from_numpy(self.envs.observation.copy()))[0].shape[-1]
            specs = [QuestionSpec(task.observation, size, num_parameters) for size in sizes]
            memories = [aligned_zeros(spec.nbytes) for spec in specs]
            ends = [
                (SharedChannel(*both, no_fence), SharedChannel(*both, no_fence))
                for both in zip(specs, memories, strict=True)
            ]
            self.channels = [asking for asking, _ in ends]
            waiter = cast(Any, self.waiter)
            answering = [end for _, end in ends]
            self.learner_updates = 0
            self.service = AnsweringService(ActingNetwork(self.policy), answering, lambda: self.learner_updates, waiter)
            self.waiter.chores.append(self.service.serve)
            inference = LearnerInference(self.channels, waiter)
        self.inference = inference
        self.actor = Actor(
            rank,
            self.groups,
            inference,
            self.policy.head,
            epsilon,
            SEED,
            self.requests,
            cast(Any, self.waiter),
        )

    def fill(self, version: int = 0) -> Unroll:
        """One unroll, over memory that held something else before."""
        unroll = Unroll(self.spec)
        unroll.buffer[:] = 1
        self.actor.fill(unroll, version)
        return unroll


def no_fence() -> None:
    """For memory that one process alone uses."""


def whole(unroll: Unroll) -> Piece:
    """All columns of an unroll."""
    return Piece(unroll, 0, unroll.spec.num_envs)


def stacked(*pieces: Piece) -> Any:
    """Pieces as a batch in memory of its own."""
    spec = pieces[0].unroll.spec
    batcher = Batcher(spec.task, spec.unroll_length)
    batcher.stack(pieces)
    return batcher.batch
