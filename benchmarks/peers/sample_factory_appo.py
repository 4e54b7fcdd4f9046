"""Sample Factory's asynchronous PPO: `python sample_factory_appo.py NUM_ENVS SECONDS WORKERS [ENV]`.

ENV is CartPole-v1 (the default), or a game by its name there, as atari_pong: with the preprocessing and the values of
its own example, but learning from everything once instead of 4 times, while the environments go on.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence

import gymnasium
from rates import Progress
from sample_factory.algo.runners.runner import AlgoObserver, Runner
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.envs.env_utils import register_env
from sample_factory.train import make_runner

_ROLLOUT = 32
_CARTPOLE = {"use_rnn": False, "recurrence": 1, "nonlinearity": "tanh"}
_ATARI = {"async_rl": True, "worker_num_splits": 2, "num_epochs": 1, "num_batches_per_epoch": 1}


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


def _make_game(*arguments: object) -> gymnasium.Env:
    # Importing it registers the games.
    import ale_py  # noqa: F401
    from sf_examples.atari.atari_utils import make_atari_env

    return make_atari_env(*arguments)


def _parse(arguments: Sequence[str], is_game: bool) -> object:
    parser, partial = parse_sf_args(arguments)
    if is_game:
        from sf_examples.atari.atari_params import atari_override_defaults

        atari_override_defaults(partial.env, parser)
    return parse_full_cfg(parser, arguments)


def main() -> None:
    """Train for a while; print the rate."""
    num_envs, seconds, workers = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    env = sys.argv[4] if len(sys.argv) > 4 else "CartPole-v1"
    is_game = env.startswith("atari_")
    register_env(env, _make_game if is_game else _make_env)
    with tempfile.TemporaryDirectory() as folder:
        options = {
            **{"algo": "APPO", "env": env, "experiment": "timed", "train_dir": folder, "device": "cpu"},
            **{"num_workers": workers, "num_envs_per_worker": num_envs // workers},
            **{"rollout": _ROLLOUT, "batch_size": _ROLLOUT * num_envs, "seed": 1},
            **{"normalize_input": False, "save_every_sec": 10**6},
            **(_ATARI if is_game else _CARTPOLE),
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        layers = [] if is_game else ["--encoder_mlp_layers", "64", "64"]
        _, runner = make_runner(_parse([*arguments, *layers], is_game))
        timed = _Timed(_ROLLOUT * num_envs, seconds)
        runner.register_observer(timed)
        runner.init()
        runner.run()
    timed.progress.print_rate()


if __name__ == "__main__":
    main()
