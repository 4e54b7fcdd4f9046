"""Checkpoints that are written while training goes on: of the moment of the call, all of them, before a run is over."""

from __future__ import annotations

import dataclasses
import json
import threading
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpcrl import A2CConfig, A3CConfig, ImpalaConfig
from hpcrl.errors import CheckpointError
from hpcrl.metrics import EPISODE
from hpcrl.storage.background import Background
from hpcrl.storage.checkpoints import CheckpointStore
from hpcrl.storage.run_directory import RunDirectory

_COMMON: dict[str, Any] = {
    "num_envs": 4,
    "total_env_steps": 2048,
    "num_iterations": 4,
    "tensorboard": False,
    "hidden_sizes": (16,),
}
#: Runs that between them keep everything that a checkpoint may hold.
_KEEPING = {
    "normalised": A2CConfig(normalise_observations=True, normalise_returns=True, optimizer="adam", **_COMMON),
    "own-state": A2CConfig(env="GridNavigation-v0", core="gru", core_size=8, **_COMMON),
    "native": ImpalaConfig(vector="native", **_COMMON),
    "frames": A2CConfig(frame_stack=3, **_COMMON),
    "sharded": A3CConfig(optimizer="adam", **_COMMON),
}
#: Made from numbers that nobody can change in place.
_PLAIN_NUMBERS = ("seed", "action_counter", "rows", "count", "_steps", "state_position")
#: Attributes that lead to what a rank is connected by, which must go on working.
_NOT_STATE = {"_waiter", "_ranks", "_links", "_mesh", "_requests", "_writer", "_receivers", "_senders", "_channel"}


def _state_below(root: object) -> Iterator[np.ndarray | torch.Tensor]:
    """Every array and tensor that an object of ours, or of its environments, holds."""
    seen, waiting = set[int](), deque[object]([root])
    while waiting:
        item = waiting.popleft()
        if id(item) in seen or isinstance(item, type):
            continue
        seen.add(id(item))
        if isinstance(item, np.ndarray | torch.Tensor):
            yield item
        elif isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, list | tuple | deque):
            waiting.extend(item)
        elif type(item).__module__.split(".")[0] in ("hpcrl", "gymnasium", "torch"):
            names = [*getattr(item, "__dict__", ()), *getattr(type(item), "__slots__", ())]
            waiting.extend(getattr(item, name, None) for name in names if name not in _NOT_STATE)


def _spoil(root: object) -> int:
    """Change every number below an object in place; how many arrays those are."""
    count = 0
    for item in _state_below(root):
        array = item.detach().numpy() if isinstance(item, torch.Tensor) else item
        for field in [array] if array.dtype.names is None else [array[name] for name in array.dtype.names]:
            if field.flags.writeable and field.dtype.kind in "biuf":
                np.copyto(field, ~field if field.dtype == np.bool_ else field * 3 + 1, casting="unsafe")
                count += 1
    return count


class Held(Background):
    """Tasks that do not begin before they are allowed to."""

    def __init__(self) -> None:
        super().__init__()
        self.may_begin = threading.Event()

    def begin(self, task: Any) -> None:
        def once_allowed() -> None:
            self.may_begin.wait()
            task()

        super().begin(once_allowed)


@pytest.mark.mpi(ranks=(1,))
@pytest.mark.parametrize("name", _KEEPING)
def test_a_checkpoint_is_of_the_moment_of_the_call(shared_dir: Path, name: str) -> None:
    """Every array that the rank holds is changed before the first byte is written."""
    from hpcrl import Trainer

    # Not the first checkpoint, whose memory is new.
    config = dataclasses.replace(_KEEPING[name], run_dir=shared_dir / name, checkpoint_every=512)
    with Trainer(config) as trainer:
        trainer.train()
        trainer.train()
        recorder: Any = trainer._recorder
        # As in the middle of an iteration.
        recorder.add_episodes(np.ones(3, EPISODE))
        recorder.finish_save()
        recorder._writer.close()
        recorder._writer = held = Held()
        expected: dict[str, np.ndarray] = {}
        original = recorder.save

        def save(arrays: dict[str, np.ndarray], attributes: dict[str, Any]) -> None:
            expected.update({key: array.copy() for key, array in arrays.items()})
            original(arrays, attributes)

        recorder.save = save
        trainer._saver.save_checkpoint(trainer.env_steps, trainer.learner_updates, float("nan"))
        assert not held.is_over
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            assert _spoil([trainer._station, recorder.episodes]) > 20
        again, _ = trainer._saver.snapshot(trainer.env_steps, trainer.learner_updates)
        held.may_begin.set()
        recorder.finish_save()
        checkpoint = CheckpointStore(trainer.run_dir / "checkpoints").newest()
        assert checkpoint is not None and checkpoint.arrays.keys() == expected.keys()
        assert int(checkpoint.attributes["learner_updates"]) == trainer.learner_updates
        for key, array in expected.items():
            assert checkpoint.arrays[key].tobytes() == array.tobytes(), key
        # What was spoiled is what checkpoints are made of.
        unchanged = {key for key, array in again.items() if array.size and array.tobytes() == expected[key].tobytes()}
        assert {key for key in unchanged if not key.endswith(_PLAIN_NUMBERS)} == set(), name


@pytest.mark.mpi(ranks=(2,))
def test_a_run_is_over_once_its_last_checkpoint_is_written(shared_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcrl import Trainer
    from hpcrl.cluster.mpi import world

    outcomes, never = list[str | None](), threading.Event()
    original = CheckpointStore.save

    def save(self: CheckpointStore, *arguments: Any) -> Path:
        never.wait(0.2)
        outcomes.append(RunDirectory(shared_dir / "run").read_outcome())
        return original(self, *arguments)

    monkeypatch.setattr(CheckpointStore, "save", save)
    config = A2CConfig(run_dir=shared_dir / "run", checkpoint_every=1024, **_COMMON)
    with Trainer(config) as trainer:
        rows = list(trainer)
        if world().rank == 0:
            assert outcomes == ["running"] * 2
            assert RunDirectory(shared_dir / "run").read_outcome() == "finished"
            newest = CheckpointStore(shared_dir / "run/checkpoints").newest()
            assert newest is not None and newest.attributes["env_steps"] == 2048
    # The checkpoint at step 1024 is one of the iteration after the report there.
    assert [row["time/checkpoint_pause_s"] > 0 for row in rows] == [False, False, True, False]


@pytest.mark.mpi(ranks=(1,))
def test_milestones_stay_also_where_the_disk_refused_the_first_beyond_them(
    shared_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpcrl import Trainer

    original = CheckpointStore.save

    def save(self: CheckpointStore, name: str, *arguments: Any) -> Path:
        if name == "step_000000001024":
            raise CheckpointError("no space left on device")
        return original(self, name, *arguments)

    monkeypatch.setattr(CheckpointStore, "save", save)
    folder = shared_dir / "milestones"
    options = {"checkpoint_every": 512, "checkpoint_milestones": 800, "unroll_length": 32}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Trainer(A2CConfig(run_dir=folder, **_COMMON, **options)) as trainer:
            rows = list(trainer)
            assert trainer.checkpoint_failures == 1
    assert sum("CHECKPOINT NOT WRITTEN" in str(warning.message) for warning in caught) == 1
    assert RunDirectory(folder).read_outcome() == "running"
    assert sum(row["time/checkpoint_write_s"] for row in rows) > 0
    lines = json.loads((folder / "checkpoints/manifest.json").read_text())["checkpoints"]
    assert {line["env_steps"] for line in lines if line.get("milestone")} == {896, 1664}
