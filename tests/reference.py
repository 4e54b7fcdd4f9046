"""Slow references in the shape of the papers: plain Python numbers, one row of one environment at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from hpcrl.algorithms.batch import Batch

Value = Callable[[Sequence[float]], float]


class Column:
    """One environment's rows of a batch, as lists.

    Args:
        batch: see `hpcrl.algorithms.batch.Batch`; observations are vectors.
        b: the environment.
        value: V of an observation.
    """

    def __init__(self, batch: Batch, b: int, value: Value) -> None:
        self.reward: list[float] = batch.reward[:, b].tolist()
        self.terminated: list[bool] = batch.terminated[:, b].tolist()
        self.truncated: list[bool] = batch.truncated[:, b].tolist()
        self.valid: list[bool] = batch.valid[:, b].tolist()
        self.values = [value(row) for row in batch.observation[:, b].tolist()]
        indexed = zip(batch.final_index.tolist(), batch.final_observation.tolist(), strict=True)
        self._finals = {t: value(row) for (t, column), row in indexed if column == b}

    def next_value(self, t: int) -> float:
        """What the return of row t's episode is bootstrapped with after row t."""
        if self.terminated[t]:
            return 0.0
        return self._finals[t] if self.truncated[t] else self.values[t + 1]

    def rest_of_episode(self, t: int) -> range:
        """Row t and the rows after it that belong to the same episode and were acted."""
        end = t + 1
        while end < len(self.reward) and self.valid[end] and not (self.terminated[end - 1] or self.truncated[end - 1]):
            end += 1
        return range(t, end)

    def advantage(self, t: int, gamma: float, lambda_: float) -> float:
        """Sum over l of (gamma lambda)^l delta_{t+l} (arXiv:1506.02438, eq. 16)."""
        deltas = [self.reward[k] + gamma * self.next_value(k) - self.values[k] for k in self.rest_of_episode(t)]
        return math.fsum((gamma * lambda_) ** power * delta for power, delta in enumerate(deltas))

    def n_step_return(self, t: int, gamma: float) -> float:
        """Discounted rewards of the episode's rest, then the bootstrap (arXiv:1602.01783, algorithm S3)."""
        rows = self.rest_of_episode(t)
        rewards = math.fsum(gamma**power * self.reward[k] for power, k in enumerate(rows))
        return rewards + gamma ** len(rows) * self.next_value(rows[-1])
