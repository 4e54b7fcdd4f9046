"""ALE/Pong-v5 from 4 frames of 84 x 84 with the Nature CNN, learning included, against other libraries.

An env step is a decision of the agent, 4 frames of the game; every library resizes them itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from benchmarks.contestants import AHEAD, ALONE, BOTH, COLUMNS, TWO_AHEAD, Contestant, Layout, Peer
from benchmarks.settings import CORES, Settings
from benchmarks.tables import Measurement, Table

_GAME = "ALE/Pong-v5"
_IMPALA = ("--preset", "pong", "--model", "nature")
_A2C = ("--env", _GAME, "--frame-stack", 4, "--reward-clip", 1, "--model", "nature", "--num-envs", 16)
#: Name: algorithm, options, layouts, and the length as a share of the others'.
_OURS: Mapping[str, tuple[str, Sequence[object], Sequence[Layout], float]] = {
    "impala, preset pong, 32 envs": ("impala", _IMPALA, (AHEAD, TWO_AHEAD, BOTH), 1.0),
    "a2c, 16 envs, T 20": ("a2c", (*_A2C, "--unroll-length", 20), (BOTH,), 1.0),
    "a2c, 16 envs, T 5": ("a2c", (*_A2C, "--unroll-length", 5), (BOTH,), 1.0),
    "ppo, preset pong, 8 envs, 4 epochs": ("ppo", ("--preset", "pong"), (ALONE, BOTH), 0.5),
}
_PRECISIONS = ("float32", "bfloat16")
#: Those of ours that are set against other libraries where time is short.
BEST = [
    *(f"impala, preset pong, 32 envs, {layout.name}, {kind}" for layout in (AHEAD, BOTH) for kind in _PRECISIONS),
    f"ppo, preset pong, 8 envs, 4 epochs, {BOTH.name}, bfloat16",
]
_A2C_SETTINGS = "its defaults: T 5, RMSprop, learning rate 7e-4; its AtariWrapper, float32"
_PPO = ("--algorithm", "PPO", "--set", "n_steps=128", "batch_size=256", "n_epochs=4")
_PPO_SETTINGS = "T 128, 4 epochs of 4 as in RL Baselines3 Zoo and in our preset; its AtariWrapper, float32"
_APPO = "values of its example but T 32, everything learned from once and while the environments go on; float32"
_IMPALA_SETTINGS = "1 process with 8 envs, T 50, batches of 500, learner in the driver; as in its example pong_impala"
PEERS: Mapping[str, Peer] = {
    "SB3 A2C, 16 envs, T 5, 1 thread": Peer("stable_baselines3", "sb3.py", 16, ("--env", _GAME), _A2C_SETTINGS),
    "SB3 A2C, 16 envs, T 5, 2 threads": Peer(
        "stable_baselines3", "sb3.py", 16, ("--env", _GAME, "--threads", 2), _A2C_SETTINGS
    ),
    "SB3 A2C, 16 envs, T 5, SubprocVecEnv": Peer(
        "stable_baselines3", "sb3.py", 16, ("--env", _GAME, "--vector", "subproc"), _A2C_SETTINGS
    ),
    "SB3 PPO, 8 envs, 4 epochs, 2 threads": Peer(
        "stable_baselines3", "sb3.py", 8, ("--env", _GAME, "--threads", 2, *_PPO), _PPO_SETTINGS
    ),
    "Sample Factory APPO, 2 x 8 envs, T 32": Peer(
        "sample_factory", "sample_factory_appo.py", 16, ("--env", "atari_pong"), _APPO
    ),
    "RLlib IMPALA, 1 x 8 envs": Peer("ray", "rllib.py", 8, ("--env", _GAME), _IMPALA_SETTINGS),
}
#: Env steps of CartPole that take as long as one of a game.
_CARTPOLES = 20


def table(settings: Settings) -> Table:
    """Ours in both precisions, and the peers that are installed."""
    workloads: dict[str, Callable[[int], Measurement]] = {}
    for name, (algorithm, options, layouts, share) in _OURS.items():
        env_steps = round(share * settings.env_steps / _CARTPOLES)
        for layout in layouts:
            for precision in _PRECISIONS:
                contestant = Contestant(algorithm, (*options, "--precision", precision), layout, env_steps)
                workloads[f"{name}, {layout.name}, {precision}"] = contestant.measure
    against = []
    for name, peer in PEERS.items():
        if (python := settings.python_with(peer.module)) is not None:
            workloads[name] = partial(peer.measure, python, settings)
            against.append(name)
    return Table("atari", f"{_GAME}, Nature CNN, {CORES} cores, learning included", workloads, against, COLUMNS)
