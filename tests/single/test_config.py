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

from hpcrl.config import (
    CONFIGS,
    MAX_SEED,
    A2CConfig,
    AppoConfig,
    ImpalaConfig,
    PPOConfig,
    TrainConfig,
    config_class,
    from_facts,
    from_json,
    to_json,
)
from hpcrl.errors import ConfigError
from hpcrl.presets import PRESETS
from hpcrl.roles.playable import require_playable
from hpcrl.spaces import Space, Task

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
    **dict.fromkeys(("checkpoint_every", "checkpoint_milestones", "check_in_sync_every", "eval_every"), (-1,)),
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
    "frame_stack": NOT_POSITIVE_WHOLE,
    "env_restarts": (-1,),
    "env_timeout": (0.0, -1.0, math.inf, math.nan),
    "frame_skip": (0, 61),
    "sticky_actions": (-0.1, 1.0, math.nan),
    "noop_max": (-1, 10_001),
    "core_size": NOT_POSITIVE_WHOLE,
    "reward_clip": (-1.0, math.inf, math.nan),
    "env": ("", " ", "CartPole-v1 Acrobot-v1 CartPole-v1"),
    **dict.fromkeys(("batch_envs", "replay_epochs", "epochs", "minibatches"), NOT_POSITIVE_WHOLE),
    **dict.fromkeys(("rho_bar", "c_bar", "pg_rho_bar"), (0.0, -1.0, math.nan)),
    "behaviour_epsilon": (-0.1, 1.0001, math.nan),
    **dict.fromkeys(("clip_range", "value_clip_range", "target_kl"), (0.0, -0.1, math.inf, math.nan)),
    "clip_range_final": (-0.1, math.inf, math.nan),
    "checkpoint_milestones": (-1,),
    "min_return": (math.inf, math.nan),
}
#: Fields whose range depends on others.
CHECKED_APART = {
    "task_id",
    "allreduce",
    "device",
    "share_gpus",
    "isolated",
    "entropy_coef_final",
    "max_lag",
    "deterministic",
    "compile",
    "record_evaluation",
    "record_fraction",
    "record_compression",
    "record_shard_mb",
}
#: Fields of which every value of their type can be run.
FREE = {
    "vector",
    "run_dir",
    "checkpoint_local",
    "resume",
    "stop_return",
    "tensorboard",
    "episode_log",
    "profile",
    "eval_at_start",
    "eval_deterministic",
    "placement",
    "pin_cores",
    "learner_ranks",
    "activation",
    "model",
    "core",
    "shared_encoder",
    "precision",
    "normalise_observations",
    "full_action_set",
    "life_loss",
    "fire_reset",
    "normalise_returns",
    "optimizer",
    "rmsprop_epsilon_inside",
    "normalise_advantages",
    "loss",
    "loss_reduction",
    "schedule",
    "on_stale",
    "inference",
    "record_trajectories",
    "from_trajectories",
}


