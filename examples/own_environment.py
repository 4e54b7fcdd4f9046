"""An environment of your own: a heated room, which is to be kept at 20 degrees while it is cold outside.

Importing this module registers it, so the command line finds it by the module's name:

    cd examples
    hpcrl train ppo --env own_environment:HeatedRoom-v0 --total-env-steps 100000
    hpcrl train ppo --env own_environment:HeatedRoom-v0 --ranks 4

From Python, alone or on the ranks of a launcher:

    python own_environment.py --env-steps 100000
    mpirun -n 4 python own_environment.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tyro
from mpi4py import MPI
from numpy.typing import NDArray

import hpcrl

_WANTED = 20.0  # degrees
_MINUTES = 10.0  # of a step
_LOSS = 0.01  # of the difference to the outside, per minute
_HEATER = 0.4  # degrees a minute, at full power


class HeatedRoom(gym.Env):
    """A day of a room. Observed: degrees too warm, degrees outside, hours; done: the heater's power, from 0 to 1."""

    # What an environment observes and does stands in two spaces, by which hpcrl makes the networks.
    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gym.spaces.Box(0.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray, dict]:
        # Seeds `self.np_random`. Take all randomness from it, and the run is the same on any number of ranks.
        super().reset(seed=seed)
        self._hours = 0.0
        self._inside = self.np_random.uniform(10.0, 25.0)
        self._coldest = self.np_random.uniform(-10.0, 5.0)
        return self._observe(), {}

    def step(self, action: NDArray) -> tuple[NDArray, float, bool, bool, dict]:
        leaving = _LOSS * (self._inside - self._outside())
        self._inside += _MINUTES * (_HEATER * float(action[0]) - leaving)
        self._hours += _MINUTES / 60
        reward = -abs(self._inside - _WANTED)
        # The day is over, but not the room: truncated, so that what would follow keeps its value.
        return self._observe(), reward, False, self._hours >= 24.0, {}

    def _outside(self) -> float:
        return self._coldest + 10.0 * np.sin(np.pi * self._hours / 24) ** 2

    def _observe(self) -> NDArray:
        return np.array([self._inside - _WANTED, self._outside(), self._hours], np.float32)


if "HeatedRoom-v0" not in gym.registry:  # a script is imported once more, by its name
    gym.register("HeatedRoom-v0", HeatedRoom)


def main(env_steps: int = 100_000, run_dir: Path | None = None) -> None:
    """Train ppo on the room, and print how it goes."""
    config = hpcrl.PPOConfig(
        # With the module's name, by which evaluations and load_policy find it later.
        env="own_environment:HeatedRoom-v0",
        normalise_observations=True,
        normalise_returns=True,
        gamma=0.95,
        total_env_steps=env_steps,
        num_iterations=5,
        run_dir=run_dir,
    )
    with hpcrl.Trainer(config, comm=MPI.COMM_WORLD) as trainer:
        for row in trainer:  # the same row on every rank
            if MPI.COMM_WORLD.rank == 0:
                print(f"{row['env_steps']:9,.0f} env steps, mean return {row['rollout/episode_return_mean']:8.1f}")


if __name__ == "__main__":
    tyro.cli(main)
