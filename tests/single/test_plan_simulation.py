"""The planner's simulation: closed forms where nothing varies, bounds where something does."""

from __future__ import annotations

import dataclasses

import pytest

from hpcrl.config import ImpalaConfig
from hpcrl.errors import ConfigError
from hpcrl.planning.costs import Line, Link
from hpcrl.planning.model import acting_parts, learning_parts, predict
from hpcrl.planning.setups import Setup, make_setup
from hpcrl.planning.simulation import simulate
from tests.planning import LENGTH, a2c, a3c, costs, impala

SLOW_NET = Link(3e-3, 1e5)
VARIED = {"step_sd_s": 8e-4, "nap_s": 5e-4, "net": Link(1e-4, 1e7)}


@pytest.mark.parametrize(
    "setup",
    [
        a2c(1, 1),
        a2c(1, 2),
        a2c(1, 5),
        a2c(2, 3, learners=2),
        a2c(1, 4, placement="colocated"),
        impala(1, 2),
        impala(1, 5),
        impala(1, 3, schedule="lockstep"),
        impala(1, 3, on_stale="wait", max_lag=1),
        impala(1, 3, num_envs=8),
        impala(1, 3, batch_envs=8),
        impala(1, 3, replay_epochs=2),
        a3c(1, 2),
        a3c(1, 5),
    ],
)
def test_without_variation_it_is_the_closed_form(setup: Setup) -> None:
    found, expected = simulate(setup, costs(), turns=40), predict(setup, costs())
    assert found.env_steps_per_s == pytest.approx(expected.env_steps_per_s, rel=0.02)
    assert found.learner_utilisation == pytest.approx(expected.learner_utilisation, abs=0.02)
    assert found.actor_utilisation == pytest.approx(expected.actor_utilisation, abs=0.02)
    # Columns of a batch arrive at once here: the model has them spread.
    assert found.lag_mean == pytest.approx(expected.lag_mean, abs=0.51)
    assert found.dropped == 0


@pytest.mark.parametrize("learn_s", [0.0, 0.03, 0.06, 0.2])
@pytest.mark.parametrize("ranks", [3, 9])
def test_running_ahead_is_never_faster_than_the_slower_of_both(learn_s: float, ranks: int) -> None:
    setup, numbers = impala(1, ranks, num_envs=8, batch_envs=8), costs(gradient=Line(learn_s, 0.0), **VARIED)
    acts, learns = (sum(parts(setup, numbers).values()) for parts in (acting_parts, learning_parts))
    found = simulate(setup, numbers, turns=200)
    bound = 80 * min(1 / acts, 1 / learns)
    assert 0.85 * bound < found.env_steps_per_s < 1.02 * bound
    assert found.env_steps_per_s == pytest.approx(predict(setup, numbers).env_steps_per_s, rel=0.1)
    assert found.lag_mean <= setup.most_lag + 0.01


def test_lockstep_pays_for_the_slowest() -> None:
    setup, numbers = a2c(1, 9, num_envs=32), costs(**VARIED)
    found, calm = simulate(setup, numbers, turns=300), simulate(setup, dataclasses.replace(numbers, step_sd_s=0.0))
    assert found.env_steps_per_s < 0.97 * calm.env_steps_per_s
    assert found.env_steps_per_s == pytest.approx(predict(setup, numbers).env_steps_per_s, rel=0.02)


def test_lag_keeps_its_bound() -> None:
    for lag in (1, 2):
        setup = impala(1, 3, on_stale="wait", max_lag=lag)
        assert simulate(setup, costs(gradient=Line(0.5, 0.0))).lag_mean <= lag
    tight = impala(1, 5, num_envs=32, batch_envs=8, max_lag=4)
    assert simulate(tight, costs(gradient=Line(0.5, 0.0))).dropped > 0


def test_a_slow_network_is_waited_for() -> None:
    for setup in (a2c(2, 3, learners=1, num_envs=10), impala(2, 3, learners=1, num_envs=10, batch_envs=10)):
        slow = costs(net=SLOW_NET)
        found = simulate(setup, slow)
        assert found.env_steps_per_s < simulate(setup, costs()).env_steps_per_s
        assert found.env_steps_per_s == pytest.approx(predict(setup, slow).env_steps_per_s, rel=0.1)


def test_learners_that_answer_can_not_answer_while_they_learn() -> None:
    central = impala(1, 3, inference="learner")
    found = simulate(central, costs())
    assert found.env_steps_per_s == pytest.approx(predict(central, costs()).env_steps_per_s, rel=0.02)
    assert found.env_steps_per_s < simulate(impala(1, 3), costs()).env_steps_per_s


def test_the_same_seed_is_the_same_run() -> None:
    setup, numbers = impala(1, 5), costs(**VARIED)
    assert simulate(setup, numbers, seed=3) == simulate(setup, numbers, seed=3) != simulate(setup, numbers, seed=4)


def test_more_ranks_than_can_be_simulated_are_refused() -> None:
    config = ImpalaConfig(num_envs=10_000, batch_envs=10_000, unroll_length=LENGTH)
    with pytest.raises(ConfigError, match="at most 4096 ranks can be simulated, got 4097"):
        simulate(make_setup(config, 1, 4097), costs())
