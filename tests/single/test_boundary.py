"""What is due between two updates: crossings of intervals, reports, stops."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcrl.config import A2CConfig
from hpcrl.roles.boundary import Boundary, decide, is_milestone, iteration_of

NONE, EVALUATE, REPORT, SAVE, STOP = (
    Boundary.NONE,
    Boundary.EVALUATE,
    Boundary.REPORT,
    Boundary.SAVE,
    Boundary.STOP,
)
CONFIG = A2CConfig(total_env_steps=1000, num_iterations=10, eval_every=250, checkpoint_every=400)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (0, 99, NONE),
        (99, 100, REPORT),
        (0, 100, REPORT),
        (100, 199, NONE),
        (199, 249, REPORT),
        (249, 250, EVALUATE),
        (250, 250, NONE),
        (399, 400, REPORT | SAVE),
        (399, 401, REPORT | SAVE),
        (400, 499, NONE),
        (100, 900, EVALUATE | REPORT | SAVE),
        (999, 1000, EVALUATE | REPORT | SAVE | STOP),
        (999, 1500, EVALUATE | REPORT | SAVE | STOP),
    ],
)
def test_what_is_due_is_what_was_crossed(before: int, after: int, expected: Boundary) -> None:
    assert decide(CONFIG, before, after, False, False) == expected


def test_an_interval_of_zero_is_never_due() -> None:
    config = A2CConfig(total_env_steps=1000, num_iterations=1, eval_every=0, checkpoint_every=0)
    assert decide(config, 0, 999, False, False) == NONE
    assert decide(config, 0, 1000, False, False) == REPORT | SAVE | STOP


def test_a_milestone_saves_whatever_the_interval() -> None:
    config = A2CConfig(total_env_steps=10_000, num_iterations=1, checkpoint_every=4000, checkpoint_milestones=300)
    assert [decide(config, steps, steps + 200, False, False) for steps in (0, 200, 400)] == [NONE, SAVE, SAVE]
    assert decide(config, 600, 800, False, False) == NONE
    assert [is_milestone(config, 200, steps) for steps in (299, 300, 1000)] == [False, True, True]
    assert not is_milestone(A2CConfig(), 0, 10**9)


def test_a_stop_saves_but_reports_nothing() -> None:
    assert decide(CONFIG, 100, 110, True, False) == SAVE | STOP
    assert decide(CONFIG, 100, 100, True, False) == SAVE | STOP
    assert decide(CONFIG, 190, 210, True, False) == REPORT | SAVE | STOP


def test_a_save_goes_on() -> None:
    assert decide(CONFIG, 100, 110, False, True) == SAVE


def test_flags_are_acted_upon_in_their_order() -> None:
    assert [flag.name for flag in sorted(Boundary)] == ["EVALUATE", "REPORT", "SAVE", "STOP"]


def run(config: A2CConfig, batch: int) -> list[tuple[int, Boundary]]:
    """(iteration, flags) after every update until the run stops."""
    steps, seen = 0, list[tuple[int, Boundary]]()
    while not seen or STOP not in seen[-1][1]:
        before, steps = steps, steps + batch
        seen.append((iteration_of(config, steps), decide(config, before, steps, False, False)))
    return seen


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 60), st.integers(1, 200))
def test_every_run_reports_each_iteration_once(total: int, num_iterations: int, batch: int) -> None:
    seen = run(A2CConfig(total_env_steps=total, num_iterations=num_iterations), batch)
    reported = [iteration for iteration, flags in seen if REPORT in flags]
    assert len(seen) == -(-total // batch)
    assert reported == sorted(set(reported)) and reported[-1] == num_iterations
    if batch * num_iterations <= total:
        assert reported == list(range(1, num_iterations + 1))
    assert all(STOP not in flags for _, flags in seen[:-1]) and SAVE in seen[-1][1]
