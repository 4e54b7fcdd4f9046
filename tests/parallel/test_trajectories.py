"""Runs that record, and runs that learn from what was recorded."""

from __future__ import annotations

import csv
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpcrl import A2CConfig, A3CConfig, BCConfig, ImpalaConfig
from hpcrl.config import TrainConfig
from hpcrl.errors import ConfigError, TrajectoryError
from tests.calamities import STEPS

SMALL: dict[str, Any] = {
    "num_envs": 6,
    "unroll_length": 16,
    "total_env_steps": 6 * 16 * 20,
    "num_iterations": 4,
    "hidden_sizes": (16,),
    "tensorboard": False,
    "checkpoint_every": 6 * 16 * 4,
}


def train(config: TrainConfig, until: int | None = None) -> str:
    """Train, to the end or up to an iteration; the weights' checksum."""
    from hpcrl import Trainer

    with Trainer(config) as trainer:
        for row in trainer:
            if row["iteration"] == until:
                break
        return trainer.weights_sha256()


def recorded_episodes(run_dir: Path) -> Counter[tuple[int, int, int, int, float]]:
    from hpcrl.storage.stitching import WholeEpisodes
    from hpcrl.storage.trajectories import open_shards

    episodes = WholeEpisodes(open_shards(run_dir / "trajectories"))
    assert episodes.num_gaps == 0
    return Counter((each.env_index, each.number, each.seed, each.length, each.episode_return) for each in episodes)


