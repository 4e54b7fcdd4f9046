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
_PEERS: Mapping[str, Peer] = {
    "SB3 A2C, 16 envs, T 5, 1 thread": Peer("stable_baselines3", "sb3_a2c.py", 16, (1, _GAME)),
    "SB3 A2C, 16 envs, T 5, 2 threads": Peer("stable_baselines3", "sb3_a2c.py", 16, (2, _GAME)),
    "SB3 A2C, 16 envs, T 5, SubprocVecEnv": Peer("stable_baselines3", "sb3_a2c.py", 16, (1, _GAME, "subproc")),
    "Sample Factory APPO, 2 x 8 envs, T 32": Peer("sample_factory", "sample_factory_appo.py", 16, (2, "atari_pong")),
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
    for name, peer in _PEERS.items():
        if (python := settings.python_with(peer.module)) is not None:
            workloads[name] = partial(peer.measure, python, settings)
            against.append(name)
    return Table("atari", f"{_GAME}, Nature CNN, {CORES} cores, learning included", workloads, against, COLUMNS)
