"""What the presets promise, on real environments."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch

from hpcrl.config import ActorCriticConfig
from hpcrl.envs.grid_navigation import GridNavigation
from hpcrl.models.flat import FlatParameters
from hpcrl.models.policy import Policy
from hpcrl.presets.classic import a3c_grid_navigation, grid_navigation
from hpcrl.roles.snapshot import load_weights
from hpcrl.spaces import Space, Task
from hpcrl.storage.checkpoints import CheckpointStore
from tests.commands import Runs, train


def _rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_first_job_rises_from_untrained_to_solved(tmp_path: Path) -> None:
    train(tmp_path / "run", "--preset", "first-light", "--ranks", 5, timeout=120)
    rows = _rows(tmp_path / "run")
    assert [row["iteration"] for row in rows] == [str(number) for number in range(11)]
    assert float(rows[0]["eval/episode_return_mean"]) < 40
    last = [float(row["rollout/episode_return_mean"]) for row in rows[-3:]]
    assert sum(last) / 3 >= 195


def test_cartpole_reaches_475_with_the_defaults(tmp_path: Path) -> None:
    train(tmp_path / "run", "--ranks", 2, "--stop-return", 475, timeout=120)
    last = _rows(tmp_path / "run")[-1]
    assert float(last["rollout/return_last_100"]) >= 475
    assert int(last["env_steps"]) <= 500_000


def test_the_learned_way_is_the_shortest_from_every_cell(tmp_path: Path) -> None:
    seeds = {seed: ("a2c", "--preset", "grid-navigation", "--seed", seed) for seed in ("1", "2")}
    runs = Runs(tmp_path, [(1, seeds)])
    for seed in seeds:
        _check_every_way(runs[seed], grid_navigation())


def test_asynchronous_workers_learn_as_well(tmp_path: Path) -> None:
    together = {"grid": ("a3c", "--preset", "a3c-grid-navigation"), "cartpole": ("a3c", "--stop-return", 475)}
    runs = Runs(tmp_path, [(3, together)])
    _check_every_way(runs["grid"], a3c_grid_navigation())
    assert float(_rows(runs["cartpole"])[-1]["rollout/return_last_100"]) >= 475


def _check_every_way(run_dir: Path, config: ActorCriticConfig) -> None:
    policy, env = _policy(run_dir, config), GridNavigation()
    distances = env.distances()
    for row, column in np.argwhere(distances > 0):
        assert _steps_to_goal(env, policy, int(row), int(column)) == distances[row, column], (row, column)


def _policy(run_dir: Path, config: ActorCriticConfig) -> Policy:
    task = Task(Space("box", (64,), "float32"), Space("discrete", (), "int64", 4), None, True)
    policy = Policy(task, config)
    checkpoint = CheckpointStore(run_dir / "checkpoints").newest()
    assert checkpoint is not None
    load_weights(FlatParameters(policy), checkpoint.arrays)
    return policy


def _steps_to_goal(env: GridNavigation, policy: Policy, row: int, column: int) -> int:
    """Length of the greedy way from a cell; 33 where it does not arrive in time."""
    env.reset(seed=0)
    env.set_state({"position": np.array([row, column]), "steps": np.array(0)})
    observation = np.zeros(64, np.float32)
    observation[row * 8 + column] = 1
    for step in range(1, 33):
        parameters, _ = policy.step(torch.from_numpy(observation)[None], torch.zeros(1, 0))
        action = int(policy.head.mode(parameters))
        observation, _, terminated, _, _ = env.step(action)
        if terminated:
            return step
    return 33
