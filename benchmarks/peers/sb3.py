"""Stable-Baselines3: `python sb3.py NUM_ENVS SECONDS [--algorithm A2C] [--env CartPole-v1] [--set NAME=VALUE ...]`.

Values are those of the library but for --set, where `lin_0.1` falls from 0.1 to 0 over --total env steps, as in RL
Baselines3 Zoo. A game as ALE/Pong-v5 gets the preprocessing of its AtariWrapper, 4 frames stacked and the Nature CNN;
everything else 2 x 64 tanh.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import torch
from rates import Progress, last_100, parser
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack, VecNormalize

_ALGORITHMS = {"A2C": A2C, "PPO": PPO}
#: Environments step one after the other, or have a process each.
_VECTORS = {"dummy": DummyVecEnv, "subproc": SubprocVecEnv}
_MLP = {"net_arch": [64, 64], "activation_fn": torch.nn.Tanh}
_LINEAR = "lin_"


class _Timed(BaseCallback):
    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def _on_training_start(self) -> None:
        self._progress.begin()

    def _on_rollout_start(self) -> None:
        # What was collected before has been learned from by now.
        self._progress.add(self.num_timesteps, last_100(episode["r"] for episode in self.model.ep_info_buffer or ()))

    def _on_step(self) -> bool:
        return not self._progress.is_over


def _make_envs(arguments: argparse.Namespace) -> VecEnv:
    common = {"n_envs": arguments.num_envs, "seed": arguments.seed, "vec_env_cls": _VECTORS[arguments.vector]}
    if arguments.env.startswith("ALE/"):
        # The wrapper skips frames itself, and nothing else repeats actions.
        plain = {"frameskip": 1, "repeat_action_probability": 0.0}
        return VecFrameStack(make_atari_env(f"ale_py:{arguments.env}", env_kwargs=plain, **common), 4)
    envs = make_vec_env(arguments.env, **common)
    return VecNormalize(envs) if arguments.normalise else envs


def _value(text: str) -> float | int | Callable[[float], float]:
    if text.startswith(_LINEAR):
        start = float(text.removeprefix(_LINEAR))
        return lambda left: left * start
    return json.loads(text)


def main() -> None:
    """Train for a while; print how it went."""
    taken = parser(__doc__)
    taken.add_argument("--algorithm", choices=list(_ALGORITHMS), default="A2C")
    taken.add_argument("--env", default="CartPole-v1")
    taken.add_argument("--vector", choices=list(_VECTORS), default="dummy")
    taken.add_argument("--threads", type=int, default=1)
    taken.add_argument("--normalise", action="store_true", help="VecNormalize")
    taken.add_argument("--total", type=int, default=10**9, help="env steps at the most")
    taken.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="of the algorithm")
    arguments = taken.parse_args()
    torch.set_num_threads(arguments.threads)
    progress = Progress(arguments.seconds, arguments.goal)
    envs = _make_envs(arguments)
    kind, policy = ("CnnPolicy", None) if arguments.env.startswith("ALE/") else ("MlpPolicy", _MLP)
    values = {name: _value(text) for name, text in (word.split("=") for word in arguments.set)}
    make = _ALGORITHMS[arguments.algorithm]
    model = make(kind, envs, policy_kwargs=policy, device="cpu", seed=arguments.seed, **values)
    model.learn(arguments.total, callback=_Timed(progress))
    progress.print()
    envs.close()


if __name__ == "__main__":
    main()
