"""PufferLib's PPO on its own CartPole in C: `python puffer_ppo.py NUM_ENVS SECONDS THREADS WORKERS`.

Its defaults (default.ini and cartpole.ini of 3.0) but: no recurrent network, 2 x 64 tanh with a shared encoder in
float32, Adam in place of Muon, no dashboard, the CPU. WORKERS of 0 steps the environments in the process that learns.
"""

from __future__ import annotations

import sys
import tempfile
import time

import pufferlib.pufferl
import pufferlib.vector
import torch
from pufferlib.ocean.cartpole.cartpole import Cartpole
from pufferlib.pytorch import layer_init
from rates import Progress
from torch import Tensor, nn

_HORIZON = 64


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


def _settings(num_envs: int, folder: str) -> dict[str, object]:
    return {
        **{"name": "cartpole", "project": "cartpole", "env": "puffer_cartpole", "seed": 1, "data_dir": folder},
        **{"torch_deterministic": True, "cpu_offload": False, "device": "cpu", "precision": "float32"},
        **{"optimizer": "adam", "adam_beta1": 0.95, "adam_beta2": 0.999, "adam_eps": 1e-12},
        **{"learning_rate": 0.05, "anneal_lr": True, "total_timesteps": 10**9, "max_grad_norm": 1.5},
        **{"gamma": 0.95, "gae_lambda": 0.90, "update_epochs": 1, "clip_coef": 0.2, "ent_coef": 0.001},
        **{"vf_coef": 2.0, "vf_clip_coef": 0.2, "vtrace_rho_clip": 1.0, "vtrace_c_clip": 1.0},
        **{"prio_alpha": 0.8, "prio_beta0": 0.2, "checkpoint_interval": 10**9, "use_rnn": False},
        **{"bptt_horizon": _HORIZON, "batch_size": "auto", "minibatch_size": min(32768, num_envs * _HORIZON)},
        **{"max_minibatch_size": 32768, "compile": False, "compile_mode": "default", "compile_fullgraph": False},
    }


def main() -> None:
    """Train for a while; print the rate."""
    num_envs, seconds, threads, workers = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(threads)
    # Its log would be taken at every step otherwise.
    env = {"num_envs": num_envs // max(1, workers), "report_interval": 128}
    if workers:
        backend = {"backend": pufferlib.vector.Multiprocessing, "num_envs": workers, "num_workers": workers}
    else:
        backend = {"backend": pufferlib.vector.Serial, "num_envs": 1}
    envs = pufferlib.vector.make(Cartpole, env_kwargs=env, seed=1, **backend)
    progress = Progress()
    with tempfile.TemporaryDirectory() as folder:
        trainer = _Quiet(_settings(num_envs, folder), envs, _Policy())
        progress.add(0)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            trainer.evaluate()
            trainer.train()
            progress.add(trainer.global_step)
        progress.print_rate()
        trainer.utilization.stop()
        envs.close()


if __name__ == "__main__":
    main()
