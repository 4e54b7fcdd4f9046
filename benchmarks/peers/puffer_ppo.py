"""PufferLib's PPO on its own CartPole in C: `python puffer_ppo.py NUM_ENVS SECONDS [--threads 1] [--workers 0]`.

Its defaults (default.ini and cartpole.ini of 3.0) but: no recurrent network, 2 x 64 tanh with a shared encoder in
float32, no dashboard, the CPU, and Adam unless --optimizer says muon, its own. --workers 0 steps the environments in
the process that learns. Its episodes end after 200 steps. It logs means over several episodes, so that the last 100 of
them are the newest means that are of at least 100.
"""

from __future__ import annotations

import argparse
import tempfile

import pufferlib.pufferl
import pufferlib.vector
import torch
from pufferlib.ocean.cartpole.cartpole import Cartpole
from pufferlib.pytorch import layer_init
from rates import Progress, parser
from torch import Tensor, nn

_HORIZON = 64
_TOTAL = 20_000_000


class _Policy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(layer_init(nn.Linear(4, 64)), nn.Tanh(), layer_init(nn.Linear(64, 64)), nn.Tanh())
        self.actor, self.critic = layer_init(nn.Linear(64, 2), std=0.01), layer_init(nn.Linear(64, 1), std=1)

    def forward_eval(self, observations: Tensor, state: dict | None = None) -> tuple[Tensor, Tensor]:
        features = self.encoder(observations)
        return self.actor(features), self.critic(features)

    forward = forward_eval


class _Quiet(pufferlib.pufferl.PuffeRL):
    def print_dashboard(self, *arguments: object, **options: object) -> None:
        pass


class _Newest:
    """The mean return of the newest episodes, at least 100, from means of several."""

    def __init__(self) -> None:
        self._means: list[tuple[float, float]] = []

    def take(self, stats: dict[str, list[float]]) -> float | None:
        """With what was logged since, which is removed; None before there were 100 episodes."""
        self._means += zip(stats.pop("n", []), stats.pop("score", []), strict=True)
        episodes = total = 0.0
        for number, (count, mean) in enumerate(reversed(self._means), 1):
            episodes, total = episodes + count, total + count * mean
            if episodes >= 100:
                del self._means[:-number]
                return total / episodes
        return None


def _settings(given: argparse.Namespace, folder: str) -> dict[str, object]:
    num_envs = given.num_envs
    # Its learning rate falls to 0 until then.
    total = 10**9 if given.goal is None else _TOTAL
    return {
        **{"name": "cartpole", "project": "cartpole", "env": "puffer_cartpole", "seed": given.seed, "data_dir": folder},
        **{"torch_deterministic": True, "cpu_offload": False, "device": "cpu", "precision": "float32"},
        **{"optimizer": given.optimizer, "adam_beta1": 0.95, "adam_beta2": 0.999, "adam_eps": 1e-12},
        **{"learning_rate": 0.05, "anneal_lr": True, "total_timesteps": total, "max_grad_norm": 1.5},
        **{"gamma": 0.95, "gae_lambda": 0.90, "update_epochs": 1, "clip_coef": 0.2, "ent_coef": 0.001},
        **{"vf_coef": 2.0, "vf_clip_coef": 0.2, "vtrace_rho_clip": 1.0, "vtrace_c_clip": 1.0},
        **{"prio_alpha": 0.8, "prio_beta0": 0.2, "checkpoint_interval": 10**9, "use_rnn": False},
        **{"bptt_horizon": _HORIZON, "batch_size": "auto", "minibatch_size": min(32768, num_envs * _HORIZON)},
        **{"max_minibatch_size": 32768, "compile": False, "compile_mode": "default", "compile_fullgraph": False},
    }


def main() -> None:
    """Train for a while; print how it went."""
    taken = parser(__doc__)
    taken.add_argument("--optimizer", choices=["adam", "muon"], default="adam")
    taken.add_argument("--threads", type=int, default=1)
    taken.add_argument("--workers", type=int, default=0)
    given = taken.parse_args()
    torch.set_num_threads(given.threads)
    # Its log would be taken at every step otherwise.
    env = {"num_envs": given.num_envs // max(1, given.workers), "report_interval": 128 if given.goal is None else 16}
    if given.workers:
        backend = {"backend": pufferlib.vector.Multiprocessing, "num_envs": given.workers, "num_workers": given.workers}
    else:
        backend = {"backend": pufferlib.vector.Serial, "num_envs": 1}
    envs = pufferlib.vector.make(Cartpole, env_kwargs=env, seed=given.seed, **backend)
    progress, newest = Progress(given.seconds, given.goal), _Newest()
    with tempfile.TemporaryDirectory() as folder:
        trainer = _Quiet(_settings(given, folder), envs, _Policy())
        progress.begin()
        progress.add(0)
        while not progress.is_over:
            # Learning may put means in place of what was logged.
            mean = newest.take(trainer.evaluate())
            trainer.train()
            progress.add(trainer.global_step, mean)
        progress.print()
        trainer.utilization.stop()
        envs.close()


if __name__ == "__main__":
    main()