def owner(name: str) -> type[TrainConfig]:
    """The first algorithm that has a field."""
    return next(cls for cls in CONFIGS.values() if name in {field.name for field in dataclasses.fields(cls)})


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in OUTSIDE.items() for value in values])
def test_a_value_out_of_range_is_one_sentence_that_names_the_flag(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        owner(name)(**{name: value})
    message = str(caught.value)
    assert message.startswith("--" + name.replace("_", "-") + " must be ")
    assert message.endswith(f"got {value!r}") and "\n" not in message


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_the_last_entropy_coefficient_is_checked_too(value: float) -> None:
    with pytest.raises(ConfigError, match="--entropy-coef-final must be"):
        A2CConfig(entropy_coef_final=value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"record_fraction": 0.5}, "--record-fraction must be 1.0 where nothing is recorded"),
        ({"record_trajectories": True, "record_fraction": 1.1}, "--record-fraction must be above 0 and at most 1"),
        ({"record_trajectories": True, "record_fraction": 0.01}, "large enough to hold one of the --num-envs"),
        ({"record_trajectories": True, "record_shard_mb": 0}, "--record-shard-mb must be a whole number"),
        ({"record_compression": "none"}, "--record-compression must be gzip where nothing is recorded"),
        ({"record_evaluation": True}, "--record-evaluation must be false without --eval-every"),
        (
            {"from_trajectories": Path("runs/x"), "record_trajectories": True},
            "--record-trajectories must be false with",
        ),
        ({"from_trajectories": Path("runs/x"), "stop_return": 1.0}, "--stop-return must be left out with"),
        ({"from_trajectories": Path("runs/x"), "inference": "learner"}, "--inference must be actor with"),
        ({"from_trajectories": Path("runs/x"), "behaviour_epsilon": 0.1}, "--behaviour-epsilon must be 0 with"),
    ],
)
def test_recording_and_learning_from_records_are_checked(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        ImpalaConfig(**changes)


def test_every_field_is_checked_or_known_to_be_free() -> None:
    fields = {field.name for cls in CONFIGS.values() for field in dataclasses.fields(cls)}
    assert fields == set(OUTSIDE) | FREE | CHECKED_APART
    assert not FREE & (set(OUTSIDE) | CHECKED_APART)


@pytest.mark.parametrize("algorithm", CONFIGS)
def test_every_field_has_a_help_text_and_a_group(algorithm: str) -> None:
    for field in dataclasses.fields(CONFIGS[algorithm]):
        assert field.metadata["help"].endswith((".", ")")) and field.metadata["group"]


@pytest.mark.parametrize(
    ("num_envs", "batch_envs", "epochs", "least"),
    [
        (32, 32, 1, 0),
        (32, 16, 1, 1),
        (16, 32, 1, 0),
        (3, 2, 1, 1),
        (5, 7, 1, 1),
        (32, 4, 1, 7),
        (32, 32, 3, 2),
        (6, 2, 2, 5),
    ],
)
def test_the_most_lag_is_at_least_what_the_sizes_need(num_envs: int, batch_envs: int, epochs: int, least: int) -> None:
    sizes = {"num_envs": num_envs, "batch_envs": batch_envs, "replay_epochs": epochs}
    assert ImpalaConfig(**sizes).lag_bound == 2 * least + 8
    assert ImpalaConfig(**sizes, max_lag=least).lag_bound == least
    with pytest.raises(ConfigError) as caught:
        ImpalaConfig(**sizes, max_lag=least - 1)
    message = str(caught.value)
    assert message.startswith(f"--max-lag must be at least {least}, since ") and message.endswith(f"got {least - 1}")
    assert "\n" not in message


def test_a_batch_has_enough_rows_for_its_minibatches_and_enough_columns_under_a_core() -> None:
    assert PPOConfig(num_envs=3, unroll_length=5, minibatches=15).minibatches == 15
    assert PPOConfig(num_envs=3, unroll_length=5, minibatches=3, core="gru").minibatches == 3
    with pytest.raises(ConfigError, match=r"^--minibatches must be at most 15, the steps of a batch, got 16$"):
        PPOConfig(num_envs=3, unroll_length=5, minibatches=16)
    with pytest.raises(
        ConfigError, match=r"^--minibatches must be at most 3, the environments, with a recurrent core, "
    ):
        PPOConfig(num_envs=3, unroll_length=5, minibatches=4, core="lstm")


def test_the_learner_can_not_answer_with_exactly_the_weights_of_a_schedule() -> None:
    with pytest.raises(ConfigError, match=r"^--deterministic must be false with --inference learner, got True$"):
        ImpalaConfig(deterministic=True, inference="learner")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, False),
        ({"schedule": "lockstep"}, True),
        ({"max_lag": 0}, True),
        ({"max_lag": 1}, False),
        ({"schedule": "lockstep", "max_lag": 3}, True),
    ],
)
def test_no_lag_is_lockstep(options: Any, expected: bool) -> None:
    assert ImpalaConfig(**options).in_lockstep == expected


DISCRETE = Task(Space("box", (4,), "float32"), Space("discrete", (), "int64", 2), 500, True)
CONTINUOUS = Task(DISCRETE.observation, Space("box", (1,), "float32", low=(-2,), high=(2,)), 200, True)


@pytest.mark.parametrize(
    ("options", "task", "ranks", "message"),
    [
        (
            {"behaviour_epsilon": 0.1},
            CONTINUOUS,
            3,
            "--behaviour-epsilon needs discrete actions, CartPole-v1 has a box",
        ),
        ({"inference": "learner"}, DISCRETE, 1, "--inference learner needs actors on ranks of their own"),
        ({"inference": "learner", "placement": "colocated"}, DISCRETE, 3, "--inference learner needs actors on ranks"),
    ],
)
def test_what_fits_no_task_or_world_is_one_sentence(options: Any, task: Task, ranks: int, message: str) -> None:
    for cls in (ImpalaConfig, AppoConfig):
        with pytest.raises(ConfigError, match="^" + message) as caught:
            require_playable(cls(**options), task, ranks)
        assert "\n" not in str(caught.value)


