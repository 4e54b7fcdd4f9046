"""Which numbers of learners and which unroll lengths make the most of a core, by the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from hpcrl.config import ActorCriticConfig
from hpcrl.errors import ConfigError
from hpcrl.planning.costs import Costs
from hpcrl.planning.model import Prediction, predict
from hpcrl.planning.setups import Setup, make_setup

#: Unroll lengths that are looked at, relative to the one that was measured.
_LENGTH_FACTORS = (0.25, 0.5, 1, 2, 4)
#: A layout that is this close to the best is as good.
_AS_GOOD = 0.99


@dataclass(frozen=True)
class Choice:
    """One way to run: what it would do, and the options for it."""

    setup: Setup
    prediction: Prediction
    options: tuple[str, ...]

    @property
    def per_core(self) -> float:
        """Env steps per second and core."""
        return self.prediction.env_steps_per_s / self.setup.cores


def recommend(
    config: ActorCriticConfig, costs: Costs, nodes: int, ranks_per_node: int, lag_limit: float | None
) -> Choice | None:
    """The layout of the most env steps per second and core; None where none keeps the lag.

    Of those that are as good the one that is closest to what the configuration says. Environments in total, and the
    columns of a batch, stay as they are, and so does what an update learns from but for the unroll length.

    Args:
        lag_limit: updates of lag on average at most; None: any.
    """
    choices = [
        choice
        for choice in _choices(config, costs, nodes, ranks_per_node)
        if lag_limit is None or choice.prediction.lag_mean <= lag_limit
    ]
    if not choices:
        return None
    best = max(choice.per_core for choice in choices)
    good = [choice for choice in choices if choice.per_core >= _AS_GOOD * best]
    return min(good, key=lambda choice: (_change(choice, config), choice.setup.learners))


def _change(choice: Choice, config: ActorCriticConfig) -> float:
    """How far an unroll length is from the configured one, by ratio."""
    length = choice.setup.unroll_length
    return max(length / config.unroll_length, config.unroll_length / length)


def _choices(config: ActorCriticConfig, costs: Costs, nodes: int, ranks_per_node: int) -> Iterator[Choice]:
    lengths = sorted({max(1, round(factor * config.unroll_length)) for factor in _LENGTH_FACTORS})
    for learners in _learners(nodes, ranks_per_node):
        for length in lengths:
            placed = {"placement": "split", "learners": learners} if learners else {"placement": "colocated"}
            try:
                changed = dataclasses.replace(config, unroll_length=length, **placed)
                setup = make_setup(changed, nodes, ranks_per_node)
            except ConfigError:
                continue
            how = ("--learners", str(learners)) if learners else ("--placement", "colocated")
            yield Choice(setup, predict(setup, costs), (*how, "--unroll-length", str(length)))


def _learners(nodes: int, ranks_per_node: int) -> list[int]:
    """Numbers of learners that are looked at: 0 for ranks that do both, few in all, or as many on every node."""
    ranks = nodes * ranks_per_node
    few = [2**power for power in range(10) if 2 * 2**power <= ranks and 2**power < nodes]
    each = [nodes * count for count in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32) if 2 * count <= ranks_per_node]
    return sorted({0, *([1] if ranks > 1 else []), *few, *each})
