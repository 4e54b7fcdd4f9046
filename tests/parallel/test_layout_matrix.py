"""Every kind of observation, action, core and normaliser on three ranks: where they keep step, the run of one rank."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from hpcrl.config import CONFIGS
from tests.worlds import ACTIONS, OBSERVATIONS

NUM_ENVS, TIME, UPDATES = 5, 4, 3
CORES = ("none", "lstm", "gru")
PLACEMENTS = ("colocated", "split")
#: Statistics of all learners are needed.
NORMALISED = {
    "normalise_observations": True,
    "normalise_returns": True,
    "normalise_advantages": True,
    "reward_clip": 0.7,
    "placement": "colocated",
}
OF_ALGORITHM: dict[str, dict[str, Any]] = {
    "ppo": {"minibatches": 2, "epochs": 2},
    "impala": {"schedule": "lockstep"},
    "appo": {"schedule": "lockstep", "replay_epochs": 2},
}
TOLERANCE = 1e-5


def pairs(algorithm: str) -> list[dict[str, Any]]:
    """Each kind of observation once, with other actions, cores and placements for every algorithm."""
    shift = list(CONFIGS).index(algorithm)
    return [
        {
            "env": f"tests.worlds:Any-{observation}-{list(ACTIONS)[(number + 2 * shift) % len(ACTIONS)]}-v0",
            "core": CORES[(number + shift) % len(CORES)],
            "placement": PLACEMENTS[(number + number // 3 + shift) % len(PLACEMENTS)],
        }
        for number, observation in enumerate(OBSERVATIONS)
    ]


#: What each algorithm is tried with beside the kinds of spaces.
SPECIAL: list[dict[str, Any]] = [
    {"env": "tests.worlds:Masked-info-multi_discrete-v0", "core": "lstm", "placement": "colocated"},
    {"env": "tests.worlds:Masked-observation-discrete_start-v0"},
    {"env": "tests.worlds:Any-vector-box-v0", "core": "gru", "frame_stack": 3, **NORMALISED},
    {"env": "tests.worlds:Any-image-discrete-v0", "frame_stack": 2, "placement": "colocated"},
    {"env": "tests.worlds:Any-nested-dict-v0", "core": "lstm", **NORMALISED},
    # A learner has no environment.
    {"env": "tests.worlds:Any-dict-tuple-v0", "num_envs": 2, **NORMALISED},
]
OF_IMPALA: list[dict[str, Any]] = [
    {"env": "tests.worlds:Masked-info-discrete-v0", "behaviour_epsilon": 0.4, "core": "gru"},
    {"env": "tests.worlds:Any-vector-box-v0", "inference": "learner", "core": "lstm", "frame_stack": 3},
    {"env": "tests.worlds:Any-image-tuple-v0", "inference": "learner", "core": "gru", "frame_stack": 2},
    {"env": "tests.worlds:Masked-observation-multi_discrete-v0", "inference": "learner", "core": "lstm"},
    {"env": "tests.worlds:Any-nested-dict-v0", "inference": "learner", "normalise_observations": True},
]


def config_of(algorithm: str, changes: dict[str, Any]) -> Any:
    num_envs = changes.get("num_envs", NUM_ENVS)
    options = {
        "num_envs": num_envs,
        "unroll_length": TIME,
        "total_env_steps": UPDATES * num_envs * TIME,
        "num_iterations": 1,
        "checkpoint_every": 0,
        "check_in_sync_every": 1,
        "hidden_sizes": (6,),
        "core_size": 5,
        "entropy_coef": 0.01,
        "learning_rate_final": 5e-3,
    }
    if "lockstep" in OF_ALGORITHM.get(algorithm, {}).values():
        options["batch_envs"] = num_envs
    return CONFIGS[algorithm](**options | OF_ALGORITHM.get(algorithm, {}) | changes)


class Outcome(NamedTuple):
    """What a run came to: its weights, its updates, and what its first learner knows for normalising."""

    weights: NDArray[np.float32]
    updates: int
    normalisers: dict[str, NDArray]


def play(station: Any) -> Outcome:
    """A whole run of one rank's part; its environments and links are closed."""
    from hpcrl.roles.boundary import Boundary

    before = station.flat.weights.detach().clone()
    control = station.role.start()
    while not control.flags & Boundary.STOP:
        control = station.role.advance()
    weights = station.flat.weights.detach().numpy().copy()
    assert np.isfinite(weights).all() and not np.array_equal(weights, before.numpy())
    normalisers = {name: array.copy() for name, array in station.normaliser_arrays().items()}
    station.close()
    return Outcome(weights, control.policy_version, normalisers)