def test_what_fits_is_played() -> None:
    require_playable(A2CConfig(), CONTINUOUS, 1)
    require_playable(ImpalaConfig(behaviour_epsilon=0.1), DISCRETE, 1)
    require_playable(ImpalaConfig(), CONTINUOUS, 1)
    require_playable(ImpalaConfig(inference="learner"), CONTINUOUS, 2)


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
        ("behaviour_epsilon", 0.0),
        ("behaviour_epsilon", 1.0),
        ("rho_bar", math.inf),
        ("batch_envs", 1),
        ("replay_epochs", 1),
        ("epochs", 1),
        ("minibatches", 1),
        ("clip_range_final", 0.0),
    ],
)
def test_the_ends_of_the_ranges_are_allowed(name: str, value: Any) -> None:
    assert getattr(owner(name)(**{name: value}), name) == value


def test_an_iteration_is_a_share_of_the_run() -> None:
    assert A2CConfig(total_env_steps=1000, num_iterations=3).iteration_env_steps == pytest.approx(1000 / 3)


def through_json(config: Any) -> Any:
    return from_json(json.loads(json.dumps(to_json(config), allow_nan=False)))


@pytest.mark.parametrize("name", PRESETS, ids="-".join)
def test_presets_survive_json(name: tuple[str, str]) -> None:
    config = PRESETS[name].make()
    assert through_json(config) == config
    assert from_facts({"config": to_json(config), "other": 1}) == config


unit = st.floats(0, 1)
whole = st.integers(1, 10**9)
algorithms = st.sampled_from(list(CONFIGS.values()))
configs = st.builds(
    lambda cls, **values: cls(**values),
    algorithms,
    env=st.text(min_size=1).filter(lambda text: len(text.split()) == 1),
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
    pin_cores=st.sampled_from(["auto", "on", "off"]),
    learner_ranks=st.sampled_from(["spread", "first"]),
    hidden_sizes=st.lists(whole, max_size=3).map(tuple),
    optimizer=st.sampled_from(["adam", "rmsprop"]),
    learning_rate=st.floats(1e-9, 1) | st.just(1),
    gamma=unit | st.integers(0, 1),
    gae_lambda=unit,
    entropy_coef_final=st.none() | unit,
    loss_reduction=st.sampled_from(["mean", "sum"]),
)


run_ahead = st.builds(
    lambda cls, **values: cls(**values),
    st.sampled_from([ImpalaConfig, AppoConfig]),
    schedule=st.sampled_from(["run-ahead", "lockstep"]),
    batch_envs=st.integers(32, 10**6),
    replay_epochs=st.integers(1, 4),
    max_lag=st.none() | st.integers(7, 100),
    on_stale=st.sampled_from(["drop", "wait"]),
    behaviour_epsilon=unit,
    rho_bar=st.floats(0.1, 10),
)


@settings(max_examples=80, deadline=None)
@given(configs | run_ahead)
def test_any_configuration_survives_json(config: TrainConfig) -> None:
    again = through_json(config)
    assert again == config and type(again) is type(config)
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
        ("pin_cores", True),
        ("learner_ranks", "last"),
        ("pin_cores", "always"),
        ("learners", "all"),
        ("learners", 1.5),
        ("run_dir", 3),
        ("stop_return", "high"),
        ("hidden_sizes", 64),
        ("hidden_sizes", [64, 64.0]),
        ("hidden_sizes", [[64]]),
        ("hidden_sizes", [True]),
        ("loss_reduction", {}),
        ("schedule", "ahead"),
        ("max_lag", 1.5),
        ("max_lag", True),
        ("on_stale", None),
        ("inference", "both"),
        ("behaviour_epsilon", "0.1"),
        ("deterministic", 1),
        ("minibatches", 2.0),
        ("target_kl", True),
    ],
)
def test_a_value_of_another_type_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        from_json({**to_json(owner(name)()), name: value})


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sticky_actions": 0.25}, "--sticky-actions is for games of Atari, CartPole-v1 is none"),
        ({"fire_reset": False}, "--fire-reset is for games of Atari, CartPole-v1 is none"),
        ({"precision": "bfloat16"}, "--precision bfloat16 is for networks over images, CartPole-v1 shows none"),
        ({"env": "ALE/Pong-v5", "vector": "native"}, "--vector native: ALE/Pong-v5 has no other form than"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        require_playable(A2CConfig(**options), DISCRETE, 1)
    require_playable(A2CConfig(env="ALE/Pong-v5", sticky_actions=0.25), DISCRETE, 1)
