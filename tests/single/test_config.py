"""Configurations: a value out of range is refused in one sentence, and JSON gives back what it was given."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcrl.config import MAX_SEED, A2CConfig, config_class, from_facts, from_json, to_json
from hpcrl.errors import ConfigError
from hpcrl.presets import PRESETS

NOT_POSITIVE_WHOLE = (0, -1)
NEGATIVE = (-1, math.nan)
OUTSIDE = {
    **dict.fromkeys(
        (
            "num_envs",
            "total_env_steps",
            "num_iterations",
            "eval_episodes",
            "learner_cores",
            "unroll_length",
            "ranks",
        ),
        NOT_POSITIVE_WHOLE,
    ),
    **dict.fromkeys(("checkpoint_every", "check_in_sync_every", "eval_every"), (-1,)),
    "max_grad_norm": NEGATIVE,
    **dict.fromkeys(("learning_rate", "hang_timeout"), (0.0, -1.0, math.inf, math.nan)),
    **dict.fromkeys(
        ("learning_rate_final", "optimizer_epsilon", "rmsprop_initial_square", "entropy_coef", "value_coef"),
        (-1e-9, math.inf, math.nan),
    ),
    "rmsprop_decay": (-0.1, 1.0, math.nan),
    **dict.fromkeys(("gamma", "gae_lambda"), (-0.1, 1.0001, math.nan)),
    "seed": (-1, MAX_SEED),
    "checkpoint_keep": (1, 0),
    "learners": NOT_POSITIVE_WHOLE,
    "hidden_sizes": ((64, 0), (-1,)),
    "env": ("",),
}
#: Fields of which every value of their type can be run.
FREE = {
    "vector",
    "run_dir",
    "resume",
    "stop_return",
    "tensorboard",
    "episode_log",
    "profile",
    "eval_at_start",
    "eval_deterministic",
    "placement",
    "activation",
    "shared_encoder",
    "optimizer",
    "rmsprop_epsilon_inside",
    "normalise_advantages",
    "loss_reduction",
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in OUTSIDE.items() for value in values])
def test_a_value_out_of_range_is_one_sentence_that_names_the_flag(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        A2CConfig(**{name: value})
    message = str(caught.value)
    assert message.startswith("--" + name.replace("_", "-") + " must be ")
    assert message.endswith(f"got {value!r}") and "\n" not in message


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_the_last_entropy_coefficient_is_checked_too(value: float) -> None:
    with pytest.raises(ConfigError, match="--entropy-coef-final must be"):
        A2CConfig(entropy_coef_final=value)


def test_every_field_is_checked_or_known_to_be_free() -> None:
    assert {field.name for field in dataclasses.fields(A2CConfig)} == set(OUTSIDE) | FREE | {"entropy_coef_final"}


def test_every_field_has_a_help_text_and_a_group() -> None:
    for field in dataclasses.fields(A2CConfig):
        assert field.metadata["help"].endswith((".", ")")) and field.metadata["group"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ranks", 1),
        ("learners", 1),
        ("learners", "auto"),
        ("seed", 0),
        ("seed", MAX_SEED - 1),
        ("gamma", 0.0),
        ("gamma", 1.0),
        ("gae_lambda", 0.0),
        ("max_grad_norm", 0.0),
        ("hidden_sizes", ()),
        ("rmsprop_decay", 0.0),
        ("checkpoint_every", 0),
        ("eval_every", 0),
        ("unroll_length", 1),
    ],
)
def test_the_ends_of_the_ranges_are_allowed(name: str, value: Any) -> None:
    assert getattr(A2CConfig(**{name: value}), name) == value


def test_an_iteration_is_a_share_of_the_run() -> None:
    assert A2CConfig(total_env_steps=1000, num_iterations=3).iteration_env_steps == pytest.approx(1000 / 3)


def through_json(config: Any) -> Any:
    return from_json(json.loads(json.dumps(to_json(config), allow_nan=False)))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name: str) -> None:
    config = PRESETS[name]()
    assert through_json(config) == config
    assert from_facts({"config": to_json(config), "other": 1}) == config


unit = st.floats(0, 1)
whole = st.integers(1, 10**9)
configs = st.builds(
    A2CConfig,
    env=st.text(min_size=1),
    num_envs=whole,
    vector=st.sampled_from(["sync", "native"]),
    total_env_steps=whole,
    seed=st.integers(0, MAX_SEED - 1),
    run_dir=st.none() | st.from_regex(r"[a-z]{1,5}(/[a-z .]{1,5}x)?", fullmatch=True).map(Path),
    resume=st.booleans(),
    stop_return=st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-5, 5),
    learners=st.just("auto") | whole,
    ranks=st.none() | whole,
    placement=st.sampled_from(["split", "colocated"]),
    hidden_sizes=st.lists(whole, max_size=3).map(tuple),
    optimizer=st.sampled_from(["adam", "rmsprop"]),
    learning_rate=st.floats(1e-9, 1) | st.just(1),
    gamma=unit | st.integers(0, 1),
    gae_lambda=unit,
    entropy_coef_final=st.none() | unit,
    loss_reduction=st.sampled_from(["mean", "sum"]),
)


@settings(max_examples=60, deadline=None)
@given(configs)
def test_any_configuration_survives_json(config: A2CConfig) -> None:
    again = through_json(config)
    assert again == config and type(again) is A2CConfig
    assert to_json(again) == to_json(config)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_envs", "16"),
        ("num_envs", 16.0),
        ("num_envs", True),
        ("num_envs", None),
        ("gamma", "0.9"),
        ("gamma", True),
        ("gamma", [0.9]),
        ("resume", 1),
        ("resume", "true"),
        ("env", 5),
        ("vector", "threads"),
        ("placement", None),
        ("learners", "all"),
        ("learners", 1.5),
        ("run_dir", 3),
        ("stop_return", "high"),
        ("hidden_sizes", 64),
        ("hidden_sizes", [64, 64.0]),
        ("hidden_sizes", [[64]]),
        ("hidden_sizes", [True]),
        ("loss_reduction", {}),
    ],
)
def test_a_value_of_another_type_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        from_json({**to_json(A2CConfig()), name: value})


def test_a_value_out_of_range_in_json_is_refused() -> None:
    with pytest.raises(ConfigError, match="--num-envs"):
        from_json({**to_json(A2CConfig()), "num_envs": 0})


def test_unknown_fields_and_algorithms_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown fields: colour, shape"):
        from_json({"algorithm": "a2c", "shape": 1, "colour": 2})
    with pytest.raises(ConfigError, match=r"unknown algorithm 'a9c'.*a2c"):
        from_json({"algorithm": "a9c"})
    with pytest.raises(ConfigError, match="unknown algorithm"):
        config_class("")


@pytest.mark.parametrize("data", [None, [], "a2c", 3, {}])
def test_what_is_no_configuration_is_refused(data: object) -> None:
    with pytest.raises(ConfigError):
        from_json(data)
    with pytest.raises(ConfigError):
        from_facts({"config": data})


def test_fields_that_a_file_lacks_have_their_defaults() -> None:
    assert from_json({"algorithm": "a2c", "num_envs": 3}) == A2CConfig(num_envs=3)
