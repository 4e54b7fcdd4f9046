"""CartPole-v1 with 2 x 64 tanh in float32 on the cores of this machine, against other libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from benchmarks import training
from benchmarks.contestants import AHEAD, BOTH, COLUMNS, Layout, Peer, phases
from benchmarks.settings import CORES, Settings
from benchmarks.tables import Column, Measurement, Results, Table

_NATIVE = ("--env", "CartPole-v1", "--num-envs", 1024)
_PRESET = "impala, preset cartpole-throughput, 1024 envs"
#: Name: algorithm, options and layouts.
_OURS: Mapping[str, tuple[str, Sequence[object], Sequence[Layout]]] = {
    _PRESET: ("impala", ("--preset", "cartpole-throughput"), (BOTH, AHEAD)),
    "a2c, 1024 envs": ("a2c", ("--vector", "native", "--unroll-length", 16, "--shared-encoder"), (BOTH,)),
}
#: Those of ours that are set against other libraries where time is short.
BEST = [f"{name}, {layout.name}" for name, (_, _, layouts) in _OURS.items() for layout in layouts]
_A2C = "its defaults: T 5, RMSprop, learning rate 7e-4; an encoder each for policy and value"
_PUFFER = "its defaults for its own CartPole but Adam, 2 x 64 tanh and no recurrent network; T 64, 1 epoch"
_APPO = "T 32, a batch of everything that is acted, 1 epoch; its defaults otherwise"
_RLLIB = "1 process with 32 envs, T 50, batches of 500, learner in the driver; as in its example cartpole_"
PEERS: Mapping[str, Peer] = {
    "SB3 A2C, 64 envs, 1 thread": Peer("stable_baselines3", "sb3.py", 64, (), _A2C),
    "SB3 A2C, 64 envs, 2 threads": Peer("stable_baselines3", "sb3.py", 64, ("--threads", 2), _A2C),
    "PufferLib PPO, 1024 envs in C, 1 thread": Peer("pufferlib", "puffer_ppo.py", 1024, (), _PUFFER),
    "PufferLib PPO, 1024 envs in C, 2 threads": Peer("pufferlib", "puffer_ppo.py", 1024, ("--threads", 2), _PUFFER),
    "PufferLib PPO, 1024 envs in C, 2 workers": Peer("pufferlib", "puffer_ppo.py", 1024, ("--workers", 2), _PUFFER),
    "Sample Factory APPO, 2 x 64 envs": Peer("sample_factory", "sample_factory_appo.py", 128, (), _APPO),
    "RLlib IMPALA, 1 x 32 envs": Peer("ray", "rllib.py", 32, (), f"{_RLLIB}impala"),
    "RLlib APPO, 1 x 32 envs": Peer("ray", "rllib.py", 32, ("--algorithm", "APPO"), f"{_RLLIB}appo"),
}
_PRESET_ENV_STEPS = 20_000_000


def table(settings: Settings) -> Table:
    """Ours, and the peers that are installed."""
    workloads: dict[str, Callable[[int], Measurement]] = {}
    for name, (algorithm, options, layouts) in _OURS.items():
        for layout in layouts:
            words = (*options, *_NATIVE, *layout.options)
            workloads[f"{name}, {layout.name}"] = partial(_train, algorithm, words, layout, settings)
    against = []
    for name, peer in PEERS.items():
        if (python := settings.python_with(peer.module)) is not None:
            workloads[name] = partial(peer.measure, python, settings)
            against.append(name)
    columns = [Column("solved_s", "s to 475"), Column("solved_env_steps", "env steps to 475", ",.0f"), *COLUMNS]
    title = f"CartPole-v1, 2 x 64 tanh, float32, {CORES} cores, learning included"
    return Table("cartpole", title, workloads, against, columns, _notes)


def _train(algorithm: str, options: Sequence[object], layout: Layout, settings: Settings, round_: int) -> Measurement:
    # What a preset learns depends on the length that it is made for.
    env_steps = _PRESET_ENV_STEPS if "--preset" in options else settings.native_env_steps
    if settings.env_steps < Settings.env_steps:
        env_steps = settings.native_env_steps
    run = training.train(algorithm, (*options, "--seed", round_ + 1, "--no-episode-log"), env_steps, iterations=40)
    return run.measurement() | phases(run, layout) | (run.solved() if "--preset" in options else {})


def _notes(results: Results) -> Iterable[str]:
    rounds = results.get(f"{_PRESET}, {BOTH.name}", {})
    yield "Round r is seed r + 1. Seconds and env steps are those of the runs that reach 475 (last 100 episodes)."
    yield ""
    for round_, run in sorted(rounds.items()):
        if "solved_s" in run:
            yield f"- preset, seed {round_ + 1}: {run['solved_s']:.1f} s, {run['solved_env_steps']:,.0f} env steps"
        else:
            yield f"- preset, seed {round_ + 1}: not reached"
