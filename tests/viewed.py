"""Run directories as training leaves them, made without training."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpcrl.config import A2CConfig, TrainConfig, to_json
from hpcrl.metrics import COLUMNS, CsvFile

CONFIG = A2CConfig(env="CartPole-v1", seed=3, num_envs=8, total_env_steps=10_000, num_iterations=20)
EPISODE_COLUMNS = ("env_step", "env_index", "episode", "seed", "length", "return")


def make_run(
    path: Path,
    config: TrainConfig = CONFIG,
    outcome: str | None = "finished",
    reports: int = 20,
    ranks: int = 3,
    jobs: Sequence[str] = (),
    resumes: Sequence[Mapping[str, int]] = (),
    slowest: int | None = None,
    scale: float = 1.0,
) -> Path:
    """The run directory `path` with rank 0 as its only learner.

    Args:
        reports: rows of metrics.csv, of 500 env steps each.
        slowest: a rank that is at half the env steps of the others.
        scale: of returns.
    """
    path.mkdir(parents=True)
    envs = config.num_envs // (ranks - 1)
    actors = {str(rank): [(rank - 1) * envs, rank * envs] for rank in range(1, ranks)}
    facts: dict[str, Any] = {
        "config": to_json(config),
        "layout_invariant": True,
        "layout": {
            "ranks": ranks,
            "hosts": [f"node{rank // 4}" for rank in range(ranks)],
            "learners": [0],
            "actors": actors,
            "learner_of": dict.fromkeys(actors, 0),
        },
        "versions": {"python": "3.11.7", "mpi": "Open MPI v5.0.11", "hpcrl": "0.1.0", "numpy": None},
        "machine": {"cpu": "some CPU", "cores": 2, "threads": 1, "gpus": {"0": "some GPU"}},
        "git_commit": "0123456789-dirty",
        "command": ["hpcrl", "train", "a2c"],
        "resumes": list(resumes),
    }
    (path / "config.json").write_text(json.dumps(facts))
    if outcome is not None:
        (path / "outcome").write_text(f"{outcome}\n")
    if jobs:
        (path / "jobs").write_text("".join(f"{job}\n" for job in jobs))
    _write_metrics(path, reports, scale)
    _write_episodes(path, ranks, envs, slowest)
    _write_checkpoint(path, reports * 500)
    return path


def _write_metrics(path: Path, reports: int, scale: float) -> None:
    file = CsvFile(path / "metrics.csv", COLUMNS)
    for number in range(1, reports + 1):
        file.write(
            [
                dict.fromkeys(COLUMNS, math.nan)
                | {
                    "iteration": number,
                    "env_steps": 500 * number,
                    "learner_updates": 10 * number,
                    "time/elapsed_s": 2.0 * number,
                    "time/env_steps_per_s": 250.0,
                    "time/actor_acting_s": 1.0,
                    "time/actor_waiting_s": 0.5,
                    "time/learner_learning_s": 0.4,
                    "time/learner_waiting_s": 1.2,
                    "time/update_forward_s": 0.1,
                    "time/update_backward_s": 0.3,
                    "rollout/return_last_100": scale * number if number > 2 else math.nan,
                    "rollout/episode_return_mean": scale * (number + 1),
                    "train/entropy": 1 / number,
                    "lag/min": 0,
                    "lag/mean": 0.5,
                    "lag/max": number % 3,
                    "lag/dropped_unrolls": number % 2,
                }
            ]
        )
    file.close()


def _write_episodes(path: Path, ranks: int, envs: int, slowest: int | None) -> None:
    file = CsvFile(path / "episodes.csv", EPISODE_COLUMNS)
    for episode in range(3):
        for env in range((ranks - 1) * envs):
            length = 10 + env % 5
            step = 100 * (episode + 1) // (2 if slowest == env // envs + 1 else 1)
            file.write([dict(zip(EPISODE_COLUMNS, (step, env, episode, 1, length, float(length)), strict=True))])
    file.close()


def _write_checkpoint(path: Path, env_steps: int) -> None:
    name, content = f"step_{env_steps:012d}", b"weights"
    (path / "checkpoints").mkdir()
    (path / "checkpoints" / f"{name}.h5").write_bytes(content)
    entry = {
        "name": name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "score": 18.5,
        "env_steps": env_steps,
        "learner_updates": 200,
    }
    manifest = {"format_version": 1, "latest": name, "best": name, "checkpoints": [entry]}
    (path / "checkpoints" / "manifest.json").write_text(json.dumps(manifest))


def seeds(folder: Path, count: int, config: TrainConfig = CONFIG, scale: float = 1.0) -> list[Path]:
    """Runs that differ in their seed, and in returns by as many tenths."""
    configs = [dataclasses.replace(config, seed=seed) for seed in range(count)]
    scales = scale * (1 + 0.1 * np.arange(count))
    made = zip(configs, scales.tolist(), strict=True)
    return [make_run(folder / f"{folder.name}-seed{one.seed}", one, scale=size) for one, size in made]
