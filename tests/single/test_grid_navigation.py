"""GridNavigation: contract, distances, limits, exact restore, registration."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from hpcrl.envs.grid_navigation import MOVES, GridNavigation
from hpcrl.envs.registration import register_environments
from hpcrl.errors import ConfigError, EnvironmentFailure

ROOT = Path(__file__).resolve().parents[2]
UP, RIGHT, DOWN, LEFT = range(4)
# A wall column with one gap at the bottom, and a closed-off corner at (0, 4).
WALLS = [(0, 2), (1, 2), (2, 2), (3, 2), (0, 3), (1, 4)]


def at(env: GridNavigation, row: int, column: int, steps: int = 0) -> None:
    env.set_state({"position": np.array([row, column], np.int64), "steps": np.array(steps, np.int64)})


def cell(env: GridNavigation) -> tuple[int, ...]:
    return tuple(env.get_state()["position"].tolist())


@pytest.mark.parametrize("arguments", [{}, {"size": 2}, {"size": 5, "walls": WALLS, "goal": (2, 3)}])
def test_passes_gymnasiums_checker(arguments: dict[str, Any]) -> None:
    register_environments()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make("GridNavigation-v0", **arguments).unwrapped)


def test_distances_without_walls_are_manhattan() -> None:
    rows, columns = np.indices((6, 6))
    np.testing.assert_array_equal(GridNavigation(size=6).distances(), (5 - rows) + (5 - columns))


def test_distances_with_walls() -> None:
    expected = [
        [9, 8, -1, -1, -1],
        [8, 7, -1, 1, -1],
        [7, 6, -1, 0, 1],
        [6, 5, -1, 1, 2],
        [5, 4, 3, 2, 3],
    ]
    env = GridNavigation(size=5, walls=WALLS, goal=(2, 3))
    np.testing.assert_array_equal(env.distances(), expected)
    env.distances()[:] = 0
    np.testing.assert_array_equal(env.distances(), expected)


def test_greedy_descent_takes_exactly_the_distance() -> None:
    env = GridNavigation(size=5, walls=WALLS, goal=(2, 3))
    distances = np.pad(env.distances(), 1, constant_values=-1)
    distances[distances < 0] = 10**6
    for row, column in np.argwhere(env.distances() > 0):
        at(env, row, column)
        rewards, terminated = [], False
        while not terminated:
            here = cell(env)
            action = int(np.argmin([distances[here[0] + 1 + dy, here[1] + 1 + dx] for dy, dx in MOVES]))
            _, reward, terminated, _, _ = env.step(action)
            rewards.append(reward)
        assert rewards == [0.0] * (env.distances()[row, column] - 1) + [1.0]


@pytest.mark.parametrize(("action", "end"), [(UP, (0, 1)), (RIGHT, (1, 2)), (DOWN, (2, 1)), (LEFT, (1, 0))])
def test_moves_and_one_hot(action: int, end: tuple[int, int]) -> None:
    env = GridNavigation(size=4)
    at(env, 1, 1)
    observation, reward, terminated, truncated, info = env.step(action)
    assert observation.dtype == np.float32 and observation.shape == (16,)
    assert np.flatnonzero(observation).tolist() == [end[0] * 4 + end[1]] and observation.max() == 1.0
    assert (reward, terminated, truncated, info) == (0.0, False, False, {})


def test_walls_and_border_hold() -> None:
    env = GridNavigation(size=3, walls=[(1, 1)])
    for start, action in [((0, 0), UP), ((0, 0), LEFT), ((0, 2), RIGHT), ((2, 0), DOWN)]:
        at(env, *start)
        env.step(action)
        assert cell(env) == start
    for start, action in [((0, 1), DOWN), ((1, 0), RIGHT), ((2, 1), UP), ((1, 2), LEFT)]:
        at(env, *start)
        env.step(action)
        assert cell(env) == start


@pytest.mark.parametrize("size", [2, 3, 8])
def test_truncates_at_exactly_four_times_the_size(size: int) -> None:
    env = GridNavigation(size=size)
    at(env, 0, 0)
    flags = [env.step(UP)[2:4] for _ in range(4 * size)]
    assert flags == [(False, False)] * (4 * size - 1) + [(False, True)]
    with pytest.raises(EnvironmentFailure, match="got a finished one"):
        env.step(UP)


def test_goal_on_the_last_step_terminates_and_truncates() -> None:
    env = GridNavigation(size=3)
    at(env, 2, 1, steps=11)
    assert env.step(RIGHT)[1:4] == (1.0, True, True)


def test_starts_are_uniform_over_reachable_cells() -> None:
    env = GridNavigation(size=5, walls=WALLS, goal=(2, 3))
    env.reset(seed=0)
    draws = 18000
    counts = np.sum([env.reset()[0] for _ in range(draws)], axis=0).reshape(5, 5)
    starts = env.distances() > 0
    assert not counts[~starts].any()
    expected = draws / starts.sum()
    # Six standard deviations of a binomial count.
    assert np.abs(counts[starts] - expected).max() < 6 * np.sqrt(expected)


def test_same_seed_same_start() -> None:
    first, second = GridNavigation(), GridNavigation()
    starts = [first.reset(seed=seed)[0] for seed in range(20)]
    np.testing.assert_array_equal(starts, [second.reset(seed=seed)[0] for seed in range(20)])
    assert len(np.unique(np.argmax(starts, axis=1))) > 5


def test_state_round_trip_in_mid_episode() -> None:
    env, other = GridNavigation(size=6), GridNavigation(size=6)
    at(env, 0, 0)
    actions = np.random.default_rng(3).integers(2, size=24) * 3  # up and left only: never the goal
    for action in actions[:10]:
        env.step(action)
    state = env.get_state()
    assert {name: (array.dtype, array.shape) for name, array in state.items()} == {
        "position": (np.int64, (2,)),
        "steps": (np.int64, ()),
    }
    rest = [env.step(action) for action in actions[10:]]
    assert state["steps"] == 10
    other.set_state(state)
    for action, expected in zip(actions[10:], rest, strict=True):
        observation, *others = other.step(action)
        np.testing.assert_array_equal(observation, expected[0])
        assert others == list(expected[1:])
    assert rest[-1][3]


def test_a_finished_state_stays_finished() -> None:
    env = GridNavigation(size=3)
    at(env, 2, 2, steps=4)
    with pytest.raises(EnvironmentFailure, match="got a finished one"):
        env.step(UP)
    env.reset(seed=1)
    env.step(UP)


def test_render() -> None:
    env = GridNavigation(size=3, walls=[(0, 1)], render_mode="ansi")
    assert env.render() == ".#.\n...\n..G\n"
    at(env, 1, 0)
    assert env.render() == ".#.\nA..\n..G\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 1}, "expected a size of at least 2, got 1"),
        ({"size": 2.5}, "expected an integer size of at least 2, got 2.5"),
        ({"goal": (8, 0)}, r"expected goal with row and column of 0 to 7, got \(8, 0\)"),
        ({"goal": (1, -1)}, "expected goal with row and column"),
        ({"goal": 3}, r"expected goal as \(row, column\) integers, got 3"),
        ({"walls": [(0, 8)]}, "expected a wall with row and column"),
        ({"walls": [(0, 1, 2)]}, r"expected a wall as \(row, column\) integers"),
        ({"walls": [(7, 7)]}, r"expected the goal on a free cell, got a wall at \(7, 7\)"),
        ({"size": 3, "walls": [(1, 2), (2, 1)]}, r"can be reached, got none with 2 walls"),
        ({"render_mode": "human"}, "expected render_mode None or 'ansi', got 'human'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GridNavigation(**arguments)


@pytest.mark.parametrize(
    "state",
    [
        {"position": np.array([0, 0])},
        {"position": np.array([0, 0], np.int32), "steps": np.array(0)},
        {"position": np.array([0, 0, 0]), "steps": np.array(0)},
        {"position": np.array([0, 5]), "steps": np.array(0)},
        {"position": np.array([0, 2]), "steps": np.array(0)},
        {"position": np.array([0, 0]), "steps": np.array(21)},
        {"position": np.array([0, 0]), "steps": np.array(-1)},
    ],
)
def test_bad_states(state: dict[str, Any]) -> None:
    env = GridNavigation(size=5, walls=WALLS)
    at(env, 1, 1, steps=3)
    with pytest.raises(EnvironmentFailure, match="set_state expected"):
        env.set_state(state)
    assert cell(env) == (1, 1) and env.get_state()["steps"] == 3


def test_use_before_reset_and_bad_actions() -> None:
    env = GridNavigation()
    with pytest.raises(EnvironmentFailure, match="never reset"):
        env.step(UP)
    with pytest.raises(EnvironmentFailure, match="get_state expected"):
        env.get_state()
    env.reset(seed=0)
    for action in (4, -1, 0.5, None):
        with pytest.raises(EnvironmentFailure, match="expected an action of 0 to 3"):
            env.step(action)  # type: ignore[arg-type]


REGISTERED = "assert type(gymnasium.make('GridNavigation-v0', size=3).unwrapped).__name__ == 'GridNavigation'"
# As a plugin loader would: while `gymnasium.envs` is being imported and `gymnasium.make` doesn't exist yet.
DURING_IMPORT = f"""
import importlib.machinery, sys
class Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module):
        super().exec_module(module)
        assert not hasattr(sys.modules["gymnasium"], "make")
        from hpcrl.envs.registration import register_environments
        register_environments()
class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        found = super().find_spec(name, path, target) if name == "gymnasium.envs" else None
        if found:
            found.loader = Loader(found.loader.name, found.loader.path)
        return found
sys.meta_path.insert(0, Finder)
import gymnasium
{REGISTERED}
"""
IMPORT_ALONE = """
import sys, hpcrl.envs
before = set(sys.modules)
import hpcrl.envs.registration
assert set(sys.modules) - before <= {"hpcrl.envs.registration", "__future__"}
"""
CALL = "hpcrl.envs.registration.register_environments()"


@pytest.mark.parametrize(
    "program",
    [
        f"import hpcrl.envs.registration\n{CALL}\n{CALL}\nimport gymnasium\n{REGISTERED}",
        f"import gymnasium\nimport hpcrl.envs.registration\n{CALL}\n{CALL}\n{REGISTERED}",
        IMPORT_ALONE,
        DURING_IMPORT,
    ],
    ids=["hpcrl first", "gymnasium first", "import alone", "while gymnasium is imported"],
)
def test_registration_in_a_new_process(program: str) -> None:
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
