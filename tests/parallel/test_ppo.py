"""Proximal policy optimisation on any layout: the same minibatches, the same weights up to rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcrl.activity import Activity
from hpcrl.config import PPOConfig
from tests.commands import relative_difference

#: Five environments on three learners are 2, 2 and 1; two leave one learner without any.
_OPTIONS: dict[str, Any] = {
    "num_envs": 5,
    "unroll_length": 16,
    "epochs": 3,
    "total_env_steps": 4 * 5 * 16,
    "num_iterations": 1,
    "placement": "colocated",
    "hidden_sizes": (16,),
    "core_size": 8,
    "tensorboard": False,
    "check_in_sync_every": 1,
    "clip_range_final": 0.1,
    "value_clip_range": 0.5,
}
_RUNS: dict[str, dict[str, Any]] = {
    "rows": {},
    "few-rows": {"num_envs": 2, "minibatches": 30, "total_env_steps": 3 * 2 * 16},
    "columns": {"core": "lstm"},
    "stacked": {"frame_stack": 3},
    "near": {"target_kl": 2e-4, "learning_rate": 5e-3},
}


def _train(comm: Any, run_dir: Path, **options: Any) -> tuple[np.ndarray, int, int]:
    """Weights, updates and env steps at the end; the same on all ranks."""
    from hpcrl import Trainer

    with Trainer(PPOConfig(**{"run_dir": run_dir, **_OPTIONS, **options}), comm) as trainer:
        trainer.train()
        assert trainer.stopped == "finished"
        return trainer._station.flat.weights.detach().numpy().copy(), trainer.learner_updates, trainer.env_steps


@pytest.mark.mpi(ranks=(3,), timeout=120)
def test_unequal_learners_learn_the_same_as_one(shared_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcrl.cluster.mpi import world
    from hpcrl.cluster.waiting import Waiter

    comm = world()
    together = {name: _train(comm, shared_dir / name, **options) for name, options in _RUNS.items()}
    # The first rank is a world of its own, whatever the launcher promised.
    for variable in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    alone = comm.Split(comm.rank)
    for name, options in _RUNS.items() if comm.rank == 0 else ():
        weights, updates, steps = together[name]
        others = _train(alone, shared_dir / f"{name}-alone", **options)
        assert relative_difference(weights, others[0]) <= 1e-5, name
        assert (updates, steps) == others[1:], name
        batches = steps // (16 * options.get("num_envs", 5))
        most = batches * 3 * options.get("minibatches", 4)
        assert batches <= updates < most if name == "near" else updates == most, name
    # The others leave their cores to the first rank meanwhile.
    Waiter(Activity()).request(comm.Ibarrier())


@pytest.mark.mpi(ranks=(3,), timeout=120)
def test_minibatches_of_ignored_rows_are_no_updates(shared_dir: Path) -> None:
    """An action after an end is ignored, and every row is a minibatch of its own."""
    from hpcrl.cluster.mpi import world

    options = {"env": "tests.environments:NextStep-v0", "vector": "native", "num_envs": 3}
    sizes = {"unroll_length": 32, "minibatches": 96, "epochs": 2}
    _, updates, steps = _train(world(), shared_dir / "run", **options, **sizes)
    assert steps % 96 and updates == 2 * steps
