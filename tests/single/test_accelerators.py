"""Learning on an accelerator: the same numbers as on the host, whatever the timing; the CPU stands for one."""

from __future__ import annotations

from typing import Any, cast

import tests.no_mpi  # noqa: F401

# isort: split
import numpy as np
import pytest
import torch

from hpcrl.config import CONFIGS, ActorCriticConfig
from hpcrl.devices import accelerator
from hpcrl.devices.accelerator import Accelerator, HostAccelerator
from hpcrl.metrics import COLUMNS, UPDATE_PARTS, range_columns
from hpcrl.roles.snapshot import load_optimizer, optimizer_arrays
from hpcrl.roles.synchronous import SynchronousStation
from hpcrl.signals import Requests
from tests.late import LateAccelerator
from tests.single.test_async_rank import station_of

OPTIONS: dict[str, Any] = {
    "num_envs": 4,
    "unroll_length": 5,
    "hidden_sizes": (8,),
    "core_size": 6,
    "total_env_steps": 10**6,
    "entropy_coef": 0.01,
}
RUNS: dict[str, dict[str, Any]] = {
    "a2c": {"algorithm": "a2c", "env": "CartPole-v1"},
    "finals": {"algorithm": "a2c", "env": "tests.worlds:Any-vector-box-v0"},
    "packed": {"algorithm": "a2c", "env": "tests.worlds:Any-nested-dict-v0", "core": "lstm"},
    "masks": {"algorithm": "impala", "env": "tests.worlds:Masked-info-discrete-v0"},
    "frames": {"algorithm": "impala", "env": "tests.worlds:Any-image-discrete-v0", "frame_stack": 3},
    "parts": {"algorithm": "impala", "env": "tests.worlds:Any-vector-discrete-v0", "batch_envs": 3},
    "replayed": {"algorithm": "appo", "env": "tests.worlds:Any-vector-discrete-v0", "replay_epochs": 2},
    "ppo": {"algorithm": "ppo", "env": "tests.worlds:Any-vector-discrete-v0", "minibatches": 3, "epochs": 2},
    "ppo, recurrent": {"algorithm": "ppo", "env": "tests.worlds:Any-vector-box-v0", "minibatches": 2, "core": "gru"},
    "normalised": {
        "algorithm": "ppo",
        "env": "tests.worlds:Any-vector-box-v0",
        "minibatches": 2,
        "normalise_observations": True,
        "normalise_returns": True,
        "reward_clip": 3.0,
    },
}


def station(run: str, accelerator: Accelerator | None, **changes: Any) -> SynchronousStation:
    options = OPTIONS | RUNS[run] | changes
    config = cast(ActorCriticConfig, CONFIGS[options.pop("algorithm")](**options))
    made = station_of(config, Requests(), accelerator)
    assert isinstance(made, SynchronousStation)
    # Waits for the accelerator are not for other ranks.
    polls = iter(range(100_000))
    made._waiter.chores.append(lambda: next(polls, None) is not None)
    made.role.start()
    return made


def advance(station: SynchronousStation, batches: int) -> None:
    for _ in range(batches):
        station.role.advance()


def reduced(station: SynchronousStation) -> dict[str, float]:
    assert station.role.reducer is not None
    return station.role.reducer.take()


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_what_is_learned_is_bit_for_bit_that_of_the_host(run: str, seed: int | None) -> None:
    accelerator = HostAccelerator() if seed is None else LateAccelerator(seed)
    there, here = station(run, accelerator), station(run, None)
    for batches in (1, 3, 4):
        advance(there, batches)
        advance(here, batches)
        assert torch.equal(there.flat.weights, here.flat.weights)
    assert reduced(there) == reduced(here)
    assert there.learner is not None and here.learner is not None
    assert there.learner.flat.weights.data_ptr() != there.flat.weights.data_ptr()
    mine, theirs = (optimizer_arrays(each.flat, each.learner.optimizer.state) for each in (there, here))  # type: ignore[union-attr]
    assert mine.keys() == theirs.keys() and all(np.array_equal(mine[name], theirs[name]) for name in mine)


def test_what_an_accelerator_does_is_reported() -> None:
    there, here = station("finals", LateAccelerator()), station("finals", None)
    for made in (there, here):
        advance(made, 2)
    assert there.learner is not None and here.learner is not None
    counts, on_host = there.learner.take_counts(), here.learner.take_counts()
    spec = there._specs[0]
    assert 1.5 * spec.nbytes < counts["comm/upload_bytes"] <= 2 * spec.nbytes and on_host["comm/upload_bytes"] == 0
    for row in (counts, on_host):
        assert all(row[f"time/update_{part}_s"] > 0 for part in UPDATE_PARTS)
    ranges = there.learner.take_ranges()
    assert range_columns("gpu/busy_percent_", [ranges["gpu/busy_percent_"]])["gpu/busy_percent_mean"] == 40
    assert range_columns("gpu/used_bytes_", [ranges["gpu/used_bytes_"]])["gpu/used_bytes_max"] == 2**20
    nothing = range_columns("gpu/used_bytes_", [here.learner.take_ranges()["gpu/used_bytes_"]])
    assert np.isnan(list(nothing.values())).all() and set(counts) | set(nothing) <= set(COLUMNS)


def test_a_learner_goes_on_from_the_ranks_own_weights() -> None:
    first = station("ppo", None)
    advance(first, 2)
    second = station("ppo", LateAccelerator())
    assert first.learner is not None and second.learner is not None
    second.flat.weights.detach().copy_(first.flat.weights.detach())
    load_optimizer(
        second.flat, second.learner.optimizer.state, optimizer_arrays(first.flat, first.learner.optimizer.state)
    )
    assert not torch.equal(second.learner.flat.weights, first.flat.weights)
    second.role.start()
    assert torch.equal(second.learner.flat.weights, first.flat.weights)


def test_slots_are_pinned_until_their_memory_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = LateAccelerator()
    made = station("a2c", accelerator)
    assert accelerator.num_pinned > 0
    closed = []
    monkeypatch.setattr(made._links, "close", lambda: closed.append(accelerator.is_closed))
    made.close()
    assert closed == [True]


def test_ranges_of_pages() -> None:
    memory = np.zeros(10 * 4096, np.uint8)
    base = memory.ctypes.data
    start = -base % 4096
    pages = base + start

    def piece(first: int, end: int) -> Any:
        return memory[start + first : start + end]

    def ranges(memories: list[Any]) -> list[tuple[int, int]]:
        return accelerator.ranges(memories, 4096)

    assert ranges([]) == ranges([piece(5, 5)]) == []
    assert ranges([piece(10, 20)]) == [(pages, pages + 4096)]
    assert ranges([piece(4096, 8192), piece(0, 4096)]) == [(pages, pages + 8192)]
    assert ranges([piece(4000, 5000), piece(4500, 4600), piece(20000, 20001)]) == [
        (pages, pages + 8192),
        (pages + 16384, pages + 20480),
    ]
