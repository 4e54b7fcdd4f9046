"""Wall time and env steps until the mean return of the last 100 episodes reaches a threshold, against other libraries.

    python -m benchmarks.time_to_solve [--problems cartpole ...] [--rounds 3] [--time-limit SECONDS]
        [--peers-python PYTHON...] [--out FILE.jsonl]

A problem is cartpole (475), cartpole-200 (episodes that end after 200 steps, as PufferLib's own: 195), half-cheetah
(1000) or pong (15, which takes an hour). Time is measured from the start of the process and from the first env step; a
run that isn't there within the time limit, counted from the start, has not reached it. hpcrl looks at the end of an
iteration (a hundredth of the run), the others after every update. Rounds are seeds, and all take turns within a round.
A file that is there already is gone on with. Status: 1 where a run failed.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.contestants import ALONE, BOTH, Layout, Peer, interpreters
from benchmarks.peer_results import SOLVED, Section, markdown
from benchmarks.settings import CORES, Settings
from benchmarks.tables import Measurement
from benchmarks.turns import Turn, missing, read, take
from hpcrl.benching import children
from hpcrl.benching.children import CommandFailed
from hpcrl.benching.rows import read_rows
from hpcrl.errors import HpcrlError

_ROOT = Path(__file__).resolve().parents[1]
_QUIET = ("--no-tensorboard", "--checkpoint-every", 0, "--no-episode-log")
_GRACE_S = 60.0
_EXPECTED_S = 10.0


class Problem(NamedTuple):
    """What is to be learned.

    Attributes:
        goal: mean return of the last 100 episodes.
        limit_s: from the start of the process.
        ours: algorithm, options and layout of hpcrl, by name.
        peers: by name.
    """

    title: str
    goal: float
    limit_s: float
    ours: Mapping[str, tuple[str, Sequence[object], Layout]]
    peers: Mapping[str, Peer]


_PRESET = ("--preset", "cartpole")
_ZOO = (
    *("--algorithm", "PPO", "--total", 100_000, "--set", "n_steps=32", "batch_size=256", "gae_lambda=0.8"),
    *("gamma=0.98", "n_epochs=20", "learning_rate=lin_0.001", "clip_range=lin_0.2"),
)
_ZOO_WORDS = (
    "values of RL Baselines3 Zoo: T 32, 20 epochs of 1, learning rate and clip range fall to 0 in 100,000 steps"
)
_ROBOT = (
    *("--env", "HalfCheetah-v5", "--normalise", "--algorithm", "PPO", "--total", 1_000_000),
    *("--set", "n_steps=256", "batch_size=64", "n_epochs=10", "learning_rate=lin_0.0003"),
)
_GAME = (
    *("--env", "ALE/Pong-v5", "--algorithm", "PPO", "--total", 10_000_000, "--threads", CORES),
    *("--set", "n_steps=128", "batch_size=256", "n_epochs=4", "learning_rate=lin_0.00025", "clip_range=lin_0.1"),
    *("ent_coef=0.01", "vf_coef=0.5"),
)
PROBLEMS: Mapping[str, Problem] = {
    "cartpole": Problem(
        "CartPole-v1 to 475",
        475.0,
        90.0,
        {
            "a2c, preset cartpole": ("a2c", _PRESET, BOTH),
            "ppo, preset cartpole, 1 rank": ("ppo", _PRESET, ALONE),
            "impala, preset cartpole": ("impala", _PRESET, BOTH),
            "impala, preset cartpole-throughput": ("impala", ("--preset", "cartpole-throughput"), BOTH),
        },
        {
            "SB3 PPO, 8 envs": Peer("stable_baselines3", "sb3.py", 8, _ZOO, _ZOO_WORDS),
            "SB3 A2C, 8 envs": Peer("stable_baselines3", "sb3.py", 8, (), "its defaults"),
            "Sample Factory APPO, 2 x 32 envs": Peer(
                "sample_factory", "sample_factory_appo.py", 64, (), "T 32, a batch of all that is acted; its defaults"
            ),
            "RLlib PPO, 1 x 64 envs": Peer(
                "ray",
                "rllib.py",
                64,
                ("--algorithm", "PPO"),
                "batches of 1024, 10 epochs of 4, learning rate 0.001, gamma 0.98: sooner there than its own example",
            ),
        },
    ),
    "cartpole-200": Problem(
        "CartPole of 200 steps to 195",
        195.0,
        90.0,
        {"a2c, preset cartpole": ("a2c", (*_PRESET, "--env", "CartPole-v0"), BOTH)},
        {
            "SB3 PPO, 8 envs": Peer("stable_baselines3", "sb3.py", 8, (*_ZOO, "--env", "CartPole-v0"), _ZOO_WORDS),
            "PufferLib PPO, 1024 envs in C": Peer(
                "pufferlib",
                "puffer_ppo.py",
                1024,
                ("--optimizer", "muon"),
                "its own CartPole and its defaults for it (T 64, 1 epoch, Muon), but 2 x 64 tanh, not recurrent",
            ),
        },
    ),
    "half-cheetah": Problem(
        "HalfCheetah-v5 to 1000",
        1000.0,
        300.0,
        {"ppo, preset half-cheetah, 1 rank": ("ppo", ("--preset", "half-cheetah"), ALONE)},
        {
            "SB3 PPO, 8 envs": Peer(
                "stable_baselines3",
                "sb3.py",
                8,
                _ROBOT,
                "the values of our preset: T 256, 10 epochs of 32, learning rate 3e-4 that falls to 0; VecNormalize",
            ),
            "Sample Factory APPO, 2 x 8 envs": Peer(
                "sample_factory",
                "sample_factory_appo.py",
                16,
                ("--env", "mujoco_halfcheetah"),
                "values of its example for MuJoCo (HalfCheetah-v4 there)",
            ),
            "RLlib APPO, 1 x 32 envs": Peer(
                "ray",
                "rllib.py",
                32,
                ("--env", "HalfCheetah-v5", "--algorithm", "APPO"),
                "values of its example mujoco_appo, but 1 process that sends 128 steps of each env; 2 x 64 tanh",
            ),
        },
    ),
    "pong": Problem(
        "ALE/Pong-v5 to 15",
        15.0,
        5400.0,
        {"ppo, preset pong, bfloat16": ("ppo", ("--preset", "pong", "--precision", "bfloat16"), BOTH)},
        {
            "SB3 PPO, 8 envs": Peer(
                "stable_baselines3", "sb3.py", 8, _GAME, f"values of RL Baselines3 Zoo for games; {CORES} threads"
            ),
            "Sample Factory APPO, 2 x 8 envs": Peer(
                "sample_factory",
                "sample_factory_appo.py",
                16,
                ("--env", "atari_pong"),
                "values of its example but T 32, everything learned from once and while the environments go on",
            ),
            "RLlib IMPALA, 1 x 8 envs": Peer(
                "ray", "rllib.py", 8, ("--env", "ALE/Pong-v5"), "values of its example pong_impala"
            ),
        },
    ),
}


def comparison(
    name: str, settings: Settings, limit_s: float | None = None, start: Sequence[str] = (sys.executable, "-m", "hpcrl")
) -> tuple[Section, list[Turn]]:
    """A problem: what its table shows, and the turns of ours and of the peers that are installed.

    Args:
        limit_s: in place of the problem's.
        start: what stands for the command hpcrl.
    """
    problem = PROBLEMS[name]
    limit = problem.limit_s if limit_s is None else limit_s
    table, length = f"{name}{SOLVED}", {"goal": problem.goal, "limit_s": limit}
    turns = []
    for workload, (algorithm, options, layout) in problem.ours.items():
        measure = partial(solve, algorithm, (*options, *layout.options), problem.goal, limit, start)
        turns.append(Turn(table, workload, measure, length, {"layout": layout.name}, _EXPECTED_S))
    peers, absent = {}, []
    for workload, peer in problem.peers.items():
        if (python := settings.python_with(peer.module)) is None:
            absent.append(workload)
            continue
        peers[workload] = peer
        facts = {"layout": f"{peer.num_envs} envs", "peer": peer.versions(python), "settings": peer.settings}
        measure = partial(peer.solve, python, problem.goal, limit)
        turns.append(Turn(table, workload, measure, length, facts, limit / 2))
    title = f"{problem.title}, within {limit:.0f} s"
    return Section(table, title, list(problem.ours), peers, absent, problem.goal), turns


def solve(
    algorithm: str, options: Sequence[object], goal: float, limit_s: float, start: Sequence[str], round_: int
) -> Measurement:
    """Train with the round's seed until the goal is reached, for `limit_s` at the most.

    Returns:
        `reached` (0 or 1), `env_steps` (to the goal, else of the run), `return_last_100` at the end, cores and memory;
        and where it is reached `from_start_s` and `solved_s`, seconds from the start and from the first env step.

    Raises:
        CommandFailed: the run failed, or made no iteration.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run" / "metrics.csv"
        words = [*start, "train", algorithm, "--run-dir", file.parent, *_QUIET, "--seed", round_ + 1]
        words += [f"--stop-return={goal}", *options]
        begin = time.time()
        done = children.run(
            list(map(str, words)), limit_s + _GRACE_S, folder=_ROOT, enough=lambda: time.time() >= begin + limit_s
        )
        rows = read_rows(file)
        if not rows:
            raise CommandFailed(f"{' '.join(map(str, words))}: no iteration was over within {limit_s:.0f} s")
        # The run stops once the goal is reached, so its last row is written then.
        written_s = file.stat().st_mtime - begin
    return solved(rows[-1], written_s, goal, limit_s) | {"cores": done.cores, "peak_mb": done.peak_mb}


