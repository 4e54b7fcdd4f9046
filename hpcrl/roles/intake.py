"""What the learners learn from next, agreed among them: a batch of columns, and the wishes that came with it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpcrl.activity import Phase
from hpcrl.cluster.collectives import gather_numbers
from hpcrl.cluster.mpi import Comm
from hpcrl.cluster.transport import UnrollReceiver
from hpcrl.cluster.waiting import Waiter
from hpcrl.metrics import EPISODE, RangeReducer
from hpcrl.roles.batching import Batcher, finished_episodes
from hpcrl.roles.device_batching import DeviceBatcher
from hpcrl.roles.inbox import Inbox, Piece
from hpcrl.roles.schedule import Schedule
from hpcrl.signals import Requests
from hpcrl.unroll import Unroll

#: A learner without enough columns asks the others again after this part of the time that an update takes.
_PAUSE_SHARE = 0.05
_PAUSES_S = (1e-4, 1e-2)


class Agreement(NamedTuple):
    """What the learners found out together before a batch.

    Attributes:
        columns: that every learner brings, int64 [learners].
        stop, save: wishes of any rank.
        steps: valid steps in the batch, over all learners.
        cut: unrolls that were cut short, since the last agreement.
    """

    columns: NDArray[np.int64]
    stop: bool
    save: bool
    steps: int
    cut: int


class Intake:
    """One learner's part of the next batch. Collective over the learners where told.

    Args:
        schedule: of the run.
        comm: the learners.
        rank: of the world.
        receivers: of this learner's actors, in rank order.
        own_envs: environments of these actors.
        batcher: keeps the batch.
        num_epochs: updates from every batch.
        requests, waiter: of this rank.

    Attributes:
        lag: learner updates between acting and learning, over the columns taken here.
        waits: how often this learner found too little to learn from.
        unroll_bytes: of the unrolls received.
    """

    def __init__(
        self,
        schedule: Schedule,
        comm: Comm,
        rank: int,
        receivers: Sequence[UnrollReceiver],
        own_envs: int,
        batcher: Batcher | DeviceBatcher,
        num_epochs: int,
        requests: Requests,
        waiter: Waiter,
    ) -> None:
        self._num_epochs = num_epochs
        self._schedule, self._comm, self._own_envs = schedule, comm, own_envs
        self._requests, self._waiter = requests, waiter
        self._rank, self._receivers = rank, receivers
        self.batcher = batcher
        self.inbox = Inbox(receivers, schedule.in_rounds, self._note)
        self.lag = RangeReducer()
        self.waits = 0
        self._batches = 0
        self._votes = np.zeros(3, np.int64)
        self._episodes: list[NDArray] = []
        self.unroll_bytes = 0
        self._asked_at = 0.0
        self._pause_s = _PAUSES_S[0]

    def _note(self, unroll: Unroll) -> None:
        """Keep what an unroll brings besides its steps, and have these prepared."""
        self.batcher.arrived(unroll)
        self._episodes.append(finished_episodes(unroll))
        self.unroll_bytes += unroll.spec.nbytes
        cut = unroll.length < unroll.spec.unroll_length
        self._votes += (unroll.stop_requested, unroll.save_requested, cut)

    def next(self, learner_updates: int, oldest_version: int) -> Agreement:
        """Wait for the next batch, and take this learner's part of it into `batcher.batch`.

        A batch without steps holds nothing to learn from; it comes where a stop is asked for before one is full.
        Collective over the learners.
        """
        # A learner that never waits must look after the others too.
        self._waiter.tick()
        agreed = self._in_rounds if self._schedule.in_rounds else self._as_it_comes
        agreement = agreed(learner_updates, oldest_version)
        self._batches += 1
        return agreement

    def _in_rounds(self, learner_updates: int, oldest_version: int) -> Agreement:
        wanted = self._schedule.columns(self._batches, self._own_envs)
        if self.inbox.collect(wanted, oldest_version) < wanted:
            self.waits += 1
            self._waiter.until(lambda: self.inbox.collect(wanted, oldest_version) >= wanted)
        return self._agree(wanted, self._take(wanted, learner_updates))

    def _take(self, columns: int, learner_updates: int) -> int:
        """Take columns into the batch; the valid steps in them. Local."""
        self._waiter.activity.enter(Phase.TRANSPORT)

        def use(pieces: list[Piece]) -> None:
            for unroll, first, end in pieces:
                for epoch in range(self._num_epochs):
                    self.lag.add(learner_updates + epoch - unroll.policy_version, end - first)
            self.batcher.stack(pieces)

        self.inbox.take(columns, use)
        return self.batcher.num_steps

    def _as_it_comes(self, learner_updates: int, oldest_version: int) -> Agreement:
        """Ask around until all learners together have a batch."""
        batch = self._schedule.batch_envs
        self._pause_s = float(np.clip(_PAUSE_SHARE * (time.monotonic() - self._asked_at), *_PAUSES_S))
        wanted = -(-batch // self._comm.size)
        save, cut = False, 0
        while True:
            if self.inbox.collect(batch, oldest_version) < wanted:
                self.waits += 1
                self._wait_for(wanted, oldest_version)
            self._asked_at = time.monotonic()
            agreed = self._agree(min(self.inbox.columns, batch), 0)
            # Wishes that came with too little to learn from are not forgotten.
            save, cut = save or agreed.save, cut + agreed.cut
            if agreed.columns.sum() >= batch or agreed.stop:
                break
            # The others may need longer than this learner: next time it asks when it has more, or after a pause.
            wanted = min(self.inbox.columns + 1, batch)
        shares = _shares(agreed.columns, batch) if agreed.columns.sum() >= batch else np.zeros_like(agreed.columns)
        steps = np.array([self._take(int(shares[self._comm.rank]), learner_updates)])
        total = int(gather_numbers(self._comm, steps, self._waiter).sum())
        return agreed._replace(columns=shares, steps=total, save=save, cut=cut)

    def _wait_for(self, wanted: int, oldest_version: int) -> None:
        alone = self._comm.size == 1
        end = time.monotonic() + self._pause_s

        def ready() -> bool:
            if self.inbox.collect(wanted, oldest_version) >= wanted or self._requests.stop is not None:
                return True
            return bool(self._votes[0]) if alone else time.monotonic() > end

        self._waiter.until(ready)

    def _agree(self, columns: int, steps: int) -> Agreement:
        self._votes[0] += self._requests.stop is not None
        self._votes[1] += self._requests.take_save()
        table = gather_numbers(self._comm, np.array([columns, steps, *self._votes]), self._waiter)
        self._votes[:] = 0
        total, stop, save, cut = table[:, 1:].sum(0).tolist()
        return Agreement(table[:, 0], bool(stop), bool(save), total, cut)

    @property
    def hosted_unrolls(self) -> int:
        """Unrolls that an actor on this rank has acted. Local."""
        return sum(receiver.received for receiver in self._receivers if receiver.actor == self._rank)

    def take_episodes(self) -> NDArray:
        """Episodes of this learner's actors since the last call, dtype EPISODE. Local."""
        taken, self._episodes = self._episodes, []
        return np.concatenate(taken) if taken else np.empty(0, EPISODE)


def _shares(columns: NDArray[np.int64], batch: int) -> NDArray[np.int64]:
    """How many columns each learner brings to a batch, of those that it has: as equal as can be. Int64 [learners]."""
    shares = np.zeros_like(columns)
    while (missing := batch - int(shares.sum())) > 0:
        able = np.flatnonzero(columns > shares)
        more = max(1, missing // len(able))
        for learner in able[:missing]:
            shares[learner] += min(more, columns[learner] - shares[learner])
    return shares
