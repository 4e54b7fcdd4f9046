"""The observation tells the right action: what does not learn that, for some kind of action, learns nothing."""

from __future__ import annotations

import tests.no_mpi  # noqa: F401

# isort: split
import gymnasium as gym
import pytest

from hpcrl.config import PPOConfig
from hpcrl.envs.factory import describe_task
from hpcrl.envs.world import worlds_of
from hpcrl.roles.evaluation import play
from hpcrl.roles.station import Station
from hpcrl.signals import Requests
from tests.single.test_async_rank import station_of
from tests.worlds import ACTIONS, MASKABLE, Identity

#: Batches of 512 steps between two looks, and looks.
PATIENCE, LOOKS = 4, 6
#: Rewards a step that the most likely actions may miss of the best.
CLOSE, FAR = 0.05, 0.2


def config_of(world: str) -> PPOConfig:
    return PPOConfig(
        env=f"tests.worlds:{world}-v0",
        num_envs=32,
        unroll_length=16,
        total_env_steps=512 * PATIENCE * LOOKS,
        num_iterations=1,
        checkpoint_every=0,
        hidden_sizes=(32,),
        epochs=4,
        learning_rate=1e-2,
        learning_rate_final=1e-3,
        gamma=0.5,
    )


def missed(config: PPOConfig, station: Station, best: float) -> float:
    """Rewards a step that the most likely actions earn less than the best."""
    world = worlds_of(config)[0]
    played = play(station.policy, world, describe_task(world), range(10), 3, deterministic=True)
    return best - float(played.returns.sum() / played.lengths.sum())


WORLDS = [*(f"Identity-{action}" for action in ACTIONS), *(f"Masked-info-{action}" for action in MASKABLE)]


@pytest.mark.parametrize("world", WORLDS)
def test_the_right_actions_are_found_in_a_second(world: str) -> None:
    config = config_of(world)
    env = gym.make(config.env).unwrapped
    assert isinstance(env, Identity)
    env.reset(seed=0)
    best = env.best_return / env.EPISODE_LENGTH
    station = station_of(config, Requests())
    station.role.start()
    assert missed(config, station, best) > FAR
    for _ in range(LOOKS):
        for _ in range(PATIENCE):
            station.role.advance()
        if missed(config, station, best) < CLOSE:
            break
    assert missed(config, station, best) < CLOSE
    assert station.actor is not None
    station.actor.close()