def on_all_ranks(config: Any, accelerated: bool = False) -> Outcome:
    """The run on the ranks of the world; `accelerated`: learners on what stands for an accelerator. Collective."""
    from hpcrl.activity import Activity
    from hpcrl.cluster.layout import plan_layout, plan_workers
    from hpcrl.cluster.mpi import world
    from hpcrl.cluster.ranks import Ranks, split_nodes
    from hpcrl.cluster.waiting import Waiter
    from hpcrl.config import A3CConfig
    from hpcrl.envs.factory import describe_task
    from hpcrl.envs.world import worlds_of
    from hpcrl.roles.asynchronous import AsynchronousStation
    from hpcrl.roles.synchronous import SynchronousStation
    from hpcrl.signals import Requests
    from tests.late import LateAccelerator

    comm = world()
    node, nodes = split_nodes(comm)
    is_a3c = isinstance(config, A3CConfig)
    plan, make = (plan_workers, AsynchronousStation) if is_a3c else (plan_layout, SynchronousStation)
    layout = plan(nodes, config.learners, config.placement, config.num_envs)
    task = describe_task(worlds_of(config)[0])
    ranks = Ranks(comm, layout, node)
    parts: list[Any] = [config, task, ranks, Requests(), Waiter(Activity())]
    if accelerated and ranks.is_learner:
        parts.append(LateAccelerator(comm.rank))
    return play(make(*parts))


def alone(config: Any) -> Outcome:
    """The same run on one rank that knows of no other."""
    import dataclasses

    from hpcrl.signals import Requests
    from tests.single.test_async_rank import station_of

    changes = {"placement": "split"} | ({"inference": "actor"} if hasattr(config, "inference") else {})
    station: Any = station_of(dataclasses.replace(config, **changes), Requests())
    station._close_links = lambda: None
    return play(station)


def assert_the_same_runs(algorithm: str, cases: list[dict[str, Any]], accelerated: bool = False) -> None:
    """All runs on three ranks, against those of one rank, which the ranks share out."""
    from hpcrl.cluster.mpi import world

    comm = world()
    configs = [config_of(algorithm, case) for case in cases]
    mine = {number: alone(config) for number, config in enumerate(configs) if number % comm.size == comm.rank}
    expected: dict[int, Outcome] = {}
    for part in comm.allgather(mine):
        expected |= part
    wrong = []
    for number, config in enumerate(configs):
        got, one = on_all_ranks(config, accelerated), expected[number]
        assert got.updates == one.updates >= UPDATES
        difference = np.linalg.norm(got.weights - one.weights) / np.linalg.norm(one.weights)
        if not difference <= TOLERANCE:
            wrong.append((cases[number], float(difference)))
        if comm.rank == 0:
            assert got.normalisers.keys() == one.normalisers.keys()
            for name, array in one.normalisers.items():
                # Of observations, which do not depend on actions here, these are the same sums in another order.
                rtol = 1e-5 if name.startswith("returns") else 1e-9
                np.testing.assert_allclose(got.normalisers[name], array, rtol=rtol, err_msg=f"{cases[number]}: {name}")
    assert not wrong, f"relative differences of the weights: {wrong}"


@pytest.mark.mpi(ranks=(3,), timeout=120)
@pytest.mark.parametrize("algorithm", ["a2c", "ppo", "impala"])
def test_learners_on_accelerators(algorithm: str) -> None:
    cases = SPECIAL + (OF_IMPALA if algorithm == "impala" else [])
    assert_the_same_runs(algorithm, cases, accelerated=True)


@pytest.mark.mpi(ranks=(3,), timeout=120)
def test_a2c() -> None:
    assert_the_same_runs("a2c", pairs("a2c") + SPECIAL)


@pytest.mark.mpi(ranks=(3,), timeout=120)
def test_ppo() -> None:
    assert_the_same_runs("ppo", pairs("ppo") + SPECIAL)


@pytest.mark.mpi(ranks=(3,), timeout=120)
def test_impala() -> None:
    assert_the_same_runs("impala", pairs("impala") + SPECIAL + OF_IMPALA)


@pytest.mark.mpi(ranks=(3,), timeout=120)
def test_appo() -> None:
    assert_the_same_runs("appo", pairs("appo") + SPECIAL)


@pytest.mark.mpi(ranks=(3,), timeout=120)
def test_runs_that_do_not_keep_step_learn_all_the_same() -> None:
    from hpcrl.cluster.mpi import world

    central = {"inference": "learner", "schedule": "run-ahead", "batch_envs": 4, "core": "lstm"}
    for observation, action in (("nested", "dict"), ("vector", "multi_discrete_start"), ("tuple", "box")):
        env = f"tests.worlds:Any-{observation}-{action}-v0"
        outcomes = [on_all_ranks(config_of("impala", central | {"env": env, "max_lag": 8}))]
        outcomes += [on_all_ranks(config_of("a3c", {"env": env, "core": "gru", "learners": 1, "reward_clip": 1.0}))]
        if observation == "vector":
            outcomes += [on_all_ranks(config_of("a3c", {"env": env, "frame_stack": 3, "placement": "colocated"}))]
        for outcome in outcomes:
            assert outcome.updates >= 2
            # At the end all ranks have the same weights.
            assert len(set(world().allgather(outcome.weights.tobytes()))) == 1
