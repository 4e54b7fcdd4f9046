"""The worker of an asynchronous actor-critic: acts, computes a gradient, pushes it, and takes the newest weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hpcrl.activity import Phase
from hpcrl.algorithms.loss import STATISTICS
from hpcrl.algorithms.registry import loss_of
from hpcrl.algorithms.standardising import standardise
from hpcrl.cluster.pushes import PushSender
from hpcrl.cluster.shards import ShardedWeights
from hpcrl.cluster.waiting import Waiter
from hpcrl.config import A3CConfig
from hpcrl.metrics import EPISODE, UPDATE_METRICS, MeanReducer, RangeReducer
from hpcrl.models.flat import FlatParameters
from hpcrl.models.policy import Policy
from hpcrl.roles.actor import Actor
from hpcrl.roles.batching import batch_of, finished_episodes
from hpcrl.roles.boundary import Boundary
from hpcrl.roles.normalising import clip_rewards
from hpcrl.roles.updates import coefficients, scale_and_clip, update_metrics
from hpcrl.unroll import Unroll, UnrollSpec


class AsyncWorker:
    """One worker with its own copy of the weights.

    Mnih et al. 2016, arXiv:1602.01783, algorithm S3. All of it is local but for waits until a slot is free.

    Args:
        config: of the run.
        actor: of this rank; acts with `policy`.
        spec: of its unrolls.
        policy, flat: the copy, and room for its gradient.
        weights: brings the copy up to date.
        senders: one for each shard.
        shards: of the flat vector.
        waiter: of the rank.

    Attributes:
        pushed, dropped, dropped_steps: gradients made; those that were too old to send, and the valid steps in them.
        waits: how often a gradient found no free slot.
        spread: updates between the newest and the oldest shard of the weights that acted.
        reducer: means over gradients of what `UPDATE_METRICS` names.
        unrolls_cut: of this worker.
    """

    def __init__(
        self,
        config: A3CConfig,
        actor: Actor,
        spec: UnrollSpec,
        policy: Policy,
        flat: FlatParameters,
        weights: ShardedWeights,
        senders: Sequence[PushSender],
        shards: Sequence[slice],
        waiter: Waiter,
    ) -> None:
        self._config, self._actor, self._policy, self._flat = config, actor, policy, flat
        self._loss = loss_of(config)
        self._weights, self._waiter = weights, waiter
        self._senders, self._shards = list(senders), list(shards)
        self._unroll = Unroll(spec)
        self._episodes: list[NDArray] = []
        self._stop = self._save = False
        self.pushed = self.dropped = self.dropped_steps = self.waits = self.pushed_bytes = 0
        self.spread = RangeReducer()
        self.reducer = MeanReducer(UPDATE_METRICS)
        self.unrolls_cut = 0

    @property
    def sent(self) -> int:
        """Messages sent to every owner."""
        return self._senders[0].sent

    def advance(self) -> None:
        """Act for an unroll with the newest weights, and push the gradient that it gives."""
        self._waiter.activity.enter(Phase.TRANSPORT)
        self._weights.fetch()
        self._waiter.activity.beat(update=self._weights.versions[0])
        self.spread.add(self._weights.spread())
        self._actor.fill(self._unroll, self._weights.versions[0])
        self._note()
        steps = int(self._unroll.valid.sum())
        if steps:
            self._waiter.activity.enter(Phase.LEARNING)
            self._compute_gradient()
        self._push(steps)

    def _note(self) -> None:
        """Keep what the unroll brings besides its steps."""
        self._episodes.append(finished_episodes(self._unroll))
        self.unrolls_cut += self._unroll.length < self._unroll.spec.unroll_length
        self._stop |= bool(self._unroll.stop_requested)
        self._save |= bool(self._unroll.save_requested)

    def _compute_gradient(self) -> None:
        """Loss, backward, scale, clip: the gradient of all weights, in `flat.gradient`."""
        config, flat = self._config, self._flat
        entropy_coef, learning_rate = coefficients(config, self._weights.held[0].env_steps)
        flat.gradient.zero_()
        # A worker standardises its own advantages: nobody waits for the others' sums.
        normalise = partial(standardise, total=lambda sums: sums) if config.normalise_advantages else None
        batch = clip_rewards(batch_of(self._unroll), config.reward_clip)
        loss = self._loss(self._policy, batch, config, entropy_coef, normalise)
        loss.total.backward()
        sums = dict(zip(STATISTICS, loss.statistics.tolist(), strict=True))
        where = f"the gradient of rank {self._unroll.actor} at version {self._weights.versions[0]}"
        norm, clipped = scale_and_clip(flat.gradient, sums["steps"], config, where)
        self.reducer.add(update_metrics(sums, norm, clipped, learning_rate))

    def _push(self, steps: int) -> None:
        """Send the gradient to the owners of all shards, or drop it as too old: one decision for all of them."""
        self._waiter.activity.enter(Phase.TRANSPORT)
        if not self._is_free():
            self.waits += 1
            self._waiter.until(self._is_free)
        self.pushed += steps > 0
        if self._config.max_lag is not None and steps and self._weights.lag() > self._config.max_lag:
            self.dropped += 1
            self.dropped_steps += steps
            steps = 0
        stop, save = self._wishes()
        if steps or stop or save:
            self._send(steps, stop, save)

    def _is_free(self) -> bool:
        return all([sender.is_free() for sender in self._senders])

    def _wishes(self) -> tuple[bool, bool]:
        """Stop and save, where a signal asked this rank, or an owner that does not decide by itself."""
        flags = Boundary.NONE
        for control in self._weights.held[1:]:
            # What it wished before the ranks last met has been seen to.
            if control.boundaries == self._weights.held[0].boundaries:
                flags |= Boundary(control.flags)
        stop, save = self._stop or Boundary.STOP in flags, self._save or Boundary.SAVE in flags
        self._stop = self._save = False
        return stop, save

    def _send(self, steps: int, stop: bool, save: bool) -> None:
        gradient = self._flat.gradient.numpy()
        for sender, shard, version in zip(self._senders, self._shards, self._weights.versions, strict=True):
            sender.send(gradient[shard], version, steps, stop, save)
        self.pushed_bytes += gradient.nbytes

    def take_episodes(self) -> NDArray:
        """Episodes since the last call, dtype EPISODE."""
        taken, self._episodes = self._episodes, []
        return np.concatenate(taken) if taken else np.empty(0, EPISODE)
