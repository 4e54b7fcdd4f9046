"""The learner: unrolls in, one synchronised update, weights out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hpcrl.activity import Phase
from hpcrl.algorithms.a2c import STATISTICS, a2c_loss
from hpcrl.algorithms.batch import Batch
from hpcrl.algorithms.optimizers import linear, make_optimizer
from hpcrl.cluster.collectives import sum_over
from hpcrl.cluster.gradients import check_in_sync, sum_gradients
from hpcrl.cluster.mpi import Comm
from hpcrl.cluster.transport import UnrollReceiver
from hpcrl.cluster.waiting import Waiter
from hpcrl.cluster.weights import Control, WeightsPublisher
from hpcrl.config import A2CConfig
from hpcrl.errors import HpcrlError
from hpcrl.metrics import EPISODE, MeanReducer
from hpcrl.models.flat import FlatParameters
from hpcrl.models.policy import Policy
from hpcrl.roles.actor import Actor
from hpcrl.roles.batching import Batcher, finished_episodes
from hpcrl.roles.boundary import Boundary, decide
from hpcrl.signals import Requests
from hpcrl.unroll import Unroll, UnrollSpec

UPDATE_METRICS = (
    "train/policy_loss",
    "train/value_loss",
    "train/entropy",
    "train/explained_variance",
    "train/grad_norm",
    "train/clipped_grad_fraction",
    "train/approx_kl",
    "train/learning_rate",
)


class HostedReceiver:
    """The actor that a learner hosts, behind the interface of a transport: the hand-over is a function call."""

    def __init__(self, actor: Actor, rank: int, spec: UnrollSpec) -> None:
        self.actor = rank
        self._actor, self._unroll = actor, Unroll(spec)
        self.policy_version = 0

    def receive(self, waiter: Waiter) -> Unroll:
        """Act now, with the learner's own weights."""
        self._actor.fill(self._unroll, self.policy_version)
        return self._unroll

    def release(self) -> None:
        """Nothing to give back."""


class Agreement(NamedTuple):
    """Sums over the learners, int64, at the start of an update."""

    stop: int
    save: int
    steps: int
    cut: int


