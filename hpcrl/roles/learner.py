"""The learner: unrolls in, one synchronised update, weights out."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from hpcrl.activity import Phase
from hpcrl.algorithms.batch import Batch
from hpcrl.algorithms.loss import STATISTICS, Targets
from hpcrl.algorithms.optimizers import linear, make_optimizer
from hpcrl.algorithms.registry import LOSSES
from hpcrl.cluster.collectives import sum_over
from hpcrl.cluster.gradients import check_in_sync, sum_gradients
from hpcrl.cluster.mpi import Comm
from hpcrl.cluster.waiting import Waiter
from hpcrl.cluster.weights import Control, WeightsPublisher
from hpcrl.config import ActorCriticConfig, ImpalaConfig
from hpcrl.errors import HpcrlError
from hpcrl.metrics import Differences, MeanReducer
from hpcrl.models.flat import FlatParameters
from hpcrl.models.policy import Policy
from hpcrl.roles.account import UnrollAccount
from hpcrl.roles.boundary import Boundary, decide
from hpcrl.roles.intake import Intake
from hpcrl.roles.schedule import Schedule

UPDATE_METRICS = (
    "train/policy_loss",
    "train/value_loss",
    "train/entropy",
    "train/explained_variance",
    "train/grad_norm",
    "train/clipped_grad_fraction",
    "train/approx_kl",
    "train/rho_mean",
    "train/rho_clipped_fraction",
    "train/learning_rate",
)


class Learner:
    """The loop of a rank that learns, one batch at a time. Collective over `comm` where told.

    Attributes:
        policy, flat, optimizer: what is learned; the same on all learners.
        intake: where batches come from.
        env_steps: environment steps learned from, over all learners.
        learner_updates: optimizer steps.
        reducer: means over updates of what `UPDATE_METRICS` names.
        unrolls_cut: over all learners.
    """

    def __init__(
        self,
        config: ActorCriticConfig,
        schedule: Schedule,
        comm: Comm,
        policy: Policy,
        flat: FlatParameters,
        intake: Intake,
        publisher: WeightsPublisher,
        waiter: Waiter,
    ) -> None:
        self.config, self._schedule, self._comm = config, schedule, comm
        self.policy, self.flat = policy, flat
        self.optimizer = make_optimizer(flat.weights, config)
        self.intake, self._publisher, self._waiter = intake, publisher, waiter
        self.env_steps = self.learner_updates = 0
        self.reducer = MeanReducer(UPDATE_METRICS)
        self.unrolls_cut = 0
        self._gradient_bytes = 0
        self._counts = Differences()
        self._batches = self._boundaries = self._steps_decided = 0
        self._stop = self._save = False

    def start(self) -> Control:
        """Publish the first weights. Local."""
        self._steps_decided = self.env_steps
        if self.env_steps >= self.config.total_env_steps:
            return self._publish(Boundary.STOP)
        untrained = self.config.eval_at_start and self.env_steps == 0
        return self._publish(Boundary.EVALUATE | Boundary.REPORT if untrained else Boundary.NONE)

    def advance(self) -> Control:
        """One batch: unrolls in, updates, weights out. Collective over the learners."""
        agreed = self.intake.next(self.learner_updates, self._oldest_version())
        if agreed.steps:
            targets: Targets | None = None
            for _ in range(self.config.num_epochs):
                targets = self._update(self.intake.batcher.batch, targets)
            self.env_steps += agreed.steps
        self.unrolls_cut += agreed.cut
        self._stop |= agreed.stop
        self._save |= agreed.save
        flags = self._decide()
        self._batches += 1
        return self._publish(flags)

    def _oldest_version(self) -> int:
        """The oldest weights whose unrolls the last update of the next batch may still learn from."""
        if not isinstance(self.config, ImpalaConfig):
            return self.learner_updates
        return self.learner_updates + self.config.num_epochs - 1 - self.config.lag_bound

    def _decide(self) -> Boundary:
        """What all ranks meet for after this batch; in lockstep only where no column of a round is left."""
        if not self._schedule.is_rest(self._batches):
            return Boundary.NONE
        flags = decide(self.config, self._steps_decided, self.env_steps, self._stop, self._save)
        self._steps_decided = self.env_steps
        self._save = False
        return flags

    def _update(self, batch: Batch, targets: Targets | None) -> Targets | None:
        self._waiter.activity.enter(Phase.LEARNING)
        targets = self._learn(batch, targets)
        self.learner_updates += 1
        self._waiter.activity.beat(update=self.learner_updates)
        self._check_in_sync()
        return targets

    def _learn(self, batch: Batch, targets: Targets | None) -> Targets | None:
        """Loss, backward, allreduce, clip, step; targets for the next epoch. Collective over the learners."""
        config, progress = self.config, self.env_steps / self.config.total_env_steps
        entropy_end = config.entropy_coef if config.entropy_coef_final is None else config.entropy_coef_final
        entropy_coef = linear(config.entropy_coef, entropy_end, progress)
        learning_rate = linear(config.learning_rate, config.learning_rate_final, progress)

        self.flat.reduced.zero_()
        normalise = self._normalise if config.normalise_advantages else None
        loss = LOSSES[config.algorithm](self.policy, batch, config, entropy_coef, normalise, targets)
        loss.total.backward()
        self.flat.tail.copy_(loss.statistics)
        sum_gradients(self._comm, self.flat.reduced, self._waiter)
        self._gradient_bytes += self.flat.reduced.nbytes if self._comm.size > 1 else 0

        sums = dict(zip(STATISTICS, self.flat.tail.tolist(), strict=True))
        norm, clipped = self._scale_and_clip(sums["steps"])
        self.optimizer.learning_rate = learning_rate
        self.optimizer.step()
        self.reducer.add(_update_metrics(sums, norm, clipped, learning_rate))
        return loss.targets

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
        self._waiter.activity.enter(Phase.PUBLISHING)
        self._boundaries += flags is not Boundary.NONE
        control = Control(self._batches, self.learner_updates, int(flags), self.env_steps, self._boundaries)
        self._publisher.publish(control, self.flat.weights.detach().numpy(), self._waiter)
        self._waiter.activity.enter(Phase.TRANSPORT)
        return control

    def take_counts(self) -> dict[str, float]:
        """Columns of the report that are sums over the learners, since the last call. Local."""
        return self._counts.take(
            {
                "comm/gradient_bytes": self._gradient_bytes,
                "comm/unroll_bytes": self.intake.unroll_bytes,
                "comm/weights_bytes": self._publisher.sent_bytes,
                "lag/dropped_unrolls": self.intake.inbox.dropped_unrolls,
                "lag/dropped_steps": self.intake.inbox.dropped_steps,
                "wait/learner_for_unrolls": self.intake.waits,
            }
        )

    @property
    def account(self) -> UnrollAccount:
        """What became of the unrolls of this learner's actors. Local."""
        inbox = self.intake.inbox
        return UnrollAccount(self.intake.hosted_unrolls, inbox.learned_unrolls, inbox.dropped_unrolls)


def _update_metrics(sums: dict[str, float], norm: float, clipped: bool, learning_rate: float) -> tuple[float, ...]:
    """The numbers that `UPDATE_METRICS` names, from sums over the steps of one update."""
    steps = sums["steps"]
    target_variance = sums["target_squared"] / steps - (sums["target"] / steps) ** 2
    error_variance = sums["error_squared"] / steps - (sums["error"] / steps) ** 2
    explained = 1 - error_variance / target_variance if target_variance > 0 else 0.0
    losses = (sums["policy_loss"] / steps, sums["value_loss"] / steps, sums["entropy"] / steps)
    ratios = (sums["approx_kl"] / steps, sums["rho"] / steps, sums["rho_clipped"] / steps)
    return (*losses, explained, norm, float(clipped), *ratios, learning_rate)
