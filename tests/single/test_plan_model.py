"""The planner's model: limits by hand, formulas of sums, files of costs, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest

from hpcrl.config import A2CConfig, ImpalaConfig
from hpcrl.errors import ConfigError
from hpcrl.planning import allreduce
from hpcrl.planning.costs import Line, Link, costs_from_json, fit_line
from hpcrl.planning.links import links_in, told_link, with_links
from hpcrl.planning.model import closed_queue, expected_maximum, predict
from hpcrl.planning.recommend import recommend
from hpcrl.planning.setups import make_setup, scaled
from hpcrl.roles.schedule import make_schedule
from tests.planning import LENGTH, a2c, a3c, costs, impala

ACT_4, LEARN_40 = LENGTH * 5.5e-3, 1e-2 + 40e-4 + 2e-3


def test_one_actor_takes_turns_with_its_learner() -> None:
    found = predict(a2c(1, 2), costs())
    assert found.env_steps_per_s == pytest.approx(40 / (ACT_4 + LEARN_40))
    assert found.actor_utilisation == pytest.approx(ACT_4 / (ACT_4 + LEARN_40))
    assert found.learner_utilisation == pytest.approx(LEARN_40 / (ACT_4 + LEARN_40))
    assert (found.lag_mean, found.bound_by) == (0, "environments")
    assert found.core_hours_per_million == pytest.approx(2 / found.env_steps_per_s * 1e6 / 3600)


def test_a_rank_alone_does_both_one_after_the_other() -> None:
    found = predict(a2c(1, 1), costs())
    assert found.env_steps_per_s == pytest.approx(40 / (ACT_4 + LEARN_40))
    assert (found.actor_utilisation, found.learner_utilisation) == (pytest.approx(1), pytest.approx(1))


@pytest.mark.parametrize(
    ("gradient", "seconds", "lag", "bound"),
    [(Line(1e-2, 1e-4), ACT_4, 1, "environments"), (Line(1.0, 0.0), 1.002, 2, "learner")],
)
def test_who_runs_ahead_is_as_fast_as_the_slower_of_both(
    gradient: Line, seconds: float, lag: float, bound: str
) -> None:
    found = predict(impala(1, 2), costs(gradient=gradient))
    assert found.env_steps_per_s == pytest.approx(40 / seconds, rel=1e-3)
    assert found.lag_mean == pytest.approx(lag, abs=0.01)
    assert found.bound_by == bound


def test_no_lag_is_lockstep() -> None:
    lockstep, none = (predict(impala(1, 2, **how), costs()) for how in ({"schedule": "lockstep"}, {"max_lag": 0}))
    assert lockstep == none
    assert lockstep.env_steps_per_s == pytest.approx(40 / (ACT_4 + LEARN_40))


def test_lockstep_waits_for_the_slowest_of_all_actors() -> None:
    setup = a2c(1, 5)
    calm, varied = predict(setup, costs()), predict(setup, costs(step_sd_s=1e-3))
    late = 40 / varied.env_steps_per_s - 40 / calm.env_steps_per_s
    assert late == pytest.approx(expected_maximum(4) * 1e-3 * math.sqrt(LENGTH))
    assert varied.parts["stragglers"] == pytest.approx(late)
    # Who takes whatever has arrived waits for nobody.
    assert predict(impala(1, 5), costs(step_sd_s=1e-3)).parts["stragglers"] == 0


@pytest.mark.parametrize("count", [2, 8, 64])
def test_the_expected_maximum_is_that_of_normal_draws(count: int) -> None:
    draws = np.random.default_rng(1).standard_normal((20_000, count)).max(1)
    assert expected_maximum(count) == pytest.approx(draws.mean(), abs=0.04)


@pytest.mark.parametrize(("first", "second"), [(1.0, 0.5), (0.5, 1.0), (1.0, 1.0)])
def test_the_queue_has_its_limits(first: float, second: float) -> None:
    bound = min(1 / first, 1 / second)
    assert closed_queue(first, second, 1, 0.5)[0] == pytest.approx(1 / (first + second))
    assert closed_queue(first, second, 3, 0.0)[0] == pytest.approx(bound, rel=2e-3)
    assert closed_queue(first, second, 1000, 2.0)[0] == pytest.approx(bound, rel=2e-3)
    # Both exponential: X = a (1 - r^3) / (1 - r^4)
    ratio = second / first
    exact = 3 / 4 / first if ratio == 1 else (1 - ratio**3) / (1 - ratio**4) / first
    assert closed_queue(first, second, 3, 2.0)[0] == pytest.approx(exact)


def test_sums_take_the_faster_of_both_algorithms() -> None:
    link = Link(1e-3, 1e6)
    assert allreduce.ring(4, 1000, link) == pytest.approx(6 * (1e-3 + 250e-6))
    assert allreduce.recursive_doubling(4, 1000, link) == pytest.approx(2 * (1e-3 + 1e-3))
    assert allreduce.recursive_doubling(5, 0, link) == pytest.approx(3e-3)
    assert allreduce.flat(4, 1000, link) == pytest.approx(4e-3)
    assert allreduce.flat(4, 1e6, link) == pytest.approx(allreduce.ring(4, 1e6, link))
    assert allreduce.flat(1, 1e6, link) == 0
    both = allreduce.flat(2, 1e6, Link(0, 1e9)) + allreduce.flat(4, 1e6, link)
    assert allreduce.hierarchical(4, 2, 1e6, Link(0, 1e9), link) == both


def test_learners_of_several_nodes_are_bound_by_a_slow_network() -> None:
    slow = costs(net=Link(0.05, 1e18))
    near, far = predict(a2c(1, 4, learners=2), slow), predict(a2c(2, 2), slow)
    assert far.parts["allreduce"] == pytest.approx(2 * 0.05)
    assert (near.parts["allreduce"], far.bound_by) == (pytest.approx(0), "allreduce")


def test_unrolls_of_other_nodes_share_the_connection_of_their_learner() -> None:
    # 5 actors, of which 3 are elsewhere; an unroll of 2 columns has 2,000 bytes.
    setup = a2c(2, 3, learners=1, num_envs=10)
    assert (setup.far_unrolls, setup.far_nodes, setup.actor_envs) == (3, 1, 2)
    found = predict(setup, costs(net=Link(0.0, 1e3)))
    assert found.parts["unroll transport"] == pytest.approx(3 * 2.0)
    assert found.parts["weights transport"] == pytest.approx(1.0, rel=1e-3)
    assert found.bound_by == "unroll transport"
    ahead = impala(2, 3, learners=1, num_envs=10, batch_envs=10)
    assert predict(ahead, costs(net=Link(0.0, 1e3))).bound_by == "unroll transport"


def test_asynchronous_workers_are_bound_by_themselves_or_by_the_owner() -> None:
    cycle = LENGTH * 2.5e-3 + 1e-2 + 10e-4
    found = predict(a3c(1, 5), costs())
    assert found.env_steps_per_s == pytest.approx(4 * 10 / cycle, rel=1e-3)
    assert found.lag_mean == pytest.approx(4 + 2e-3 / cycle * 4, rel=0.05)
    slow = costs(apply_s=0.5)
    found = predict(a3c(1, 5), slow)
    assert (found.bound_by, found.env_steps_per_s) == ("parameter owner", pytest.approx(10 / 0.5, rel=1e-3))
    assert predict(a3c(1, 6, learners=2), slow).env_steps_per_s == pytest.approx(10 / 0.25, rel=1e-2)


def test_setups_keep_step_as_runs_do() -> None:
    for sizes in ({}, {"num_envs": 12}, {"batch_envs": 12}, {"num_envs": 6, "batch_envs": 4}):
        for how in ({}, {"on_stale": "wait"}, {"schedule": "lockstep"}, {"deterministic": True, "max_lag": 9}):
            config = ImpalaConfig(**{"num_envs": 4, "batch_envs": 4, **sizes, **how})  # type: ignore[arg-type]
            setup, schedule = make_setup(config, 1, 3), make_schedule(config, hosted=False)
            assert (setup.num_slots, setup.slack, setup.in_rounds) == (
                schedule.num_slots,
                schedule.slack,
                schedule.in_rounds,
            )
            assert [setup.publication(k) for k in range(9)] == [schedule.publication(k) for k in range(9)]


def test_what_is_recommended_keeps_the_lag() -> None:
    config = ImpalaConfig(num_envs=64, batch_envs=16, unroll_length=LENGTH)
    cheap = costs(step=Line(0.0, 1e-4), gradient=Line(0.0, 1e-5))
    free = recommend(config, cheap, 2, 8, None)
    assert free is not None
    default = make_setup(config, 2, 8)
    assert free.per_core >= 0.99 * predict(default, cheap).env_steps_per_s / default.cores
    limit = 0.9 * free.prediction.lag_mean
    bound = recommend(config, cheap, 2, 8, limit)
    assert bound is not None and bound.prediction.lag_mean <= limit
    assert 0.99 * bound.per_core <= free.per_core
    assert recommend(config, cheap, 2, 8, -1.0) is None


def test_what_takes_no_time_is_no_error() -> None:
    free = Line(0.0, 0.0)
    nothing = costs(step=free, inference=free, gradient=free, apply_s=0.0)
    for setup in (a2c(1, 1), a2c(2, 2), impala(2, 2), impala(1, 3, inference="learner"), a3c(2, 2)):
        assert predict(setup, nothing).env_steps_per_s > 1e6


def test_costs_survive_a_file() -> None:
    before = costs(step_sd_s=1 / 3)
    assert costs_from_json(json.loads(json.dumps(before.to_json())), "x") == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("costs_format", 2),
        ("step", {"fixed": 1}),
        ("step", {"fixed": -1, "each": 1}),
        ("net", {"latency_s": 0, "bytes_per_s": 0}),
        ("apply_s", "fast"),
        ("apply_s", float("nan")),
        ("weights_bytes", 1.5),
        ("env", 3),
        ("surprise", 1),
    ],
)
def test_damaged_costs_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match="here"):
        costs_from_json({**costs().to_json(), name: value}, "here")


def test_costs_of_something_else_are_refused() -> None:
    config = A2CConfig()
    complaint = r"costs\.json was measured with --env CartPole-v1, expected Acrobot-v1"
    with pytest.raises(ConfigError, match=complaint):
        costs().require_fit(dataclasses.replace(config, env="Acrobot-v1"), "costs.json")
    with pytest.raises(ConfigError, match=r"--vector None, expected sync"):
        costs().require_fit(config, "costs.json")


def test_links_come_from_the_doctor() -> None:
    rows = [
        {"name": "allreduce", "between": "", "small_s": 1e-5, "large_s": 1e-2},
        {"name": "net link", "between": "", "small_s": 1e-5, "large_s": 1e-5 + (4 << 20) / 1e9},
    ]
    found = links_in({"links": rows}, "doctor.json")
    assert found == {"net": Link(1e-5, pytest.approx(1e9))}
    assert "doctor.json" in with_links(costs(), found, "doctor.json").links_from
    for data in ({}, {"links": []}, {"links": [{}]}, [1]):
        with pytest.raises(ConfigError, match=r"doctor\.json"):
            links_in(data, "doctor.json")
    assert told_link(5, 100) == Link(pytest.approx(5e-6), pytest.approx(12.5e9))
    with pytest.raises(ConfigError, match="--bandwidth-gbit must be above 0, got 0"):
        told_link(None, 0.0)


def test_a_line_is_fitted_by_relative_errors() -> None:
    line = fit_line([1, 10, 100], [3, 21, 201])
    assert (line.fixed, line.each) == (pytest.approx(1), pytest.approx(2))
    assert fit_line([4], [8]) == Line(0.0, 2.0)
    assert fit_line([1, 2], [3, 2]).each == 0
    assert fit_line([1, 2], [1, 3]).fixed == 0


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (A2CConfig(env="CartPole-v1 Acrobot-v1"), "one environment, got 2"),
        (A2CConfig(device="cuda"), "--device must be cpu or auto"),
        (A2CConfig(num_envs=2), "--num-envs 2 leaves some of 3 actors without an environment"),
        (ImpalaConfig(inference="learner", placement="colocated"), "needs actors on ranks of their own"),
    ],
)
def test_what_can_not_be_planned_is_refused(config: A2CConfig | ImpalaConfig, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        make_setup(config, 1, 4)


def test_environments_grow_with_the_actors_and_batches_with_them() -> None:
    grown = scaled(ImpalaConfig(num_envs=32, batch_envs=16), 10, 8)
    assert isinstance(grown, ImpalaConfig)
    assert (grown.num_envs, grown.batch_envs) == (80, 40)
