"""Slow references in the shape of the papers: plain Python numbers, one row of one environment at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from hpcrl.algorithms.batch import Batch

Value = Callable[[Sequence[float]], float]


class Correction(NamedTuple):
    """How V-trace corrects.

    Attributes:
        rhos: pi/mu of a column's rows.
        rho_bar, c_bar: clips in the temporal differences and in the trace.
    """

    rhos: Sequence[float]
    rho_bar: float
    c_bar: float


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

    def delta(self, t: int, gamma: float) -> float:
        """Temporal difference of row t."""
        return self.reward[t] + gamma * self.next_value(t) - self.values[t]

    def advantage(self, t: int, gamma: float, lambda_: float) -> float:
        """Sum over l of (gamma lambda)^l delta_{t+l} (arXiv:1506.02438, eq. 16)."""
        deltas = [self.delta(k, gamma) for k in self.rest_of_episode(t)]
        return math.fsum((gamma * lambda_) ** power * delta for power, delta in enumerate(deltas))

    def n_step_return(self, t: int, gamma: float) -> float:
        """Discounted rewards of the episode's rest, then the bootstrap (arXiv:1602.01783, algorithm S3)."""
        rows = self.rest_of_episode(t)
        rewards = math.fsum(gamma**power * self.reward[k] for power, k in enumerate(rows))
        return rewards + gamma ** len(rows) * self.next_value(rows[-1])

    def vtrace_target(self, t: int, gamma: float, lambda_: float, correction: Correction) -> float:
        """V_t + sum over k of gamma^(k-t) (product of c_i, t <= i < k) rho_k delta_k (arXiv:1802.01561, eq. 1)."""
        rhos, rho_bar, c_bar = correction
        terms = [self.values[t]]
        for k in self.rest_of_episode(t):
            trace = math.prod(lambda_ * min(c_bar, rhos[i]) for i in range(t, k))
            terms.append(gamma ** (k - t) * trace * min(rho_bar, rhos[k]) * self.delta(k, gamma))
        return math.fsum(terms)

    def vtrace_advantage(self, t: int, gamma: float, lambda_: float, correction: Correction) -> float:
        """r_t + gamma * q_{t+1} - V_t, not weighed; q mixes vs and V by lambda within the episode."""
        following = self.next_value(t)
        if t + 1 in self.rest_of_episode(t):
            target = self.vtrace_target(t + 1, gamma, lambda_, correction)
            following = lambda_ * target + (1 - lambda_) * self.values[t + 1]
        return self.reward[t] + gamma * following - self.values[t]
