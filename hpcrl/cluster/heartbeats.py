"""Signs of life: who is stuck, and where. A wait is only as good as the rank it waits for.

Every rank stamps (phase, update, time) into memory that its node shares, and looks at the others' while it waits.
Between nodes the lowest rank of each exchanges messages with rank 0. A rank whose own main thread hangs is ended by
its watchdog thread, in case nobody else is there to name it.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time

import numpy as np

from hpcrl.activity import Activity, Phase
from hpcrl.cluster.mpi import Request
from hpcrl.cluster.ranks import Ranks
from hpcrl.cluster.shared_memory import SharedSegments
from hpcrl.cluster.waiting import Waiter
from hpcrl.errors import RankError

_TAG = 13
_LOOK_EVERY_S = 0.2
_STAMP_WORDS = 4
#: A rank that is stuck is named before the waiting of all others is called a deadlock, or the stuck one ends itself.
_DEADLOCK_MARGIN_S = 3.0


class Heartbeats:
    """The watch of one rank over the others. Collective over the world to make.

    Args:
        ranks: the world and its nodes.
        activity: this rank's own stamp, which moves into shared memory.
        timeout_s: seconds without a stamp after which a rank counts as stuck.
    """

    def __init__(self, ranks: Ranks, activity: Activity, timeout_s: float) -> None:
        self._ranks, self._activity, self._timeout_s = ranks, activity, timeout_s
        self._next_look = 0.0
        self._idle_since = 0.0
        self._idle_state: tuple[int, ...] = ()
        self._board: SharedSegments | None = None
        self._near: dict[int, np.ndarray] = {}
        if ranks.node.size > 1:
            self._board = SharedSegments(ranks.node, _STAMP_WORDS * 8)
            self._share_stamp(self._board)
        self._far = _FarHeartbeats(ranks, activity, timeout_s)
        self._watchdog = threading.Thread(target=self._watch_self, name="hpcrl-watchdog", daemon=True)
        self._stopped = threading.Event()
        self._watchdog.start()

    def _share_stamp(self, board: SharedSegments) -> None:
        node = self._ranks.node
        world_ranks = node.allgather(self._ranks.rank)
        stamps = [board.segment(place)[: _STAMP_WORDS * 8].view(np.int64) for place in range(node.size)]
        own = stamps[node.rank]
        own[:] = self._activity.stamp
        own[3] = os.getpid()
        self._activity.stamp = own
        self._activity.beat()
        node.Barrier()
        self._near = {rank: stamp for rank, stamp in zip(world_ranks, stamps, strict=True) if rank != self._ranks.rank}

    def watch(self) -> None:
        """Look after the others, now and then; for the waits of the main thread. Local.

        Raises:
            RankError: a rank of this node, or another node, gave no sign of life for the time-out.
        """
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_EVERY_S
        # The lowest rank speaks first; the others only where it can't.
        patience_s = self._timeout_s + (0.0 if self._ranks.rank < min(self._near, default=0) else 1.0)
        for rank, stamp in self._near.items():
            age_s = now - float(stamp[2]) * 1e-9
            if age_s > patience_s:
                raise RankError(_describe(rank, stamp, age_s))
        self._far.exchange(now)
        if self._near and self._ranks.node.size == self._ranks.size:
            self._look_for_deadlock(now)

    def _look_for_deadlock(self, now: float) -> None:
        """On one node somebody must be at work; for longer than the time-out nobody was: a fault of ours."""
        stamps = [self._activity.stamp, *self._near.values()]
        state = tuple(int(word) for stamp in stamps for word in stamp[:2])
        idle = all(stamp[0] in (Phase.WAITING, Phase.REDUCING) for stamp in stamps)
        if not idle or state != self._idle_state:
            self._idle_state, self._idle_since = state, now
        elif now - self._idle_since > self._timeout_s + _DEADLOCK_MARGIN_S:
            phases = ", ".join(f"rank {rank} at update {stamp[1]}" for rank, stamp in sorted(self._near.items()))
            raise RankError(f"every rank has waited for the others for {now - self._idle_since:.0f} s: {phases}")

    def _watch_self(self) -> None:
        """Watchdog: a main thread that others may not see hang ends its own process."""
        patience_s = self._timeout_s + _DEADLOCK_MARGIN_S
        while not self._stopped.wait(min(1.0, self._timeout_s / 4)):
            stamp = self._activity.stamp
            age_s = time.monotonic() - float(stamp[2]) * 1e-9
            if age_s > patience_s:
                print(f"hpcrl: {_describe(self._ranks.rank, stamp, age_s)}; ending it", file=sys.stderr, flush=True)
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                os.kill(os.getpid(), signal.SIGKILL)

    def abandon(self) -> None:
        """End the watch over this process, which may live on without stamps. Local."""
        self._stopped.set()

    def close(self, waiter: Waiter) -> None:
        """End the watch once all ranks are here, and give the shared memory back. Collective over the world."""
        self._activity.enter(Phase.LEAVING)
        waiter.request(self._ranks.world.Ibarrier(), Phase.LEAVING)
        self._stopped.set()
        self._watchdog.join()
        self._far.close()
        self._activity.stamp = self._activity.stamp.copy()
        self._near = {}
        if self._board is not None:
            self._board.free()


class _FarHeartbeats:
    """Between nodes: the lowest rank of each node and rank 0 send each other an empty message now and then."""

    def __init__(self, ranks: Ranks, activity: Activity, timeout_s: float) -> None:
        self._world, self._activity, self._timeout_s = ranks.world, activity, timeout_s
        self._interval_s = timeout_s / 5
        firsts = [ranks.layout.node_of.index(node) for node in sorted(set(ranks.layout.node_of))]
        self._peers = (
            [first for first in firsts if first != 0] if ranks.rank == 0 else [0] if ranks.rank in firsts else []
        )
        self._seen = dict.fromkeys(self._peers, time.monotonic())
        self._next_send = 0.0
        self._incoming = {peer: np.zeros(_STAMP_WORDS, np.int64) for peer in self._peers}
        self._receives = {peer: self._post(peer) for peer in self._peers}
        self._outgoing = np.zeros(_STAMP_WORDS, np.int64)
        self._sends: list[Request] = []

    def _post(self, peer: int) -> Request:
        return self._world.Irecv(self._incoming[peer], peer, _TAG)

    def exchange(self, now: float) -> None:
        """Send and receive what is due; RankError for a silent peer. Local."""
        for peer in self._peers:
            while self._receives[peer].Test():
                self._seen[peer] = now
                self._receives[peer] = self._post(peer)
            if now - self._seen[peer] > self._timeout_s + 1.0:
                raise RankError(_describe(peer, self._incoming[peer], now - self._seen[peer]))
        if now >= self._next_send and all([send.Test() for send in self._sends]):
            self._next_send = now + self._interval_s
            self._outgoing[:] = self._activity.stamp
            self._sends = [self._world.Isend(self._outgoing, peer, _TAG) for peer in self._peers]

    def close(self) -> None:
        """Withdraw what is under way. Local."""
        for receive in self._receives.values():
            receive.Cancel()
            receive.Wait()
        for send in self._sends:
            send.Wait()


def _describe(rank: int, stamp: np.ndarray, age_s: float) -> str:
    phase = Phase(int(stamp[0])).name.lower()
    return f"rank {rank} gave no sign of life for {age_s:.0f} s (phase {phase}, update {int(stamp[1])})"
