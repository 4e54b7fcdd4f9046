"""Stable-Baselines3's A2C with its defaults: `python sb3_a2c.py NUM_ENVS SECONDS THREADS [ENV [VECTOR]]`.

ENV is CartPole-v1 (the default), or a game as ALE/Pong-v5: with the preprocessing of its AtariWrapper, 4 frames stacked
and the Nature CNN. VECTOR is `dummy` (the default: environments step one after the other) or `subproc` (one process
each).
"""

from __future__ import annotations

import sys
import time

import torch
from rates import Progress
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack

_VECTORS = {"dummy": DummyVecEnv, "subproc": SubprocVecEnv}
_MLP = {"net_arch": [64, 64], "activation_fn": torch.nn.Tanh}


class _Timed(BaseCallback):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.progress = Progress()
        self._seconds = seconds

    def _on_training_start(self) -> None:
        self._end = time.perf_counter() + self._seconds

    def _on_rollout_start(self) -> None:
        # What was collected before has been learned from by now.
        self.progress.add(self.num_timesteps)

    def _on_step(self) -> bool:
        return time.perf_counter() < self._end


def _make_envs(env: str, num_envs: int, vector: str) -> VecEnv:
    if not env.startswith("ALE/"):
        return make_vec_env(env, n_envs=num_envs, vec_env_cls=_VECTORS[vector])
    # The wrapper skips frames itself, and nothing else repeats actions.
    plain = {"frameskip": 1, "repeat_action_probability": 0.0}
    envs = make_atari_env(f"ale_py:{env}", n_envs=num_envs, env_kwargs=plain, vec_env_cls=_VECTORS[vector])
    return VecFrameStack(envs, 4)


def main() -> None:
    """Train for a while; print the rate."""
    num_envs, seconds, threads, *rest = sys.argv[1:]
    env, vector = [*rest, *("CartPole-v1", "dummy")[len(rest) :]]
    torch.set_num_threads(int(threads))
    envs = _make_envs(env, int(num_envs), vector)
    kind, policy = ("CnnPolicy", None) if env.startswith("ALE/") else ("MlpPolicy", _MLP)
    timed = _Timed(float(seconds))
    A2C(kind, envs, policy_kwargs=policy, device="cpu", seed=1).learn(10**9, callback=timed)
    timed.progress.print_rate()
    envs.close()


if __name__ == "__main__":
    main()
