"""The unrolls that a learner holds, as a queue of columns: first in, first out, or in rounds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from hpcrl.cluster.transport import UnrollReceiver
from hpcrl.unroll import Unroll


class Piece(NamedTuple):
    """Columns `first` to `end` of an unroll."""

    unroll: Unroll
    first: int
    end: int


class _Held:
    """An unroll of which some columns are left."""

    def __init__(self, unroll: Unroll, receiver: UnrollReceiver) -> None:
        self.unroll, self.receiver = unroll, receiver
        self.first = 0
        self.version = unroll.policy_version

    @property
    def left(self) -> int:
        return self.unroll.spec.num_envs - self.first


class Inbox:
    """Unrolls that have arrived, in the order in which they are learned from. All of it is local.

    Args:
        receivers: of all actors of this learner, in rank order.
        in_rounds: one unroll of each actor in turn; else as they arrive.
        note: called with every unroll once, when it arrives.

    Attributes:
        columns: that are here and not taken.
        learned_unrolls: taken, at least in part.
        dropped_unrolls, dropped_steps: what was too old, whole or the rest of it; valid steps.
    """

    def __init__(self, receivers: Sequence[UnrollReceiver], in_rounds: bool, note: Callable[[Unroll], None]) -> None:
        self._receivers, self._in_rounds, self._note = list(receivers), in_rounds, note
        self._held: deque[_Held] = deque()
        self._turn = 0
        self.columns = 0
        self.learned_unrolls = self.dropped_unrolls = self.dropped_steps = 0

    def collect(self, wanted: int, oldest_version: int) -> int:
        """Take in what has arrived, and let go of unrolls with older weights than `oldest_version`; the columns here.

        In rounds no more than needed for `wanted` columns is taken in, and nothing is too old.
        """
        if not self._in_rounds:
            for receiver in self._receivers:
                while self._accept(receiver):
                    pass
            self._drop_older(oldest_version)
            return self.columns
        while self.columns < wanted and self._accept(self._receivers[self._turn]):
            self._turn = (self._turn + 1) % len(self._receivers)
        return self.columns

    def _accept(self, receiver: UnrollReceiver) -> bool:
        unroll = receiver.poll()
        if unroll is None:
            return False
        self._note(unroll)
        held = _Held(unroll, receiver)
        self.columns += held.left
        self._held.append(held)
        if not held.left:
            self._give_back()
        return True

    def _drop_older(self, oldest_version: int) -> None:
        if all(held.version >= oldest_version for held in self._held):
            return
        for held in self._held:
            if held.version < oldest_version:
                self.dropped_unrolls += held.first == 0
                self.dropped_steps += int(held.unroll.valid[:, held.first :].sum())
                self.columns -= held.left
                held.first = held.unroll.spec.num_envs
        self._give_back()

    def take(self, count: int, use: Callable[[list[Piece]], None]) -> None:
        """Take the next `count` columns: `use` copies what it needs, then the slots go back to their actors."""
        pieces = []
        missing = count
        for held in self._held:
            if not missing:
                break
            taken = min(held.left, missing)
            if taken:
                self.learned_unrolls += held.first == 0
                pieces.append(Piece(held.unroll, held.first, held.first + taken))
                held.first += taken
                missing -= taken
        assert not missing, f"{count} columns were asked for, {count - missing} are here"
        self.columns -= count
        use(pieces)
        self._give_back()

    def _give_back(self) -> None:
        """Release what is used up. An actor's unrolls are released in order: a later one waits for the first."""
        waiting: set[int] = set()
        kept: deque[_Held] = deque()
        for held in self._held:
            if held.left or held.receiver.actor in waiting:
                waiting.add(held.receiver.actor)
                kept.append(held)
            else:
                held.receiver.release()
        self._held = kept
