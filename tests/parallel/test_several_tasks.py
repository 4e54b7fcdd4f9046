"""Several tasks on several ranks: a run that goes on elsewhere, what it reports of each task, and its evaluation."""

from __future__ import annotations

import contextlib
import csv
import io
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

from hpcrl import A2CConfig, A3CConfig, ImpalaConfig

gym.register("hpcrl-tests/CartPole-300-v0", CartPoleEnv, max_episode_steps=300)  # type: ignore[arg-type]

TASKS = ("CartPole-v0", "CartPole-v1")
SETTINGS: dict[str, Any] = {
    "env": " ".join(TASKS),
    "num_envs": 5,
    "total_env_steps": 1600,
    "num_iterations": 4,
    "hidden_sizes": (16,),
    "tensorboard": False,
    "eval_every": 800,
    "eval_episodes": 2,
}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.mpi(ranks=(3,))
def test_tasks_are_trained_together_reported_apart_and_go_on(shared_dir: Path) -> None:
    from hpcrl import Trainer
    from hpcrl.cluster.mpi import world
    from hpcrl.commands.eval import evaluate

    comm = world()
    with Trainer(A2CConfig(run_dir=shared_dir / "whole", task_id=True, **SETTINGS), comm) as trainer:
        assert trainer._station.actor is None or len(trainer._station.actor._groups) == 1
        reported = []
        for row in trainer:
            reported.append(row)
            if row["iteration"] == 2:
                trainer.save(shared_dir / "half.h5")
        whole = trainer.weights_sha256()
    for column in ("rollout/return_last_100", "eval/episode_return_mean"):
        for row in reported:
            mean = sum(row[f"{column}/{task}"] for task in TASKS) / len(TASKS)
            assert row[column] == pytest.approx(mean, nan_ok=True)
    assert np.isfinite(reported[-1]["eval/episode_return_mean"])
    assert all(np.isfinite(reported[0][f"rollout/episode_return_mean/{task}"]) for task in TASKS)

    with Trainer.restore(shared_dir / "half.h5", comm, shared_dir / "second-half") as trainer:
        rest = list(trainer)
        assert trainer.weights_sha256() == whole
    names = [name for name in reported[-1] if name.startswith(("rollout/", "eval/"))]
    assert [rest[-1][name] for name in names] == pytest.approx([reported[-1][name] for name in names], nan_ok=True)
    if comm.rank == 0:
        with (shared_dir / "whole/metrics.csv").open() as file:
            assert file.readline().rstrip().split(",") == list(reported[-1])
        episodes = rows_of(shared_dir / "whole/episodes.csv")
        assert {(int(row["env_index"]), row["task"]) for row in episodes} == {
            (index, TASKS[index > 2]) for index in range(5)
        }
        with contextlib.redirect_stdout(io.StringIO()) as said:
            assert evaluate([str(shared_dir / "whole"), "--episodes", "2"]) == 0
        _, *tasks, last = said.getvalue().splitlines()
        assert [line.split(": return")[0] for line in tasks] == [f"{task}: 2 episodes" for task in TASKS]
        assert last.startswith("mean over 2 tasks: return ")


@pytest.mark.mpi(ranks=(3,))
@pytest.mark.parametrize("config", [ImpalaConfig, A3CConfig])
def test_an_actor_may_have_environments_of_several_tasks(shared_dir: Path, config: Any) -> None:
    from hpcrl import Trainer

    tasks = (*TASKS, "hpcrl-tests/CartPole-300-v0")
    options: dict[str, Any] = SETTINGS | {"env": " ".join(tasks), "num_envs": 7, "task_id": True}
    if config is ImpalaConfig:
        options |= {"inference": "learner", "batch_envs": 7}
    with Trainer(config(run_dir=shared_dir / "run", **options)) as trainer:
        actor: Any = trainer._station.actor
        rows = list(trainer)
    if actor is not None:
        groups = [[3, 1], [1, 2]] if config is A3CConfig else [[2, 1, 1], [1, 1, 1]]
        assert [group.num_envs for group in actor._groups] in groups
    assert all(rows[0][f"rollout/episode_return_mean/{task}"] > 1 for task in tasks)
    assert np.isfinite(rows[-1]["eval/episode_return_mean"])