def solved(last: Mapping[str, float], written_s: float, goal: float, limit_s: float) -> Measurement:
    """What the last row of a run says, written so many seconds after its start."""
    mean = last.get("rollout/return_last_100", math.nan)
    reached = mean >= goal and written_s <= limit_s
    found = {"reached": float(reached), "env_steps": last["env_steps"]}
    if not math.isnan(mean):
        found["return_last_100"] = mean
    return found | ({"solved_s": last["time/elapsed_s"], "from_start_s": written_s} if reached else {})


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print; the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.time_to_solve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=["cartpole"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--time-limit", type=float, help="seconds of a run (default: the problem's)")
    parser.add_argument("--peers-python", nargs="+", default=(), metavar="PYTHON", help="interpreters with peers")
    parser.add_argument("--out", type=Path, help="file that the lines are added to")
    arguments = parser.parse_args(words)
    try:
        settings = Settings(peers_python=interpreters(arguments.peers_python))
        found = [comparison(name, settings, arguments.time_limit) for name in arguments.problems]
        turns = [turn for _, more in found for turn in more]
        lines = [] if arguments.out is None else read(arguments.out, turns)
        take(missing(turns, arguments.rounds, lines), lines, arguments.out)
    except HpcrlError as error:
        print(f"benchmarks.time_to_solve: {error}", file=sys.stderr)
        return error.exit_status
    print("\n" + markdown(lines, [section for section, _ in found]))
    return int(any("failure" in line for line in lines))


if __name__ == "__main__":
    sys.exit(main())
