"""The loop of a rank of an asynchronous run: a worker, an owner of a shard, or both; and where all ranks meet.

Between two meetings nobody waits for anybody. The lead owner announces a meeting beside its weights; a worker that sees
it comes between two unrolls. Once all are there every gradient under way is applied, so that all shards stand at the
same version, and every rank takes the weights. What comes after that has to wait until the owner is through, too.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hpcrl.activity import Phase
from hpcrl.cluster.collectives import gather_numbers
from hpcrl.cluster.mpi import Comm
from hpcrl.cluster.shards import ShardedWeights
from hpcrl.cluster.waiting import Waiter
from hpcrl.cluster.weights import Control, WeightsSubscriber
from hpcrl.errors import RankError
from hpcrl.metrics import EPISODE, UPDATE_METRICS, Differences, MeanReducer, Range
from hpcrl.roles.account import GradientAccount
from hpcrl.roles.async_worker import AsyncWorker
from hpcrl.roles.boundary import Boundary
from hpcrl.roles.parameter_owner import ParameterOwner


class AsyncRank:
    """One rank's loop.

    Args:
        world: all ranks.
        owners: ranks that own shards, in the order of the shards; the first is the lead.
        worker, owner: what this rank is.
        weights: this rank's copy.
        announcements: of the lead owner.
        waiter: of the rank.
        check_in_sync: called at every meeting with the version that all ranks have then. Collective over the world.
    """

    def __init__(
        self,
        world: Comm,
        owners: tuple[int, ...],
        worker: AsyncWorker | None,
        owner: ParameterOwner | None,
        weights: ShardedWeights,
        announcements: WeightsSubscriber,
        waiter: Waiter,
        check_in_sync: Callable[[int], None] = lambda version: None,
    ) -> None:
        self._check_in_sync = check_in_sync
        self._world, self._owners = world, list(owners)
        self.worker, self.owner = worker, owner
        self._weights, self._announcements, self._waiter = weights, announcements, waiter
        self._reducer = MeanReducer(UPDATE_METRICS)
        self._counts = Differences()

    def start(self) -> Control:
        """Publish and take the first weights; collective over the world where something is due at once."""
        if self.owner is not None:
            self.owner.start()
        self._waiter.until(lambda: self._weights.has(0))
        self._weights.fetch()
        return self._meet() if self._is_due() else self._control()

    def advance(self) -> Control:
        """An unroll and its gradient, or a meeting; a rank that only owns a shard serves until there is one."""
        if self.owner is not None:
            self.owner.reopen()
        if self.worker is None:
            self._waiter.until(self._is_due)
        if self._is_due():
            return self._meet()
        assert self.worker is not None
        self.worker.advance()
        self._waiter.tick()
        return self._control()

    def _is_due(self) -> bool:
        return self._announcements.announces_boundary()

    def _control(self) -> Control:
        return self._weights.held[0]._replace(flags=int(Boundary.NONE))

    def _meet(self) -> Control:
        """Apply what is under way, agree on what is to be done, and take the weights. Collective over the world."""
        sent = self._gather(0 if self.worker is None else self.worker.sent)[:, 0]
        owner = self.owner
        if owner is None:
            table = self._gather(0, 0, 0, 0)
        else:
            by_rank = dict(enumerate(sent.tolist()))
            self._waiter.until(lambda: owner.has_received(by_rank))
            table = self._gather(owner.version, owner.env_steps, int(owner.close_boundary()), owner.boundaries)
        version, env_steps, _, boundaries = table[self._owners[0]].tolist()
        flags = int(np.bitwise_or.reduce(table[:, 2]))
        if (table[self._owners, :2] != (version, env_steps)).any():
            raise RankError(
                f"the shards of the weights are at different versions, {table[self._owners, 0].tolist()}: "
                "a gradient was lost on its way"
            )
        self._waiter.until(lambda: self._weights.has(version))
        self._weights.fetch()
        # Nobody goes on, and has its next gradient applied, before all have these weights.
        self._waiter.request(self._world.Ibarrier())
        self._check_in_sync(version)
        self._announcements.pass_boundary(boundaries)
        self._waiter.activity.beat(update=version)
        return Control(version, version, flags, env_steps, boundaries)

    def _gather(self, *numbers: int) -> NDArray[np.int64]:
        return gather_numbers(self._world, np.array(numbers), self._waiter, Phase.WAITING)

    # Reports

    @property
    def reducer(self) -> MeanReducer:
        """Means over the gradients of this rank's worker; a rank without one holds what a checkpoint brought."""
        return self._reducer if self.worker is None else self.worker.reducer

    @property
    def unrolls_cut(self) -> int:
        """Of this rank's worker."""
        return 0 if self.worker is None else self.worker.unrolls_cut

    def take_counts(self) -> dict[str, float]:
        """Columns of a report that are sums over the ranks, since the last call. Local."""
        totals: dict[str, float] = {}
        if (worker := self.worker) is not None:
            totals |= {
                "comm/gradient_bytes": worker.pushed_bytes,
                "lag/dropped_unrolls": worker.dropped,
                "lag/dropped_steps": worker.dropped_steps,
                "wait/actor_for_slot": worker.waits,
            }
        if self.owner is not None:
            totals["comm/weights_bytes"] = self.owner.sent_bytes
        return self._counts.take(totals)

    def take_ranges(self) -> dict[str, Range]:
        """Lags of the gradients applied here, and spreads of versions over the shards of the weights used here."""
        ranges = {}
        if self.owner is not None:
            ranges["lag/"] = self.owner.lag.take()
        if self.worker is not None:
            ranges["lag/shard_spread_"] = self.worker.spread.take()
        return ranges

    def take_episodes(self) -> NDArray:
        """Episodes of this rank's worker since the last call, dtype EPISODE. Local."""
        return np.empty(0, EPISODE) if self.worker is None else self.worker.take_episodes()

    @property
    def account(self) -> GradientAccount:
        """The gradients of this rank. Local."""
        applied = [0] * len(self._owners)
        if self.owner is not None:
            applied[self._owners.index(self._world.rank)] = self.owner.applied
        pushed, dropped = (0, 0) if self.worker is None else (self.worker.pushed, self.worker.dropped)
        return GradientAccount(pushed, dropped, tuple(applied))
