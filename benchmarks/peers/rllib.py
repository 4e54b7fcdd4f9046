"""RLlib, its new API stack: `python rllib.py NUM_ENVS SECONDS [--algorithm IMPALA] [--env CartPole-v1]`.

One process with NUM_ENVS environments and the learner in the driver: what two cores hold. Values are those of its own
examples (cartpole_impala, cartpole_appo, pong_impala, mujoco_appo), but for 2 x 64 tanh, and games in 4 frames of
84 x 84 with the Nature CNN; PPO's were found by trying, as cartpole_ppo takes longer to reach 475. Env steps are those
that were made: RLlib doesn't say which were learned from once, several times or never.
"""

from __future__ import annotations

import argparse
import os
from collections import deque
from collections.abc import Sequence

from rates import Progress, last_100, parser

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import gymnasium
import numpy as np
import ray
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.env.wrappers.atari_wrappers import wrap_atari_for_new_api_stack
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from ray.tune.registry import register_env

_CONFIGS = {"IMPALA": IMPALAConfig, "APPO": APPOConfig, "PPO": PPOConfig}
_CLIPPED = {"grad_clip": 40.0, "grad_clip_by": "global_norm"}
#: What `training` is told, by algorithm and environment.
_VALUES = {
    ("IMPALA", "CartPole-v1"): {"lr": 0.0005, "vf_loss_coeff": 0.05, "entropy_coeff": 0.0, **_CLIPPED},
    ("APPO", "CartPole-v1"): {"circular_buffer_iterations_per_batch": 2, "vf_loss_coeff": 0.05, "entropy_coeff": 0.0},
    ("PPO", "CartPole-v1"): {
        **{"lr": 0.001, "num_epochs": 10, "train_batch_size_per_learner": 1024, "minibatch_size": 256, "gamma": 0.98},
        **{"lambda_": 0.9, "vf_loss_coeff": 0.5, "vf_clip_param": 10_000.0, "use_kl_loss": False},
        **{"grad_clip": 0.5, "grad_clip_by": "global_norm"},
    },
    ("IMPALA", "ALE/Pong-v5"): {"lr": 0.007, "vf_loss_coeff": 0.5, "entropy_coeff": 0.008, **_CLIPPED},
    ("APPO", "HalfCheetah-v5"): {
        **{"circular_buffer_num_batches": 16, "circular_buffer_iterations_per_batch": 20, "clip_param": 0.4},
        **{"target_network_update_freq": 2, "target_worker_clipping": 2.0, "grad_clip": 0.5, "grad_clip_by": "value"},
        **{"lr": 0.0005, "vf_loss_coeff": 0.5, "entropy_coeff": 0.0, "gamma": 0.995, "lambda_": 0.995},
        **{"use_kl_loss": True, "kl_coeff": 1.0, "kl_target": 0.04, "train_batch_size_per_learner": 4096},
    },
}
#: Env steps of an environment that travel at once, where they make up a batch.
_FRAGMENTS = {"HalfCheetah-v5": 128}
_NATURE = {"conv_filters": [[32, 8, 4], [64, 4, 2], [64, 3, 1]], "head_fcnet_hiddens": [512]}


_RETURNS = "returns"


def _note_return(episode: object, prev_episode_chunks: Sequence, metrics_logger: MetricsLogger, **_: object) -> None:
    # Its own mean is over fewer episodes than it is told.
    total = sum(chunk.get_return() for chunk in (*(prev_episode_chunks or ()), episode))
    metrics_logger.log_value(_RETURNS, total, reduce="item_series")


def _make_game(settings: dict) -> gymnasium.Env:
    # Importing it registers the games.
    import ale_py  # noqa: F401

    plain = {"frameskip": 1, "full_action_space": False, "repeat_action_probability": 0.0}
    return wrap_atari_for_new_api_stack(gymnasium.make(settings["game"], **plain), dim=84, framestack=4)


def _config(arguments: argparse.Namespace) -> AlgorithmConfig:
    name, env = arguments.algorithm, arguments.env
    config = _CONFIGS[name]().training(**_VALUES[name, env])
    if env.startswith("ALE/"):
        register_env("game", _make_game)
        config = config.environment("game", env_config={"game": env}, clip_rewards=True)
        model = DefaultModelConfig(**_NATURE, vf_share_layers=True)
    else:
        config = config.environment(env)
        # As in its examples, but for PPO, which learns CartPole sooner so.
        shared = env not in _FRAGMENTS and name != "PPO"
        model = DefaultModelConfig(fcnet_hiddens=[64, 64], fcnet_activation="tanh", vf_share_layers=shared)
    if env in _FRAGMENTS:
        config = config.env_runners(rollout_fragment_length=_FRAGMENTS[env])
    return (
        config.rl_module(model_config=model)
        .env_runners(num_env_runners=arguments.runners, num_envs_per_env_runner=arguments.num_envs // arguments.runners)
        .learners(num_learners=0)
        .callbacks(on_episode_end=_note_return)
        .reporting(min_time_s_per_iteration=1)
        .debugging(seed=arguments.seed, log_level="ERROR")
    )


def main() -> None:
    """Train for a while; print how it went."""
    taken = parser(__doc__)
    taken.add_argument("--algorithm", choices=list(_CONFIGS), default="IMPALA")
    taken.add_argument("--env", default="CartPole-v1")
    taken.add_argument("--runners", type=int, default=1, help="processes that step environments")
    arguments = taken.parse_args()
    progress = Progress(arguments.seconds, arguments.goal)
    torch.set_num_threads(1)
    ray.init(
        "local", num_cpus=1 + arguments.runners, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    algorithm = _config(arguments).build_algo()
    returns: deque[float] = deque(maxlen=100)
    # A rate begins behind the first unroll, which may take longer than all others.
    is_warm = arguments.goal is not None
    if is_warm:
        progress.begin()
    while not progress.is_over:
        found = algorithm.train()["env_runners"]
        env_steps = int(found.get("num_env_steps_sampled_lifetime", 0))
        if not is_warm and env_steps:
            is_warm = True
            progress.begin()
        # A single one comes as a number.
        returns.extend(np.atleast_1d(found.get(_RETURNS, ())).tolist())
        if is_warm:
            progress.add(env_steps, last_100(returns))
    progress.print()
    algorithm.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
