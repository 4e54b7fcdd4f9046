"""`hpcrl bench`: time splits, what binds, operations by hand, random actions, the command; and benchmarks of paths."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import allreduce, paths
from benchmarks.worlds import Measurement
from hpcrl.benching.arithmetic import count_flop, need_of
from hpcrl.benching.bound import bound_by, clocks_of, describe, is_disturbed, percent
from hpcrl.benching.examination import Ceiling
from hpcrl.benching.layouts import layouts_for
from hpcrl.benching.machine import Limits
from hpcrl.benching.rows import read_rows, steady
from hpcrl.benching.stepping import allowed_actions, random_actions, random_rate
from hpcrl.cluster.affinity import usable_cpus
from hpcrl.commands.bench import bench
from hpcrl.config import A2CConfig, ImpalaConfig, PPOConfig
from hpcrl.envs.factory import describe_task
from hpcrl.envs.world import World
from hpcrl.errors import ConfigError
from hpcrl.models.policy import Policy
from hpcrl.spaces import ACTION_MASK, Space, Task, packed
from tests.commands import hpcrl

CARTPOLE = Task(Space("box", (4,), "float32"), Space("discrete", (), "int64", 2), 500, True)
GAME = Task(Space("box", (84, 84), "uint8"), Space("discrete", (), "int64", 6), None, True)


# Rows and bounds


def test_rows_are_whole_and_tell_the_steady_state(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    assert read_rows(file) == []
    head = (
        "env_steps,learner_updates,time/elapsed_s,time/actor_acting_s,time/learner_waiting_s,rollout/return_last_100\n"
    )
    file.write_text(f"{head}100,1,2,9,9,\n300,3,3,0.5,0.25,7\n500,6,6,1.5,0.75,8\n900,9,")
    rows = read_rows(file)
    assert [row["env_steps"] for row in rows] == [100, 300, 500] and "rollout/return_last_100" not in rows[0]
    found = steady(rows)
    assert (found.env_steps_per_s, found.updates_per_s, found.seconds) == (100, 1.25, 4)
    assert found.time_split == {"actor_acting": 0.5, "learner_waiting": 0.25}


def test_ranks_that_do_both_have_one_clock() -> None:
    split = {"actor_acting": 0.5, "actor_transport": 0.1, "learner_learning": 0.3, "learner_transport": 0.1}
    assert clocks_of(split, True) == {"ranks": {"acting": 0.5, "transport": 0.1, "learning": 0.3}}
    apart = {"actors": {"acting": 0.5, "transport": 0.1}, "learners": {"learning": 0.3, "transport": 0.1}}
    assert clocks_of(split, False) == apart
    assert describe({"waiting": 0.001, "acting": 0.5, "learning": 0.25}) == "acting 50 %, learning 25 %"


@pytest.mark.parametrize(
    ("actors", "learners", "what", "who"),
    [
        ({"acting": 0.7, "inference": 0.2, "waiting": 0.1}, {"learning": 0.3, "waiting": 0.6}, "acting", "actors"),
        ({"acting": 0.2, "inference": 0.6, "waiting": 0.1}, {"learning": 0.3, "waiting": 0.6}, "inference", "actors"),
        ({"acting": 0.3, "waiting": 0.7}, {"learning": 0.9, "waiting": 0.05}, "learning", "learners"),
        ({"acting": 0.3, "waiting": 0.7}, {"learning": 0.4, "reducing": 0.5}, "reducing", "learners"),
        ({"acting": 0.4, "waiting": 0.6}, {"learning": 0.45, "waiting": 0.55}, "waiting", "learners"),
    ],
)
def test_what_binds_is_the_longest_phase_of_those_who_wait_least(
    actors: dict[str, float], learners: dict[str, float], what: str, who: str
) -> None:
    clocks = {"actors": actors, "learners": learners}
    bound = bound_by(clocks)
    assert (bound.what, bound.share) == (what, clocks[who][what])
    assert f"{what} takes {percent(bound.share)} of the time of {who}" in bound.sentence
    other = "learners" if who == "actors" else "actors"
    assert f"{other} wait for {percent(clocks[other]['waiting'])} of theirs" in bound.sentence


def test_cores_that_others_have_are_noticed() -> None:
    clocks = {"actors": {"acting": 0.8, "waiting": 0.2}, "learners": {"learning": 0.3, "waiting": 0.7}}
    ranks = {"actors": 3, "learners": 1}
    # 3 x 0.8 + 0.3 cores are at work.
    assert not is_disturbed(2.5, ranks, clocks) and is_disturbed(2.0, ranks, clocks)


def test_layouts_use_all_cores() -> None:
    assert [layout.ranks for layout in layouts_for(1)] == [1]
    alone, split, colocated = layouts_for(4)
    assert (alone.options, split.ranks, split.does_both, colocated.does_both) == ([], 4, False, True)
    assert colocated.options == ["--ranks", "4", "--placement", "colocated"]


# Limits


def test_operations_of_a_perceptron_are_those_by_hand() -> None:
    config = A2CConfig(hidden_sizes=(8, 16), unroll_length=4, num_envs=2)
    hidden = 4 * 8 + 8 * 16
    acting, forward, backward = count_flop(Policy(CARTPOLE, config), CARTPOLE)
    assert acting == 2 * (hidden + 16 * 2)
    assert forward == 2 * (2 * hidden + 16 * 2 + 16)
    # Twice as many, but for the gradient towards observations.
    assert backward == 2 * forward - 2 * 2 * 4 * 8
    need = need_of(config, CARTPOLE)
    assert (need.acting, need.forward, need.backward) == (acting, forward * 5 / 4, backward * 5 / 4)
    assert need.num_weights == 2 * (hidden + 8 + 16) + 16 * 3 + 3
    sizes = {"hidden_sizes": (8, 16), "unroll_length": 4, "num_envs": 2}
    replayed = need_of(ImpalaConfig(**sizes, batch_envs=2, replay_epochs=2), CARTPOLE)  # type: ignore[arg-type]
    assert (replayed.forward, replayed.backward) == (2 * need.forward, 2 * need.backward)
    clipped = need_of(PPOConfig(**sizes, epochs=3, minibatches=2), CARTPOLE)  # type: ignore[arg-type]
    assert (clipped.forward, clipped.backward) == (3 * forward + forward * 5 / 4, 3 * backward)


def test_operations_of_the_nature_cnn_are_those_by_hand() -> None:
    config = A2CConfig(frame_stack=4)
    torch.manual_seed(1)
    first, rest = 20 * 20 * 32 * 8 * 8 * 4, 9 * 9 * 64 * 4 * 4 * 32 + 7 * 7 * 64 * 3 * 3 * 64 + 7 * 7 * 64 * 512
    acting, forward, backward = count_flop(Policy(GAME, config), GAME)
    assert acting == 2 * (first + rest + 512 * 6)
    assert forward == 2 * (first + rest + 512 * 7)
    assert backward == 2 * forward - 2 * first


def test_limits_are_rates() -> None:
    need = need_of(A2CConfig(), CARTPOLE)._replace(acting=1e3, forward=3e3, backward=6e3, unroll_bytes=50)
    ceiling = Ceiling(cores=4, stepping_per_s=1e6, need=need, limits=Limits(1e9, 5e9))
    assert (ceiling.env_step_us, ceiling.products_per_s, ceiling.copies_per_s) == (4, 4e5, 1e8)
    # 4 us of the environment, and 10 kFLOP at a quarter of the rate.
    assert ceiling.likely_per_s(2) == pytest.approx(2 / 44e-6)
    assert ceiling.as_json()["backward_flop"] == 6e3


# Random actions


def test_random_actions_lie_in_their_space() -> None:
    rng = np.random.default_rng(1)
    box = Space("box", (2, 2), "float32", low=(-1, 0, -np.inf, -2), high=(1, 4, np.inf, -1))
    spaces = {
        "go": Space("discrete", (), "int64", 3),
        "turn": Space("multi_discrete", (2,), "int64", nvec=(2, 5)),
        "lamps": Space("multi_binary", (3,), "int8"),
        "push": box,
    }
    drawn = random_actions(box, 500, rng)
    flat = drawn.reshape(500, 4)
    assert drawn.dtype == np.float32 and (flat.min(0) >= box.low).all() and (flat.max(0) <= box.high).all()
    assert flat[:, 1].max() > 3.5 and flat[:, 2].std() > 0.5
    assert set(random_actions(spaces["go"], 100, rng).tolist()) == {0, 1, 2}
    turns = random_actions(spaces["turn"], 200, rng)
    assert turns.max(0).tolist() == [1, 4] and turns.shape == (200, 2)
    together = packed(tuple(spaces.items()))
    assert random_actions(together, 7, rng).shape == (7, together.nbytes)
    assert random_actions(together, 7, rng).any()


def test_random_actions_are_allowed_ones() -> None:
    mask = Space("multi_binary", (5,), "int8")
    seen = packed((("observation", Space("box", (1,), "float32")), (ACTION_MASK, mask)))
    task = Task(seen, Space("multi_discrete", (2,), "int64", nvec=(2, 3)), None, True)
    observation = np.zeros((50, seen.nbytes), np.uint8)
    observation[:, 8:13] = [0, 1, 1, 0, 1]
    actions = allowed_actions(task, observation, np.random.default_rng(1))
    assert actions.shape == (50, 2) and set(map(tuple, actions.tolist())) == {(1, 0), (1, 2)}


@pytest.mark.parametrize("env", ["CartPole-v1", "MemoryCue-v0", "Pendulum-v1"])
def test_environments_step_alone(env: str) -> None:
    config = A2CConfig(env=env, num_envs=4)
    assert random_rate(config, describe_task(World(env)), 2, 0.02) > 0


# The command


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["a2c", "--ranks", "2"], "--ranks is set by hpcrl bench: it tries one"),
        (["--total_env_steps=5"], "--total-env-steps is set by hpcrl bench: give --seconds"),
        (["--seconds", "soon"], "--seconds must be a number above 0, got 'soon'"),
        (["--seconds", "0"], "--seconds must be a number above 0, got '0'"),
        (["--repeats", "0"], "--repeats must be a whole number of at least 1, got '0'"),
        (["--json"], "--json needs a value"),
        (["sarsa"], "unknown algorithm 'sarsa'"),
        (["bc"], r"hpcrl bench needs an algorithm that acts \(a2c, ppo, a3c, impala, appo\), got 'bc'"),
        (["--num-envs", "0"], "--num-envs must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_input_is_one_sentence(words: list[str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        bench(words)


def test_the_command_measures_every_layout(tmp_path: Path) -> None:
    file = tmp_path / "bench.jsonl"
    options = ("--num-envs", 2, "--unroll-length", 4, "--hidden-sizes", 4)
    done = hpcrl(
        "bench", "impala", *options, "--batch-envs", 2, "--seconds", 0.05, "--repeats", 1, "--json", file, timeout=170
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    layouts = dict.fromkeys(line["layout"] for line in lines)
    assert len(layouts) == len(lines) == len(layouts_for(min(2, len(usable_cpus()))))
    assert done.stdout.count("bound by: ") == len(layouts) and "limits of the" in done.stdout
    for line in lines:
        assert line["env_steps_per_s"] > 0 and {"cpu", "cores"} <= line["machine"].keys()
        assert {"torch", "mpi"} <= line["versions"].keys() and "git_commit" in line
        assert line["ceiling"]["num_weights"] > 0 and line["ceiling"]["random_env_steps_per_s"] > 0


@pytest.mark.parametrize("fails", [False, True], ids=["all-run", "one-fails"])
def test_what_is_complete_at_an_interrupt_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fails: bool
) -> None:
    shown: list[list[int]] = []

    def interrupted(found: list[Any], *_: object) -> None:
        first, second = found[:2]
        first.runs += [1, 2]
        second.runs += [1]
        if fails:
            second.trouble = "it broke"
        raise KeyboardInterrupt

    monkeypatch.setattr("hpcrl.commands.bench.ceiling_of", lambda *_: SimpleNamespace(cores=2))
    monkeypatch.setattr("hpcrl.commands.bench.layouts_for", lambda cores: ["one", "other"])
    monkeypatch.setattr("hpcrl.commands.bench.rounds", interrupted)
    monkeypatch.setattr("hpcrl.commands.bench._show", lambda _, found, __: shown.extend(on.runs for on in found))
    assert bench(["a2c"]) == 130
    assert shown == ([[1, 2], [1]] if fails else [[1], [1]])
    complete = "2 of 3 rounds" if fails else "1 of 3 rounds"
    assert capsys.readouterr().out.splitlines()[-1] == f"interrupted after {complete}"


# Benchmarks of sums and paths


def _lines(file: Path) -> list[Measurement]:
    found = [json.loads(line) for line in file.read_text().splitlines()]
    assert all({"machine", "layout", "versions", "git_commit"} <= line.keys() for line in found)
    return found


def test_sums_are_measured_against_mpi(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sums.jsonl"
    words = ["--ranks", "2", "--rounds", "2", "--sizes", "4096", "--small", "--json", str(file)]
    assert allreduce.main(words) == 0
    found = _lines(file)
    sums = [line["way"] for line in found if line["part"] == "sums"]
    assert sums == ["MPI", "host", "staged", "gloo", "memcpy"]
    assert [line["way"] for line in found if line["part"] == "overlap"] == ["host", "staged", "gloo", "host in hooks"]
    text = capsys.readouterr().out
    assert "### Sums over 2 ranks" in text and re.search(r"^\| 4 KB \|", text, re.MULTILINE)


def test_paths_are_measured_against_mpi(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "paths.jsonl"
    assert paths.main(["--rounds", "4", "--sizes", "4096", "65536", "--json", str(file)]) == 0
    found = _lines(file)
    assert [line["way"] for line in found] == ["unroll", "weights", "MPI", "memcpy"] * 2
    assert all(line["median_us"] > 0 and line["rounds"] == 4 for line in found)
    assert "### One node, shared memory" in capsys.readouterr().out
