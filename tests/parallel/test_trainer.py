"""The Python API under several ranks: every rank sees the same rows, and a saved run goes on elsewhere."""

from __future__ import annotations

import os
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcrl import A2CConfig, A3CConfig
from hpcrl.errors import ConfigError


def _config(run_dir: Path | None, **changes: object) -> A2CConfig:
    settings: dict = {
        "run_dir": run_dir,
        "num_envs": 4,
        "total_env_steps": 2048,
        "num_iterations": 4,
        "tensorboard": False,
        "hidden_sizes": (16,),
    }
    return A2CConfig(**settings | changes)


@pytest.mark.mpi(ranks=(1,))
def test_a_process_that_goes_on_without_its_trainer_is_not_watched(shared_dir: Path) -> None:
    from hpcrl import Trainer

    with pytest.raises(KeyError), Trainer(_config(shared_dir / "left")) as trainer:
        trainer.train()
        raise KeyError
    with pytest.raises(ConfigError):
        Trainer(_config(shared_dir / "refused", learner_cores=100_000))
    watchdogs = [thread for thread in threading.enumerate() if thread.name == "hpcrl-watchdog"]
    for watchdog in watchdogs:
        watchdog.join(timeout=5)
    assert not any(watchdog.is_alive() for watchdog in watchdogs)


@pytest.mark.mpi(ranks=(1, 3))
def test_every_rank_sees_the_rows_and_a_saved_run_goes_on(shared_dir: Path) -> None:
    from hpcrl import Trainer
    from hpcrl.cluster.mpi import world

    comm = world()
    folder = shared_dir / f"world-of-{comm.size}"
    with Trainer(_config(folder / "whole", eval_at_start=True, eval_every=1024, eval_episodes=5), comm) as trainer:
        rows = []
        for row in trainer:
            rows.append(row)
            if row["iteration"] == 2:
                trainer.save(folder / "half.h5")
        whole = trainer.weights_sha256()
        assert trainer.stopped == "finished"
        assert trainer.train() is None
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["env_steps"] for row in rows] == [0, 512, 1024, 1536, 2048]
    assert np.isfinite(rows[0]["eval/episode_return_mean"]) and np.isnan(rows[1]["eval/episode_return_mean"])
    everyone = comm.allgather([row["train/value_loss"] for row in rows[1:]])
    assert all(losses == everyone[0] for losses in everyone)

    with Trainer.restore(folder / "half.h5", comm, folder / "second-half") as trainer:
        assert trainer.env_steps == 1024
        rest = list(trainer)
        assert [row["iteration"] for row in rest] == [3, 4]
        assert trainer.weights_sha256() == whole
    with Trainer.restore(folder / "whole", comm) as trainer:
        assert trainer.weights_sha256() == whole
        assert list(trainer) == []


@pytest.mark.mpi(ranks=(2,))
def test_training_stops_at_the_return_that_was_asked_for(shared_dir: Path) -> None:
    from hpcrl import Trainer

    config = _config(shared_dir / "run", total_env_steps=400_000, num_iterations=200, stop_return=25.0)
    with Trainer(config) as trainer:
        rows = list(trainer)
        assert trainer.stopped == "--stop-return reached"
        assert rows[-1]["rollout/return_last_100"] >= 25
        assert trainer.env_steps < 400_000
    assert list((shared_dir / "run/checkpoints").glob("*.h5"))


