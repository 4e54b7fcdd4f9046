"""What is printed of a run: returns, and the loss where no episode ends."""

from __future__ import annotations

import math

import pytest

from hpcrl.commands.display import Display
from hpcrl.metrics import Row


def row(iteration: int, mean: float, loss: float) -> Row:
    return {
        "iteration": iteration,
        "env_steps": 1000.0 * iteration,
        "time/env_steps_per_s": 500.0,
        "time/elapsed_s": 2.0 * iteration,
        "rollout/episodes": 0.0 if math.isnan(mean) else 3.0,
        "rollout/episode_return_mean": mean,
        "rollout/return_last_100": mean,
        "eval/episode_return_mean": math.nan,
        "train/policy_loss": loss,
    }


def shown(capsys: pytest.CaptureFixture[str], *rows: Row) -> str:
    display = Display(12_000, 2, {})
    for each in rows:
        display.add(each)
    display.finish()
    return capsys.readouterr().out


def test_returns_are_shown_where_episodes_end(capsys: pytest.CaptureFixture[str]) -> None:
    output = shown(capsys, row(1, math.nan, math.nan), row(2, 12.5, 0.25))
    assert "return -  500 steps/s  ETA 0:00:22" in output and "return 12.5  500 steps/s  ETA 0:00:20" in output
    assert "mean return by iteration" in output and "policy loss" not in output


def test_what_is_left_is_told_by_more_than_the_last_row(capsys: pytest.CaptureFixture[str]) -> None:
    slow = row(4, 1.0, 0.5) | {"time/elapsed_s": 12.0, "time/env_steps_per_s": 166.0}
    output = shown(capsys, row(1, 1.0, 0.5), row(2, 1.0, 0.5), row(3, 1.0, 0.5), slow)
    # 3,000 steps in 10 s, 8,000 to go.
    assert "166 steps/s  ETA 0:00:27" in output


def test_the_loss_is_shown_where_nothing_is_acted(capsys: pytest.CaptureFixture[str]) -> None:
    output = shown(capsys, row(1, math.nan, 0.5), row(2, math.nan, 0.25))
    assert "iteration 2/2  env steps 2,000  policy loss 0.2500  500 steps/s" in output
    assert "policy loss by iteration" in output and "mean return" not in output and "0.5000" in output
