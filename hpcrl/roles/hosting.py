"""A learner that hosts its actor: the hand-over between them is a function call."""

from __future__ import annotations

from collections.abc import Callable

from hpcrl.roles.actor import Actor
from hpcrl.roles.replaying import ReplayActor
from hpcrl.unroll import Unroll, UnrollSpec


class HostedReceiver:
    """The actor behind the interface of a transport: it acts whenever an unroll is asked for.

    Args:
        actor: acts with the learner's own weights.
        rank: of both.
        spec: of its unrolls.
        num_slots: unrolls that may be held at once.
        policy_version: learner updates in the weights.
    """

    def __init__(
        self,
        actor: Actor | ReplayActor,
        rank: int,
        spec: UnrollSpec,
        num_slots: int,
        policy_version: Callable[[], int],
    ) -> None:
        self.actor = rank
        self._actor, self._policy_version = actor, policy_version
        self.unrolls = [Unroll(spec) for _ in range(num_slots)]
        self.received = self._released = 0

    def poll(self) -> Unroll | None:
        """Act now, for the next unroll."""
        if self.received - self._released == len(self.unrolls):
            return None
        unroll = self.unrolls[self.received % len(self.unrolls)]
        self._actor.fill(unroll, self._policy_version())
        unroll.set_header(sequence=self.received)
        self.received += 1
        return unroll

    def release(self) -> None:
        """Let the oldest slot be filled again."""
        self._released += 1