@pytest.mark.mpi(ranks=(2,))
def test_a_full_disk_does_not_end_the_run(shared_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcrl import Trainer
    from hpcrl.cluster.mpi import world
    from hpcrl.errors import CheckpointError
    from hpcrl.storage.checkpoints import CheckpointStore

    def refuse(*_: object) -> None:
        raise CheckpointError("no space left on device")

    monkeypatch.setattr(CheckpointStore, "save", refuse)
    config = _config(shared_dir / "run", checkpoint_every=512)
    with warnings.catch_warnings(record=True) as caught, Trainer(config) as trainer:
        warnings.simplefilter("always")
        assert len(list(trainer)) == 4
        failures = trainer.checkpoint_failures
    on_root = world().rank == 0
    assert failures == (4 if on_root else 0)
    assert any("CHECKPOINT NOT WRITTEN" in str(warning.message) for warning in caught) == on_root


@pytest.mark.mpi(ranks=(1,))
def test_a_run_goes_on_with_its_own_algorithm_only(shared_dir: Path) -> None:
    from hpcrl import ImpalaConfig, Trainer
    from hpcrl.errors import CheckpointError

    config = _config(shared_dir / "run", total_env_steps=128, num_iterations=1)
    with Trainer(config) as trainer:
        list(trainer)
        assert not any("runs ahead" in note for note in trainer.notes)
    with pytest.raises(CheckpointError, match="algorithm 'a2c', expected 'impala'"):
        Trainer(ImpalaConfig(run_dir=shared_dir / "run", resume=True, num_envs=4, hidden_sizes=(16,)))
    with Trainer(ImpalaConfig(run_dir=shared_dir / "other", total_env_steps=1024, tensorboard=False)) as trainer:
        assert any("no actor runs ahead" in note for note in trainer.notes)
        list(trainer)
        assert trainer.account is not None and trainer.account.under_way == 0


@pytest.mark.mpi(ranks=(2,))
def test_asynchronous_ranks_compare_their_weights_when_enough_updates_have_gone_by(shared_dir: Path) -> None:
    from hpcrl import Trainer
    from hpcrl.cluster.mpi import world
    from hpcrl.errors import RankError

    comm = world()
    options = {"check_in_sync_every": 3, "tensorboard": False, "hidden_sizes": (16,), "num_envs": 2}
    with Trainer(A3CConfig(run_dir=shared_dir / "run", **options), comm) as trainer:  # type: ignore[arg-type]
        station: Any = trainer._station
        if comm.rank == 1:
            station.flat.weights.data[5] += 1e-6
        station._check_in_sync(2)
        with pytest.raises(RankError, match="after update 3 the weights of rank 1 differ from those of rank 0"):
            station._check_in_sync(3)
        station._check_in_sync(5)


def _refuse(*_: object) -> None:
    error = ConfigError("refused")
    error.on_all_ranks = True
    raise error


@pytest.mark.mpi(ranks=(2,))
def test_ranks_have_cores_of_their_own_until_the_end(shared_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcrl import Trainer
    from hpcrl.cluster.mpi import world

    comm, whole = world(), os.sched_getaffinity(0)
    if len(whole) < 2:
        pytest.skip("two ranks have no core each")
    step = {"JOB_ID": "7", "STEP_ID": "0", "PROCID": str(comm.rank), "STEP_NUM_TASKS": "2", "CPUS_ON_NODE": len(whole)}
    for name, value in step.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    for mode in ("on", "auto"):
        with Trainer(_config(shared_dir / mode, pin_cores=mode), comm) as trainer:
            assert trainer.train() is not None
            masks = [os.sched_getaffinity(int(thread.name)) for thread in Path("/proc/self/task").iterdir()]
            assert len(masks) > 1 and all(mask == masks[0] for mask in masks)
            one, other = comm.allgather(masks[0])
            assert one and other and not one & other and one | other <= whole
            assert any(note.startswith("cores: rank") for note in trainer.notes)
        assert os.sched_getaffinity(0) == whole

    monkeypatch.setenv("SLURM_CPUS_ON_NODE", str(len(whole) - 1))
    with Trainer(_config(shared_dir / "shared"), comm) as trainer:
        assert os.sched_getaffinity(0) == whole
        assert any(note.startswith("cores: not pinned on ") for note in trainer.notes)
    too_many = _config(shared_dir / "too-many", pin_cores="on", learner_cores=len(whole))
    with pytest.raises(ConfigError, match=f"the ranks need {len(whole) + 1} cores and may use {len(whole)} CPUs$"):
        Trainer(too_many, comm)
    # An error after cores have been given, while the parts are made and then in the user's block.
    with monkeypatch.context() as patch, pytest.raises(ConfigError, match="refused"):
        patch.setattr("hpcrl.trainer.Heartbeats", _refuse)
        Trainer(_config(shared_dir / "refused", pin_cores="on"), comm)
    assert os.sched_getaffinity(0) == whole
    with (
        pytest.raises(ConfigError, match="refused"),
        Trainer(_config(shared_dir / "left", pin_cores="on"), comm) as trainer,
    ):
        assert os.sched_getaffinity(0) != whole
        _refuse()
    assert os.sched_getaffinity(0) == whole
    trainer.close()
    # The launcher has bound its ranks.
    os.sched_setaffinity(0, {sorted(whole)[comm.rank]})
    with Trainer(_config(shared_dir / "bound"), comm) as trainer:
        assert os.sched_getaffinity(0) == {sorted(whole)[comm.rank]}
    with pytest.raises(ConfigError, match="where the launcher has bound the ranks already"):
        Trainer(_config(shared_dir / "bound-twice", pin_cores="on"), comm)
    os.sched_setaffinity(0, whole)
