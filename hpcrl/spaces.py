"""What one environment observes and does, as plain data that every floor may pass on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Space:
    """Shape of one observation or action.

    Attributes:
        kind: "box" for arrays of numbers, "discrete" for one of `num_choices` integers.
        shape: of one element, without time and batch; () for discrete.
        dtype: numpy name of the stored dtype.
        num_choices: of a discrete space, else 0.
        low, high: bounds of a box action, flattened; empty where there are none.
    """

    kind: Literal["box", "discrete"]
    shape: tuple[int, ...]
    dtype: str
    num_choices: int = 0
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @property
    def size(self) -> int:
        """Numbers in one element."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Task:
    """What all environments of a run have in common.

    Attributes:
        observation, action: spaces of one environment.
        max_episode_steps: truncation limit where the environment's registration names one.
        layout_invariant: each environment's stream depends on the seed and its global index alone.
    """

    observation: Space
    action: Space
    max_episode_steps: int | None
    layout_invariant: bool
