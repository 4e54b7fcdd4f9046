"""A discrete-event simulation of the protocol: an event for every unroll, not for every step.

Who waits for whom is the protocol's own (ARCHITECTURE.md, "Who waits for whom"): actors with slots, rounds or whatever
has arrived, batches that all learners take together, publications that take a while to reach other nodes. How long
each part takes comes from the same costs as in the model, but steps vary from unroll to unroll. The model's queue, its
maximum over actors and its lag are approximations; these here are counted.
"""

from __future__ import annotations

import numpy as np

from hpcrl.errors import ConfigError
from hpcrl.planning import model
from hpcrl.planning.costs import Costs
from hpcrl.planning.events import LEAST_SHARE, Simulated
from hpcrl.planning.setups import Setup
from hpcrl.planning.simulated_gradients import GradientSimulation
from hpcrl.planning.simulated_unrolls import UnrollSimulation

MOST_RANKS = 4096


def simulate(setup: Setup, costs: Costs, turns: int = 60, seed: int = 1) -> Simulated:
    """Run a layout for so many rounds or batches, whichever are longer; the same every time for the same seed.

    Raises:
        ConfigError: too many ranks.
    """
    if setup.ranks > MOST_RANKS:
        raise ConfigError(f"at most {MOST_RANKS} ranks can be simulated, got {setup.ranks}")
    if setup.is_asynchronous:
        return GradientSimulation(setup, costs, seed).run(turns)
    if setup.is_hosted:
        return _hosted(setup, costs, turns, seed)
    return UnrollSimulation(setup, costs, seed).run(turns)


def _hosted(setup: Setup, costs: Costs, turns: int, seed: int) -> Simulated:
    """Every rank acts and learns: they meet at the sum of the gradients."""
    acts, learns = (sum(parts(setup, costs).values()) for parts in (model.acting_parts, model.learning_parts))
    learns *= setup.num_envs / setup.batch_envs
    deviation = model.acting_deviation(setup, costs)
    draws = acts + deviation * np.random.default_rng(seed).standard_normal((turns, setup.actors))
    rounds = np.maximum(draws, LEAST_SHARE * acts)
    total = float(rounds.max(1).sum()) + turns * learns
    busy = float(rounds.mean(1).sum() + turns * learns) / total
    steps = turns * setup.num_envs * setup.unroll_length
    lag = (setup.num_envs / setup.batch_envs - 1) / 2 * setup.passes if setup.num_envs > setup.batch_envs else 0.0
    epochs = (setup.passes - 1) / 2 if setup.pass_share == 1 else 0.0
    return Simulated(steps / total, max(0.0, lag) + epochs, busy, busy, 0.0, turns * setup.actors)
