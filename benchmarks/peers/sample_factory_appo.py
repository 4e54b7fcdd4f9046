"""Sample Factory's asynchronous PPO on CartPole-v1: `python sample_factory_appo.py NUM_ENVS SECONDS WORKERS`."""

from __future__ import annotations

import sys
import tempfile
import time

import gymnasium
from rates import Progress
from sample_factory.algo.runners.runner import AlgoObserver, Runner
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.envs.env_utils import register_env
from sample_factory.train import make_runner


class _Timed(AlgoObserver):
    def __init__(self, batch_size: int, seconds: float) -> None:
        self.progress = Progress()
        self._batch_size, self._seconds = batch_size, seconds
        self._end: float | None = None

    def on_training_step(self, runner: Runner, training_iteration_since_resume: int) -> None:
        self.progress.add(training_iteration_since_resume * self._batch_size)
        self._end = self._end or time.perf_counter() + self._seconds
        if time.perf_counter() > self._end:
            # It looks at its own clock only now and then.
            runner.cfg.train_for_seconds = -1


def _make_env(name: str, *_: object, render_mode: str | None = None) -> gymnasium.Env:
    return gymnasium.make(name, render_mode=render_mode)


def main() -> None:
    """Train for a while; print the rate."""
    num_envs, seconds, workers = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    register_env("CartPole-v1", _make_env)
    with tempfile.TemporaryDirectory() as folder:
        options = {
            **{"algo": "APPO", "env": "CartPole-v1", "experiment": "cartpole", "train_dir": folder, "device": "cpu"},
            **{"num_workers": workers, "num_envs_per_worker": num_envs // workers},
            **{"use_rnn": False, "recurrence": 1, "rollout": 32, "batch_size": 32 * num_envs, "seed": 1},
            **{"nonlinearity": "tanh", "normalize_input": False, "save_every_sec": 10**6},
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        parser, _ = parse_sf_args([*arguments, "--encoder_mlp_layers", "64", "64"])
        _, runner = make_runner(parse_full_cfg(parser, [*arguments, "--encoder_mlp_layers", "64", "64"]))
        timed = _Timed(32 * num_envs, seconds)
        runner.register_observer(timed)
        runner.init()
        runner.run()
    timed.progress.print_rate()


if __name__ == "__main__":
    main()