def logged_episodes(run_dir: Path) -> Counter[tuple[int, int, int, int, float]]:
    with (run_dir / "episodes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = ("env_index", "episode", "seed", "length")
    return Counter((*(int(row[name]) for name in names), float(row["return"])) for row in rows)  # type: ignore[misc]


@pytest.mark.mpi(ranks=(3,))
def test_recording_changes_nothing_and_loses_nothing(shared_dir: Path) -> None:
    from hpcrl.cluster.mpi import world

    comm, folder = world(), shared_dir
    for name, changes in {"plain": {}, "lstm": {"core": "lstm", "core_size": 8}}.items():
        plain = train(A2CConfig(run_dir=folder / name, **SMALL, **changes))
        options: dict[str, Any] = {"record_trajectories": True, "run_dir": folder / f"recorded-{name}"}
        assert train(A2CConfig(**SMALL, **changes, **options)) == plain
        if comm.rank == 0:
            assert recorded_episodes(options["run_dir"]) == logged_episodes(options["run_dir"])
        comm.Barrier()


@pytest.mark.mpi(ranks=(3,))
def test_asynchronous_and_central_runs_record_values_and_versions(shared_dir: Path) -> None:
    from hpcrl.cluster.mpi import world
    from hpcrl.storage import TrajectoryDataset

    runs: dict[str, TrainConfig] = {
        "a3c": A3CConfig(run_dir=shared_dir / "a3c", record_trajectories=True, record_fraction=0.5, **SMALL),
        "central": ImpalaConfig(
            run_dir=shared_dir / "central", record_trajectories=True, inference="learner", batch_envs=6, **SMALL
        ),
    }
    for config in runs.values():
        train(config)
    if world().rank != 0:
        return
    halved, central = (TrajectoryDataset(config.run_dir or "") for config in runs.values())
    assert {int(item["env_index"]) for item in halved} == {1, 3, 5}
    for dataset in (halved, central):
        values = torch.stack([item["value"] for item in dataset])
        assert torch.isfinite(values).all() and values.std() > 0
    versions = torch.stack([item["row_version"] for item in central])
    assert (versions.diff(dim=1) >= 0).all() and versions.max() > 0
    # What a run that asks its learner records is what the policy says.
    missing = set(logged_episodes(shared_dir / "central")) - set(recorded_episodes(shared_dir / "central"))
    assert not missing


@pytest.mark.mpi(ranks=(1,))
def test_recorded_values_are_those_of_the_policy(shared_dir: Path) -> None:
    from hpcrl import Trainer
    from hpcrl.storage import TrajectoryDataset

    for number, changes in enumerate(
        ({}, {"core": "gru", "core_size": 8}, {"frame_stack": 2}, {"shared_encoder": True}, {"record_fraction": 0.5})
    ):
        settings = SMALL | {"total_env_steps": 96, "num_iterations": 1} | changes
        config = A2CConfig(run_dir=shared_dir / str(number), record_trajectories=True, learning_rate=1e-30, **settings)
        with Trainer(config) as trainer:
            list(trainer)
            policy = trainer._station.policy
        dataset = TrajectoryDataset(shared_dir / str(number))
        from hpcrl.algorithms.batch import Batch, sequence_of

        columns = TrajectoryDataset.collate([dataset[index] for index in range(len(dataset))])
        names = {field for field in Batch.__dataclass_fields__}
        batch = Batch(**{name: tensor for name, tensor in columns.items() if name in names})
        with torch.no_grad():
            said = policy.over(sequence_of(batch)).values[:-1]
        torch.testing.assert_close(columns["value"], said, rtol=1e-5, atol=1e-6)


@pytest.mark.mpi(ranks=(3,))
def test_evaluations_are_recorded(shared_dir: Path) -> None:
    from hpcrl import Trainer
    from hpcrl.cluster.mpi import world
    from hpcrl.storage.stitching import WholeEpisodes
    from hpcrl.storage.trajectories import open_shards

    config = A2CConfig(
        run_dir=shared_dir / "run", record_evaluation=True, eval_every=960, eval_episodes=7, eval_at_start=True, **SMALL
    )
    with Trainer(config) as trainer:
        means = [row["eval/episode_return_mean"] for row in trainer if np.isfinite(row["eval/episode_return_mean"])]
    if world().rank == 0:
        episodes = WholeEpisodes(open_shards(shared_dir / "run/trajectories", "evaluation"))
        returns: dict[int, list[float]] = {}
        for episode in episodes:
            assert episode.observations().shape == (episode.length + 1, 4)
            assert episode.steps("reward").sum() == episode.episode_return == episode.length
            returns.setdefault(episode.parts[0].shard.about.env_steps, []).append(episode.episode_return)
        assert [len(group) for group in returns.values()] == [7, 7, 7]
        assert [np.mean(group) for _, group in sorted(returns.items())] == means
        assert (shared_dir / "run/trajectories").exists() and not list((shared_dir / "run/trajectories").glob("actor*"))


@pytest.mark.mpi(ranks=(3,))
def test_evaluations_of_several_tasks_or_that_break_are_whole_episodes(shared_dir: Path) -> None:
    from hpcrl.cluster.mpi import world
    from hpcrl.storage.stitching import WholeEpisodes
    from hpcrl.storage.trajectories import open_shards

    settings = SMALL | {"record_evaluation": True, "eval_every": 1920, "eval_episodes": 40}
    train(A2CConfig(run_dir=shared_dir / "tasks", env="CartPole-v0 CartPole-v1", **settings))
    # With this seed five of the episodes break.
    settings |= {"env": "tests.calamities:mishap", "env_restarts": 100, "seed": 5}
    train(A2CConfig(run_dir=shared_dir / "mishap", **settings))
    if world().rank == 0:
        tasks = WholeEpisodes(open_shards(shared_dir / "tasks/trajectories", "evaluation"))
        assert len(tasks) == 2 * 40 and tasks.num_gaps == 0
        broken = WholeEpisodes(open_shards(shared_dir / "mishap/trajectories", "evaluation"))
        assert len(broken) == 40 and broken.num_gaps == 0 and max(episode.number for episode in broken) > 0
        for episode in broken:
            first, steps = episode.observations().T
            assert (first == episode.seed % 7).all() and (steps == np.arange(STEPS + 1)).all()


@pytest.mark.mpi(ranks=(3,))
def test_what_comes_after_the_checkpoint_is_put_aside(shared_dir: Path) -> None:
    from hpcrl import Trainer
    from hpcrl.cluster.mpi import world

    comm, run_dir = world(), shared_dir / "run"
    config = A2CConfig(run_dir=run_dir, record_trajectories=True, **SMALL)
    whole = train(A2CConfig(run_dir=shared_dir / "whole", **SMALL))
    # Iteration 3 ends beyond a checkpoint, and closing keeps what was recorded since.
    train(config, until=3)
    comm.Barrier()
    with Trainer.restore(run_dir, comm) as trainer:
        assert trainer.env_steps < 3 * SMALL["total_env_steps"] / 4
        list(trainer)
        assert trainer.weights_sha256() == whole
    if comm.rank == 0:
        assert list((run_dir / "trajectories").glob("*.discarded"))
        assert recorded_episodes(run_dir) == logged_episodes(run_dir)


@pytest.mark.mpi(ranks=(3,))
def test_a_disk_that_refuses_does_not_end_the_run(shared_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcrl import Trainer
    from hpcrl.cluster.mpi import world
    from hpcrl.storage.growing import GrowingFile

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(GrowingFile, "commit", refuse)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Trainer(A2CConfig(run_dir=shared_dir / "run", record_trajectories=True, **SMALL)) as trainer:
            assert len(list(trainer)) == 4
            failures = trainer.recording_failures
    rank = world().rank
    # Two actors, and five checkpoints at which each closes a shard.
    assert failures == (10 if rank == 0 else 0)
    warned = sum("TRAJECTORIES NOT WRITTEN" in str(warning.message) for warning in caught)
    assert warned == (0 if rank == 0 else 1)
    assert not list((shared_dir / "run/trajectories").glob("*")) if rank == 0 else True


@pytest.mark.mpi(ranks=(1,))
def test_an_update_from_files_is_the_update_from_memory(shared_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcrl.roles import station

    monkeypatch.setattr(station, "shuffled", lambda seed, num_columns: lambda place: place)
    for name, changes in {"plain": {}, "lstm": {"core": "lstm", "core_size": 8}}.items():
        settings = SMALL | {"schedule": "lockstep", "batch_envs": 6, "total_env_steps": 96 * 3, "num_iterations": 1}
        settings |= changes | {"env": "Acrobot-v1"}
        acted = train(ImpalaConfig(run_dir=shared_dir / name, record_trajectories=True, **settings))
        settings |= {"from_trajectories": shared_dir / name}
        # Every update of both begins with the same weights, so the last one ends with the same.
        assert train(ImpalaConfig(run_dir=shared_dir / f"{name}-offline", **settings)) == acted


@pytest.mark.mpi(ranks=(3,))
def test_offline_runs_do_not_depend_on_the_layout_and_go_on(shared_dir: Path) -> None:
    from hpcrl import Trainer
    from hpcrl.cluster.mpi import world

    comm, folder = world(), shared_dir
    recorded = folder / "recorded"
    train(A2CConfig(run_dir=recorded, record_trajectories=True, **SMALL))
    settings = SMALL | {"from_trajectories": recorded, "num_envs": 12, "eval_every": 960, "eval_episodes": 2}
    with Trainer(BCConfig(run_dir=folder / "bc", **settings), comm) as trainer:
        for row in trainer:
            if row["iteration"] == 2:
                trainer.save(folder / "half.h5")
            assert np.isnan(row["rollout/episode_return_mean"])
        whole = trainer.weights_sha256()
        weights = trainer._station.flat.weights.detach().clone()
    assert np.isfinite(row["eval/episode_return_mean"])
    with Trainer.restore(folder / "half.h5", comm, folder / "second-half") as trainer:
        list(trainer)
        assert trainer.weights_sha256() == whole
    with Trainer(BCConfig(run_dir=folder / "elsewhere", placement="colocated", **settings), comm) as trainer:
        list(trainer)
        others = trainer._station.flat.weights.detach()
    assert (others - weights).norm() / weights.norm() < 1e-5


@pytest.mark.mpi(ranks=(1,))
def test_good_episodes_alone_are_cloned(shared_dir: Path) -> None:
    from hpcrl import Trainer

    settings = SMALL | {"total_env_steps": 40_000, "num_envs": 16, "hidden_sizes": (32,), "checkpoint_every": 0}
    train(A2CConfig(run_dir=shared_dir / "recorded", record_trajectories=True, **settings))
    settings |= {"from_trajectories": shared_dir / "recorded", "eval_every": 40_000, "eval_deterministic": True}
    with Trainer(BCConfig(run_dir=shared_dir / "bc", min_return=120.0, **settings)) as trainer:
        *_, row = trainer
    assert row["eval/episode_return_mean"] > 100


@pytest.mark.mpi(ranks=(1,))
def test_what_does_not_fit_is_refused(shared_dir: Path) -> None:
    recorded = shared_dir / "recorded"
    train(A2CConfig(run_dir=recorded, record_trajectories=True, **SMALL))
    for changes, expected in (
        ({"env": "Acrobot-v1"}, "recorded other observations"),
        ({"unroll_length": 8}, "recorded other --unroll-length: 16, expected 8"),
        ({"frame_stack": 2}, "--frame-stack 2 is more than the 1 frames"),
        ({"min_return": 501.0}, "no whole episode"),
        ({"from_trajectories": None}, "bc needs --from-trajectories"),
    ):
        with pytest.raises(ConfigError, match=expected):
            train(BCConfig(run_dir=shared_dir / "refused", **SMALL | {"from_trajectories": recorded} | changes))
    with pytest.raises(TrajectoryError, match="holds no whole shard"):
        train(BCConfig(run_dir=shared_dir / "refused", from_trajectories=shared_dir, **SMALL))
