"""The learner: unrolls in, one synchronised update, weights out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcrl.activity import Phase
from hpcrl.algorithms.batch import Batch
from hpcrl.algorithms.loss import STATISTICS, Loss, Normaliser, Targets
from hpcrl.algorithms.minibatches import minibatches
from hpcrl.algorithms.optimizers import make_optimizer
from hpcrl.algorithms.ppo import clip_range_at, is_too_far, ppo_targets
from hpcrl.algorithms.registry import loss_of
from hpcrl.algorithms.standardising import standardise
from hpcrl.cluster.collectives import sum_over
from hpcrl.cluster.filling import Filling
from hpcrl.cluster.gradients import check_in_sync
from hpcrl.cluster.mpi import Comm
from hpcrl.cluster.reductions import Reduction
from hpcrl.cluster.waiting import Waiter
from hpcrl.cluster.weights import Control, WeightsPublisher
from hpcrl.config import ActorCriticConfig, ImpalaConfig, PPOConfig
from hpcrl.devices.compiling import told_in_a_sentence
from hpcrl.devices.nvml import Usage
from hpcrl.metrics import UPDATE_METRICS, UPDATE_PARTS, Differences, MeanReducer, Range, RangeReducer
from hpcrl.models.flat import FlatParameters
from hpcrl.roles.account import UnrollAccount
from hpcrl.roles.boundary import Boundary, decide, due_at_start
from hpcrl.roles.intake import Intake
from hpcrl.roles.normalising import Normalisers
from hpcrl.roles.schedule import Schedule
from hpcrl.roles.updates import coefficients, scale_and_clip, update_metrics
from hpcrl.roles.workplace import Workplace


class Learner:
    """The loop of a rank that learns, one batch at a time. Collective over `comm` where told.

    Args:
        config, schedule: of the run.
        comm: the learners.
        workplace: where this one computes.
        reduction: sums gradients over the learners.
        own: weights of the rank's own policy, those that are published.
        intake: where batches come from.
        publisher: takes weights to the actors.
        waiter: of the rank.

    Attributes:
        policy, flat, optimizer: what is learned; the same on all learners.
        intake: where batches come from.
        normalisers: of observations and rewards.
        env_steps: environment steps learned from, over all learners.
        learner_updates: optimizer steps.
    """

    def __init__(
        self,
        config: ActorCriticConfig,
        schedule: Schedule,
        comm: Comm,
        workplace: Workplace,
        reduction: Reduction,
        own: FlatParameters,
        intake: Intake,
        publisher: WeightsPublisher,
        waiter: Waiter,
    ) -> None:
        self.config, self._schedule, self._comm = config, schedule, comm
        self._workplace, self._own = workplace, own
        self.policy, self.flat = workplace.policy, workplace.flat
        self._loss = workplace.loss(loss_of(config))
        self.optimizer = make_optimizer(self.flat.weights, config)
        self._filling = Filling(list(self.policy.parameters()), reduction)
        self.intake, self._publisher, self._waiter = intake, publisher, waiter
        self.normalisers = Normalisers(config, self.policy, self._total)
        self.env_steps = self.learner_updates = 0
        self._reducer = MeanReducer(UPDATE_METRICS)
        self._unrolls_cut = 0
        self._gradient_bytes = 0
        self._counts = Differences()
        self._batches = self._boundaries = self._steps_decided = 0
        self._stop = self._save = False

    def start(self) -> Control:
        """Publish the first weights. Local."""
        self._workplace.take_over()
        self._steps_decided = self.env_steps
        return self._publish(due_at_start(self.config, self.env_steps))

    def advance(self) -> Control:
        """One batch: unrolls in, updates, weights out. Collective over the learners."""
        agreed = self.intake.next(self.learner_updates, self._oldest_version())
        if agreed.steps:
            batch = self.normalisers.prepare(self.intake.batcher.batch)
            self._learn_from(batch)
            self.normalisers.observe(batch)
            self.env_steps += agreed.steps
        self._unrolls_cut += agreed.cut
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

    def _learn_from(self, batch: Batch) -> None:
        """All updates of a batch. Collective over the learners."""
        if isinstance(self.config, PPOConfig):
            self._learn_in_minibatches(batch, self.config)
            return
        targets: Targets | None = None
        normalise = self._normalise if self.config.normalise_advantages else None
        for _ in range(self.config.num_epochs):
            targets, sums = self._compute_gradient(self._loss, batch, targets, normalise)
            self._step(sums)

    def _learn_in_minibatches(self, batch: Batch, config: PPOConfig) -> None:
        self._waiter.activity.enter(Phase.LEARNING)
        loss = partial(self._loss, clip_range=clip_range_at(config, self.env_steps))
        targets = ppo_targets(self.policy, batch, config)
        whole_columns = self.policy.state_size > 0
        for part in minibatches(batch, targets, config, self.env_steps, whole_columns, self._total):
            _, sums = self._compute_gradient(loss, part.batch, part.targets, part.normalise)
            if is_too_far(config, sums):
                break
            # A minibatch may hold ignored rows only.
            if sums["steps"]:
                self._step(sums)

    def _compute_gradient(
        self, loss_function: Callable[..., Loss], batch: Batch, targets: Targets | None, normalise: Normaliser | None
    ) -> tuple[Targets | None, dict[str, float]]:
        """Loss, backward, allreduce; targets for the next epoch, and the sums that `STATISTICS` names.

        Collective over the learners.
        """
        self._waiter.activity.enter(Phase.LEARNING)
        config, flat = self.config, self.flat
        entropy_coef, _ = coefficients(config, self.env_steps)
        watch = self._workplace.watch
        watch.begin()
        flat.reduced.zero_()
        loss = loss_function(self.policy, batch, config, entropy_coef, normalise, targets)
        watch.lap("forward")
        flat.tail.copy_(loss.statistics)
        self._workplace.look_around()
        with self._filling.summing(flat.reduced), told_in_a_sentence():
            loss.total.backward()
            watch.lap("backward")
        self._gradient_bytes += flat.reduced.nbytes if self._comm.size > 1 else 0
        self._workplace.settle()
        watch.lap("reduce")
        return loss.targets, dict(zip(STATISTICS, flat.tail.tolist(), strict=True))

    def _step(self, sums: Mapping[str, float]) -> None:
        """Clip, step, and what is reported of it. Collective over the learners."""
        _, learning_rate = coefficients(self.config, self.env_steps)
        where = f"update {self.learner_updates + 1} (env step {self.env_steps})"
        norm, clipped = scale_and_clip(self.flat.gradient, sums["steps"], self.config, where)
        self.optimizer.learning_rate = learning_rate
        self.optimizer.step()
        self._workplace.watch.lap("step")
        self._reducer.add(update_metrics(sums, norm, clipped, learning_rate))
        self.learner_updates += 1
        self._waiter.activity.beat(update=self.learner_updates)
        self._check_in_sync()

    def _normalise(self, advantages: Tensor, valid: Tensor) -> Tensor:
        """Over the steps of all learners. Collective over them."""
        return standardise(advantages, valid, self._total)

    def _total(self, sums: Tensor) -> Tensor:
        """The sum over all learners, where the summands are. Collective over them."""
        if self._comm.size == 1:
            return sums
        return torch.from_numpy(sum_over(self._comm, sums.cpu().numpy(), self._waiter)).to(sums.device)

    def _check_in_sync(self) -> None:
        every = self.config.check_in_sync_every
        if every and self._comm.size > 1 and self.learner_updates % every == 0:
            check_in_sync(self._comm, self.flat.weights.detach().cpu(), self.learner_updates, self._waiter)

    def _publish(self, flags: Boundary) -> Control:
        self._waiter.activity.enter(Phase.PUBLISHING)
        self._boundaries += flags is not Boundary.NONE
        control = Control(self._batches, self.learner_updates, int(flags), self.env_steps, self._boundaries)
        self._workplace.deliver()
        self._publisher.publish(control, self._own.weights.detach().numpy(), self._waiter)
        self._waiter.activity.enter(Phase.TRANSPORT)
        return control

    def restore(
        self, env_steps: int, learner_updates: int, updates: Mapping[str, NDArray], normalisers: Mapping[str, NDArray]
    ) -> None:
        """Go on from where a checkpoint stands, but for weights and optimizer. Local."""
        self.normalisers.restore(normalisers)
        self.env_steps, self.learner_updates = env_steps, learner_updates
        self._reducer.restore(updates)

    # Reports

    @property
    def reducer(self) -> MeanReducer | None:
        """Means over updates of what `UPDATE_METRICS` names, which are the same on all learners: the first reports."""
        return self._reducer if self._comm.rank == 0 else None

    @property
    def unrolls_cut(self) -> int:
        """Unrolls of all learners that were cut short; the first learner reports them."""
        return self._unrolls_cut if self._comm.rank == 0 else 0

    def take_episodes(self) -> NDArray:
        """Episodes of this learner's actors since the last call, dtype EPISODE. Local."""
        return self.intake.take_episodes()

    def take_ranges(self) -> dict[str, Range]:
        """Lags of the columns learned from here, and what the accelerator is like now. Local."""
        ranges = {"lag/": self.intake.lag.take()}
        for name, value in (self._workplace.usage() or Usage(None, None))._asdict().items():
            reducer = RangeReducer()
            if value is not None:
                reducer.add(value)
            ranges[f"gpu/{name}_"] = reducer.take()
        return ranges

    def take_counts(self) -> dict[str, float]:
        """Columns of the report that are sums over the learners, since the last call. Local."""
        parts = self._workplace.watch.seconds() | self.intake.batcher.watch.seconds()
        return self._counts.take(
            {
                # Their sum is the mean.
                **{f"time/update_{part}_s": parts.get(part, 0.0) / self._comm.size for part in UPDATE_PARTS},
                "comm/upload_bytes": self.intake.batcher.upload_bytes,
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
