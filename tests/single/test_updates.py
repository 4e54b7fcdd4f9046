"""What a gradient goes through between loss and step, against plain numpy and sums taken step by step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hpcrl.config import A2CConfig
from hpcrl.errors import HpcrlError
from hpcrl.metrics import UPDATE_METRICS
from hpcrl.roles.updates import coefficients, scale_and_clip, update_metrics

seeds = st.integers(0, 2**32 - 1)


def gradient(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float32)


@pytest.mark.parametrize(("env_steps", "share"), [(0, 0.0), (250, 0.25), (1000, 1.0), (1500, 1.0)])
def test_coefficients_change_linearly_over_the_steps_of_the_run(env_steps: int, share: float) -> None:
    config = A2CConfig(
        total_env_steps=1000, learning_rate=0.2, learning_rate_final=0.1, entropy_coef=0.5, entropy_coef_final=0.0
    )
    assert coefficients(config, env_steps) == pytest.approx((0.5 - 0.5 * share, 0.2 - 0.1 * share))


def test_without_an_end_of_its_own_the_entropy_bonus_stays_as_it_is() -> None:
    config = A2CConfig(total_env_steps=1000, learning_rate=0.2, learning_rate_final=0.0, entropy_coef=0.5)
    assert [coefficients(config, steps).entropy_coef for steps in (0, 500, 2000)] == [0.5] * 3
    assert coefficients(config, 500).learning_rate == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("reduction", "max_norm", "expected", "norm", "clipped"),
    [
        ("mean", 0.0, (6.0, 8.0), 10.0, False),
        ("mean", 10.0, (6.0, 8.0), 10.0, False),
        ("mean", 2.5, (1.5, 2.0), 10.0, True),
        ("sum", 0.0, (30.0, 40.0), 50.0, False),
        ("sum", 49.0, (29.4, 39.2), 50.0, True),
        ("sum", 50.0, (30.0, 40.0), 50.0, False),
    ],
)
def test_a_gradient_is_divided_once_then_clipped(
    reduction: str, max_norm: float, expected: tuple[float, ...], norm: float, clipped: bool
) -> None:
    config = A2CConfig(loss_reduction=reduction, max_grad_norm=max_norm)  # type: ignore[arg-type]
    got = gradient(30, 40)
    assert scale_and_clip(got, 5, config, "update 1") == (pytest.approx(norm), clipped)
    assert got.tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("number", "text"), [(math.nan, "nan"), (math.inf, "inf")])
@pytest.mark.parametrize("max_norm", [0.0, 0.5])
def test_a_gradient_that_is_no_number_is_named(number: float, text: str, max_norm: float) -> None:
    config = A2CConfig(max_grad_norm=max_norm)
    message = rf"^update 7 \(env step 90\) has a gradient norm of {text}: a lower --learning-rate may help$"
    with pytest.raises(HpcrlError, match=message):
        scale_and_clip(gradient(1, number, 2), 3, config, "update 7 (env step 90)")


def sums_of(steps: NDArray[np.float64]) -> dict[str, float]:
    """Sums over rows of policy loss, value loss, entropy, KL, target, error, ratio and whether that was clipped."""
    sums = dict.fromkeys(("policy_loss", "value_loss", "entropy", "approx_kl", "target", "target_squared"), 0.0)
    sums |= dict.fromkeys(("error", "error_squared", "rho", "rho_clipped", "steps"), 0.0)
    for policy_loss, value_loss, entropy, kl, target, error, rho, clipped in steps.tolist():
        sums["steps"] += 1
        sums["policy_loss"] += policy_loss
        sums["value_loss"] += value_loss
        sums["entropy"] += entropy
        sums["approx_kl"] += kl
        sums["target"] += target
        sums["target_squared"] += target**2
        sums["error"] += error
        sums["error_squared"] += error**2
        sums["rho"] += rho
        sums["rho_clipped"] += clipped > 0
    return sums


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.sampled_from([0.02, 2]), seeds)
def test_what_is_reported_of_an_update_are_means_over_its_steps(count: int, scale: float, seed: int) -> None:
    steps = np.random.default_rng(seed).normal(scale / 2, scale, (count, 8))
    got = dict(zip(UPDATE_METRICS, update_metrics(sums_of(steps), 3.5, True, 0.125), strict=True))
    means = steps.mean(0)
    assert got == pytest.approx(
        {
            "train/policy_loss": means[0],
            "train/value_loss": means[1],
            "train/entropy": means[2],
            "train/explained_variance": 1 - steps[:, 5].var() / steps[:, 4].var(),
            "train/grad_norm": 3.5,
            "train/clipped_grad_fraction": 1.0,
            "train/approx_kl": means[3],
            "train/rho_mean": means[6],
            "train/rho_clipped_fraction": (steps[:, 7] > 0).mean(),
            "train/learning_rate": 0.125,
        },
        rel=1e-6,
        abs=1e-9,
    )


def test_targets_that_are_all_the_same_explain_nothing() -> None:
    steps = np.ones((4, 8))
    steps[:, 5] = (1, 2, 3, 4)
    got = dict(zip(UPDATE_METRICS, update_metrics(sums_of(steps), 1.0, False, 0.1), strict=True))
    assert got["train/explained_variance"] == 0 and got["train/clipped_grad_fraction"] == 0
