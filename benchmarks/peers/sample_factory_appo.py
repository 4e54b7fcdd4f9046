"""Sample Factory's asynchronous PPO: `python sample_factory_appo.py NUM_ENVS SECONDS [--env ENV] [--workers 2]`.

ENV is CartPole-v1 (the default), a game by its name there, as atari_pong: with the preprocessing and the values of its
own example, but learning from everything once instead of 4 times, while the environments go on; or a robot, as
mujoco_halfcheetah: with the values of its own example.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import gymnasium
from rates import Progress, last_100, parser
from sample_factory.algo.runners.runner import AlgoObserver, Runner
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.envs.env_utils import register_env
from sample_factory.train import make_runner


class _Kind(NamedTuple):
    """What options there are beside the common ones, how environments are made, and whose example has the rest."""

    rollout: int
    options: Mapping[str, object]
    make: Callable[..., gymnasium.Env]
    example: str | None = None


class _Noted(gymnasium.Wrapper):
    """Writes down when the first of all environments makes its first step."""

    def __init__(self, env: gymnasium.Env, note: Path) -> None:
        super().__init__(env)
        self._note = note
        self._is_new = True

    def step(self, action: object) -> tuple:
        if self._is_new and not self._note.exists():
            self._note.write_text(str(time.perf_counter()))
        self._is_new = False
        return self.env.step(action)


class _Timed(AlgoObserver):
    def __init__(self, progress: Progress, batch_size: int, note: Path | None) -> None:
        self._progress, self._batch_size, self._note = progress, batch_size, note
        self._has_begun = False

    def on_training_step(self, runner: Runner, training_iteration_since_resume: int) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._progress.begin(None if self._note is None else float(self._note.read_text()))
        returns = runner.policy_avg_stats.get("reward", [[]])[0]
        self._progress.add(training_iteration_since_resume * self._batch_size, last_100(returns))
        if self._progress.is_over:
            # It looks at its own clock only now and then.
            runner.cfg.train_for_seconds = -1


def _make_env(name: str, *_: object, render_mode: str | None = None) -> gymnasium.Env:
    return gymnasium.make(name, render_mode=render_mode)


def _make_game(*arguments: object, **options: object) -> gymnasium.Env:
    # Importing it registers the games.
    import ale_py  # noqa: F401
    from sf_examples.atari.atari_utils import make_atari_env

    return make_atari_env(*arguments, **options)


def _make_robot(*arguments: object, **options: object) -> gymnasium.Env:
    from sf_examples.mujoco.mujoco_utils import make_mujoco_env

    return make_mujoco_env(*arguments, **options)


def _make_noted(make: Callable[..., gymnasium.Env], note: Path, *arguments: object, **options: object) -> gymnasium.Env:
    return _Noted(make(*arguments, **options), note)


_CARTPOLE = _Kind(32, {"use_rnn": False, "recurrence": 1, "nonlinearity": "tanh", "normalize_input": False}, _make_env)
_ATARI = _Kind(
    32,
    {"async_rl": True, "worker_num_splits": 2, "num_epochs": 1, "num_batches_per_epoch": 1, "normalize_input": False},
    _make_game,
    "atari",
)
_MUJOCO = _Kind(64, {"batch_size": 1024}, _make_robot, "mujoco")


def _parse(arguments: Sequence[str], example: str | None) -> object:
    parser, partial = parse_sf_args(arguments)
    if example == "atari":
        from sf_examples.atari.atari_params import atari_override_defaults

        atari_override_defaults(partial.env, parser)
    if example == "mujoco":
        from sf_examples.mujoco.mujoco_params import mujoco_override_defaults

        mujoco_override_defaults(partial.env, parser)
    return parse_full_cfg(parser, arguments)


def _kind(env: str) -> _Kind:
    return next(
        (kind for start, kind in (("atari_", _ATARI), ("mujoco_", _MUJOCO)) if env.startswith(start)), _CARTPOLE
    )


def main() -> None:
    """Train for a while; print how it went."""
    taken = parser(__doc__)
    taken.add_argument("--env", default="CartPole-v1")
    taken.add_argument("--workers", type=int, default=2)
    given = taken.parse_args()
    kind = _kind(given.env)
    progress = Progress(given.seconds, given.goal)
    with tempfile.TemporaryDirectory() as folder:
        note = None if given.goal is None else Path(folder) / "first_step"
        register_env(given.env, kind.make if note is None else partial(_make_noted, kind.make, note))
        options = {
            **{"algo": "APPO", "env": given.env, "experiment": "timed", "train_dir": folder, "device": "cpu"},
            **{"num_workers": given.workers, "num_envs_per_worker": given.num_envs // given.workers},
            **{"rollout": kind.rollout, "batch_size": kind.rollout * given.num_envs, "seed": given.seed},
            **{"save_every_sec": 10**6, **kind.options},
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        layers = [] if kind.example else ["--encoder_mlp_layers", "64", "64"]
        _, runner = make_runner(_parse([*arguments, *layers], kind.example))
        runner.register_observer(_Timed(progress, int(options["batch_size"]), note))
        runner.init()
        runner.run()
    progress.print()


if __name__ == "__main__":
    main()
