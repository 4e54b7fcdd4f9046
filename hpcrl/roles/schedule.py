"""Who may be how far ahead: which weights an unroll waits for, and which unrolls a batch takes.

Round k is unroll k of every actor, `num_envs` columns; batch j is the next `batch_envs` columns over all learners, and
publication j the weights before it. Taken in rounds, batches cut the rounds like a ribbon: round k lies in the batches
`first_batch(k)` to `last_batch(k)`. All of this follows from sizes, so no rank has to ask another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hpcrl.config import ActorCriticConfig, ImpalaConfig


@dataclass(frozen=True)
class Schedule:
    """How acting and learning keep step.

    Attributes:
        num_envs: columns of a round, over all actors.
        batch_envs: columns of a batch, over all learners.
        in_rounds: batches take rounds in rank order; else whatever has arrived.
        exact: an unroll is acted with exactly the publication that it waits for; else with the newest.
        slack: publications between what an unroll is acted with and the last batch that learns from it; None for
            lockstep, where an unroll waits for the newest there can be.
    """

    num_envs: int
    batch_envs: int
    in_rounds: bool
    exact: bool
    slack: int | None

    def first_batch(self, round_: int) -> int:
        """The first batch that takes columns of a round."""
        return round_ * self.num_envs // self.batch_envs

    def last_batch(self, round_: int) -> int:
        """The last batch that takes columns of a round."""
        return -(-(round_ + 1) * self.num_envs // self.batch_envs) - 1

    def publication(self, round_: int) -> int:
        """The publication that an actor waits for before it acts its unroll of a round."""
        if not self.in_rounds:
            return 0
        if self.slack is None:
            return self.first_batch(round_)
        return max(0, self.last_batch(round_) - self.slack)

    def columns(self, batch: int, own_envs: int) -> int:
        """Columns that a learner whose actors hold `own_envs` environments brings to a batch, taken in rounds."""
        start, end = (edge * self.batch_envs * own_envs // self.num_envs for edge in (batch, batch + 1))
        return end - start

    def is_rest(self, batch: int) -> bool:
        """Whether nothing is under way once a batch is learned from: in lockstep, where rounds and batches end."""
        return self.slack is not None or (batch + 1) * self.batch_envs % self.num_envs == 0

    @property
    def num_slots(self) -> int:
        """Unrolls of one actor on their way: as many as a batch may need, and the one that is being filled."""
        envs, batch = _reduced(self.num_envs, self.batch_envs)
        return (envs + batch - 2) // envs + 2

    @property
    def ring_slots(self) -> int:
        """Publications that stay readable: until every unroll that needs one has been learned from."""
        if not self.exact:
            return 3
        behind = _batches_crossed(self.num_envs, self.batch_envs) if self.slack is None else self.slack
        return max(2, behind + 1)


def make_schedule(config: ActorCriticConfig, hosted: bool) -> Schedule:
    """The schedule of a run.

    Args:
        config: of any algorithm.
        hosted: learners host their actors, so that they take turns whatever the configuration says.
    """
    sizes = (config.num_envs, config.update_envs)
    if not isinstance(config, ImpalaConfig) or hosted or config.in_lockstep:
        return Schedule(*sizes, in_rounds=True, exact=True, slack=None)
    slack = (config.lag_bound - config.replay_epochs + 1) // config.replay_epochs
    waits = config.deterministic or config.on_stale == "wait"
    return Schedule(*sizes, in_rounds=waits, exact=config.deterministic, slack=slack)


def _batches_crossed(num_envs: int, batch_envs: int) -> int:
    envs, batch = _reduced(num_envs, batch_envs)
    return (envs + batch - 2) // batch


def _reduced(one: int, other: int) -> tuple[int, int]:
    divisor = math.gcd(one, other)
    return one // divisor, other // divisor
