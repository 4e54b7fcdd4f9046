"""Stable-Baselines3's A2C with its defaults on CartPole-v1: `python sb3_a2c.py NUM_ENVS SECONDS THREADS`."""

from __future__ import annotations

import sys
import time

import torch
from rates import Progress
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env


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


def main() -> None:
    """Train for a while; print the rate."""
    num_envs, seconds, threads = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    envs = make_vec_env("CartPole-v1", n_envs=num_envs)
    policy = {"net_arch": [64, 64], "activation_fn": torch.nn.Tanh}
    timed = _Timed(seconds)
    A2C("MlpPolicy", envs, policy_kwargs=policy, device="cpu", seed=1).learn(10**9, callback=timed)
    timed.progress.print_rate()


if __name__ == "__main__":
    main()