class Learner:
    """The loop of a rank that learns, one round at a time. Collective over `comm` where told.

    Attributes:
        policy, flat, optimizer: what is learned; the same on all learners.
        env_steps: environment steps learned from, over all learners.
        learner_updates: optimizer steps.
        reducer: means over updates of what `UPDATE_METRICS` names.
    """

    def __init__(
        self,
        config: A2CConfig,
        comm: Comm,
        policy: Policy,
        flat: FlatParameters,
        receivers: Sequence[UnrollReceiver],
        specs: Sequence[UnrollSpec],
        publisher: WeightsPublisher,
        requests: Requests,
        waiter: Waiter,
    ) -> None:
        self.config, self._comm = config, comm
        self.policy, self.flat = policy, flat
        self.optimizer = make_optimizer(flat.weights, config)
        self._receivers, self._batcher = receivers, Batcher(specs)
        self._publisher, self._requests, self._waiter = publisher, requests, waiter
        self.env_steps = self.learner_updates = 0
        self._episodes: list[np.ndarray] = []
        self.reducer = MeanReducer(UPDATE_METRICS)
        self.unrolls_cut = 0
        self._unroll_bytes = self._gradient_bytes = 0
        self._round = 0

    def start(self) -> Control:
        """Publish the first weights. Local."""
        if self.env_steps >= self.config.total_env_steps:
            return self._publish(Boundary.STOP)
        untrained = self.config.eval_at_start and self.env_steps == 0
        return self._publish(Boundary.EVALUATE | Boundary.REPORT if untrained else Boundary.NONE)

    def advance(self) -> Control:
        """One round: unrolls in, one update, weights out. Collective over the learners."""
        unrolls = [receiver.receive(self._waiter) for receiver in self._receivers]
        self._waiter.activity.enter(Phase.COMMUNICATING)
        batch = self._batcher.stack(unrolls)
        mine = self._note(unrolls)
        for receiver in self._receivers:
            receiver.release()
        agreed = Agreement(*sum_over(self._comm, np.array(mine, np.int64), self._waiter).tolist())
        before = self.env_steps
        if agreed.steps:
            self._waiter.activity.enter(Phase.LEARNING)
            self._learn(batch)
            self.env_steps += agreed.steps
            self.learner_updates += 1
            self._waiter.activity.beat(update=self.learner_updates)
            self._check_in_sync()
        self.unrolls_cut += agreed.cut
        return self._publish(decide(self.config, before, self.env_steps, bool(agreed.stop), bool(agreed.save)))

    def _note(self, unrolls: Sequence[Unroll]) -> Agreement:
        """Keep the episodes that ended; what this learner brings to the agreement. Local."""
        self._episodes += [finished_episodes(unroll) for unroll in unrolls]
        self._unroll_bytes += sum(unroll.spec.nbytes for unroll in unrolls)
        return Agreement(
            stop=(self._requests.stop is not None) + sum(unroll.stop_requested for unroll in unrolls),
            save=self._requests.take_save() + sum(unroll.save_requested for unroll in unrolls),
            steps=sum(int(unroll.valid.sum()) for unroll in unrolls),
            cut=sum(unroll.length < unroll.spec.unroll_length for unroll in unrolls),
        )

    def _learn(self, batch: Batch) -> None:
        """Loss, backward, allreduce, clip, step. Collective over the learners."""
        config, progress = self.config, self.env_steps / self.config.total_env_steps
        entropy_end = config.entropy_coef if config.entropy_coef_final is None else config.entropy_coef_final
        entropy_coef = linear(config.entropy_coef, entropy_end, progress)
        learning_rate = linear(config.learning_rate, config.learning_rate_final, progress)

        self.flat.reduced.zero_()
        loss = a2c_loss(
            self.policy, batch, config, entropy_coef, self._normalise if config.normalise_advantages else None
        )
        loss.total.backward()
        self.flat.tail.copy_(loss.statistics)
        sum_gradients(self._comm, self.flat.reduced, self._waiter)
        self._gradient_bytes += self.flat.reduced.nbytes if self._comm.size > 1 else 0

        sums = dict(zip(STATISTICS, self.flat.tail.tolist(), strict=True))
        norm, clipped = self._scale_and_clip(sums["steps"])
        self.optimizer.learning_rate = learning_rate
        self.optimizer.step()
        self.reducer.add(_update_metrics(sums, norm, clipped, learning_rate))

    def _scale_and_clip(self, steps: float) -> tuple[float, bool]:
        """Divide the summed gradient once, clip its norm; the norm before, and whether it was clipped. Local."""
        if self.config.loss_reduction == "mean":
            self.flat.gradient.div_(steps)
        norm = float(torch.linalg.vector_norm(self.flat.gradient))
        if not math.isfinite(norm):
            raise HpcrlError(
                f"update {self.learner_updates + 1} (env step {self.env_steps}) has a gradient norm of {norm}: "
                "a lower --learning-rate may help"
            )
        clipped = 0 < self.config.max_grad_norm < norm
        if clipped:
            self.flat.gradient.mul_(self.config.max_grad_norm / norm)
        return norm, clipped

    def _normalise(self, advantages: Tensor, valid: Tensor) -> Tensor:
        """Standardise by the mean and deviation over the valid steps of all learners, float64. Collective over them."""
        chosen = advantages[valid].double()
        sums = np.array([chosen.numel(), float(chosen.sum()), 0.0])
        count, total, _ = sum_over(self._comm, sums, self._waiter)
        mean = total / count
        squares = np.array([float((chosen - mean).square().sum())])
        deviation = math.sqrt(sum_over(self._comm, squares, self._waiter)[0] / count)
        return ((advantages - mean) / (deviation + 1e-8)).float()

    def _check_in_sync(self) -> None:
        every = self.config.check_in_sync_every
        if every and self._comm.size > 1 and self.learner_updates % every == 0:
            check_in_sync(self._comm, self.flat.weights, self.learner_updates, self._waiter)

    def _publish(self, flags: Boundary) -> Control:
        self._waiter.activity.enter(Phase.COMMUNICATING)
        control = Control(self._round, self.learner_updates, int(flags), self.env_steps)
        self._publisher.publish(control, self.flat.weights.detach().numpy(), self._waiter)
        for receiver in self._receivers:
            if isinstance(receiver, HostedReceiver):
                receiver.policy_version = self.learner_updates
        self._round += 1
        return control

    def take_traffic(self) -> tuple[int, int, int]:
        """Bytes of (gradients reduced, unrolls received, weights sent in messages) since the last call. Local."""
        taken = (self._gradient_bytes, self._unroll_bytes, self._publisher.sent_bytes)
        self._gradient_bytes = self._unroll_bytes = self._publisher.sent_bytes = 0
        return taken

    def take_episodes(self) -> np.ndarray:
        """Episodes of this learner's actors since the last call, dtype EPISODE. Local."""
        taken, self._episodes = self._episodes, []
        return np.concatenate(taken) if taken else np.empty(0, EPISODE)


def _update_metrics(sums: dict[str, float], norm: float, clipped: bool, learning_rate: float) -> tuple[float, ...]:
    """The numbers that `UPDATE_METRICS` names, from sums over the steps of one update."""
    steps = sums["steps"]
    target_variance = sums["target_squared"] / steps - (sums["target"] / steps) ** 2
    error_variance = sums["error_squared"] / steps - (sums["error"] / steps) ** 2
    explained = 1 - error_variance / target_variance if target_variance > 0 else 0.0
    losses = (sums["policy_loss"] / steps, sums["value_loss"] / steps, sums["entropy"] / steps)
    return (*losses, explained, norm, float(clipped), sums["approx_kl"] / steps, learning_rate)
