"""Environments that raise, sleep for ever or crash: a run goes on until too many did, and counts them."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from hpcrl.noise import Purpose, seeds
from tests.calamities import STEPS, STEPS_BEFORE, is_broken
from tests.commands import HPCRL, Done, in_turn, run, state, untimed

#: With this seed environments 0 to 3 break in rows 13 (0 raises), 23 (3 crashes), 53 (2 sleeps), 76 (0 raises) and
#: 96 (2 crashes).
SEED, NUM_ENVS, TIME, ROWS = 115, 4, 8, 104
TIMEOUT_S = 0.8
NUM_PLAYED, PLAYED_SEED = 20, 116
_RUN = (
    *("--seed", SEED, "--num-envs", NUM_ENVS, "--unroll-length", TIME, "--hidden-sizes", 8, "--checkpoint-every", 32),
    *("--total-env-steps", 400, "--num-iterations", 10, "--env-timeout", TIMEOUT_S, "--no-tensorboard"),
)
_CALAMITY = (*_RUN, "--env", "tests.calamities:calamity", "--isolated", "--env-restarts")
_TROUBLE = (*_RUN, "--env", "tests.calamities:trouble", "--env-restarts")
#: Runs on the same process one after the other: those that end early, and then those that don't.
_ENDING = {"cut": ("a2c", *_CALAMITY, 2), "none allowed": ("ppo", *_TROUBLE, 0)}
_PLAYED = "in one process"
_GOING_ON = {
    "cut": ("a2c", *_CALAMITY, 100, "--resume"),
    "whole": ("a2c", *_CALAMITY, 100),
    _PLAYED: ("ppo", *_TROUBLE, 100),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs are, by name."""
    return tmp_path_factory.mktemp("breaking")


@pytest.fixture(scope="module")
def ended(folder: Path) -> Mapping[str, Done]:
    """Runs that ended early."""
    return _in_turn(folder, _ENDING)


@pytest.fixture(scope="module")
def gone_on(folder: Path, ended: Mapping[str, Done]) -> Mapping[str, Done]:
    """Runs that went on to their end, one of which had ended early before."""
    return _in_turn(folder, _GOING_ON)


def _in_turn(folder: Path, runs: Mapping[str, Sequence[object]]) -> Mapping[str, Done]:
    commands: list[tuple[object, ...]] = [("train", *runs[name], "--run-dir", folder / name) for name in runs]
    if _PLAYED in runs:
        commands.append(("eval", folder / _PLAYED, "--episodes", NUM_PLAYED, "--seed", PLAYED_SEED))
    return dict(zip([*runs, "eval"], in_turn(commands), strict=False))


class Expected(NamedTuple):
    """What a run says after some rows: episodes (env_step, env_index, number, seed, length), and how many broke."""

    episodes: list[tuple[int, int, int, int, int]]
    num_broken: int


def _expected(num_rows: int) -> Expected:
    episodes, num_broken = [], 0
    for env in range(NUM_ENVS):
        row = number = 0
        while True:
            seed = int(seeds(SEED, env, number, Purpose.EPISODE_SEED))
            # The step that broke is a row too.
            row += STEPS_BEFORE + 1 if is_broken(seed) else STEPS
            if row > num_rows:
                break
            if is_broken(seed):
                num_broken += 1
            else:
                episodes.append((row, env, number, seed, STEPS))
            number += 1
    return Expected(sorted(episodes), num_broken)


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def _episodes(run_dir: Path) -> list[tuple[int, ...]]:
    names = ("env_step", "env_index", "episode", "seed", "length")
    return [tuple(int(row[name]) for name in names) for row in _rows(run_dir / "episodes.csv")]


def _restarts(run_dir: Path) -> list[int]:
    return [int(row["rollout/env_restarts"]) for row in _rows(run_dir / "metrics.csv")]


def test_the_seed_is_well_chosen() -> None:
    assert [_expected(rows).num_broken for rows in (12, 13, 22, 23, 52, 53, 75, 76, 95, 96, ROWS)] == [
        *(0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5)
    ]


@pytest.mark.parametrize("name", ["whole", _PLAYED])
def test_a_run_goes_on_and_counts(folder: Path, gone_on: Mapping[str, Done], name: str) -> None:
    done = gone_on[name]
    assert done.returncode == 0, done.stderr
    expected = _expected(ROWS)
    assert _episodes(folder / name) == expected.episodes
    rows = _rows(folder / name / "metrics.csv")
    # Rows that broke are no steps.
    assert int(rows[-1]["env_steps"]) == ROWS * NUM_ENVS - expected.num_broken
    steps = [round((int(row["env_steps"]) + int(row["rollout/env_restarts"])) / NUM_ENVS) for row in rows]
    assert _restarts(folder / name) == [_expected(num_rows).num_broken for num_rows in steps]
    assert done.stderr.count("and is made anew") == expected.num_broken
    assert "no answer" in done.stderr and "KeyError: 'at home'" in done.stderr
    assert ("was ended by SIGSEGV" in done.stderr) == (name == "whole")


def test_episodes_that_are_played_break_and_are_played_anew(gone_on: Mapping[str, Done]) -> None:
    done = gone_on["eval"]
    played = seeds(PLAYED_SEED, np.arange(NUM_PLAYED), 0, Purpose.EVALUATION_SEED).tolist()
    assert done.returncode == 0 and done.stderr.count("and is made anew") >= sum(map(is_broken, played)) > 0
    assert re.search(rf"{NUM_PLAYED} episodes: return .* length {STEPS}\.0\n", done.stdout)


def test_one_too_many_ends_the_run_with_the_environments_traceback(folder: Path, ended: Mapping[str, Done]) -> None:
    cut, none_allowed = ended["cut"], ended["none allowed"]
    assert cut.returncode == none_allowed.returncode == 1
    assert cut.seconds < 30 and none_allowed.seconds < 30
    assert "environment 2 broke in its episode 5" in cut.stderr
    assert "--env-restarts 2 allows this rank no further restart:\n" in cut.stderr
    # Where it slept.
    assert "tests/environments.py" in cut.stderr.partition("further restart:")[2]
    assert "in _break_if" in cut.stderr.partition("further restart:")[2]
    assert "raise KeyError(\"at home\")\nKeyError: 'at home'" in none_allowed.stderr


def test_a_run_that_one_too_many_ended_goes_on_as_if_more_had_been_allowed(
    folder: Path, gone_on: Mapping[str, Done]
) -> None:
    assert gone_on["cut"].returncode == 0, gone_on["cut"].stderr
    assert state(folder / "cut") == state(folder / "whole")
    assert (folder / "cut/episodes.csv").read_text() == (folder / "whole/episodes.csv").read_text()
    cut, whole = (_without_restarts(folder / name / "metrics.csv") for name in ("cut", "whole"))
    assert cut == whole
    # Restarts are counted, and allowed, from where the program started.
    before, after = _restarts(folder / "whole"), _restarts(folder / "cut")
    resumed = after.index(1, after.index(2))
    assert after == before[:resumed] + [count - 2 for count in before[resumed:]]


def _without_restarts(metrics: Path) -> list[list[str]]:
    rows = untimed(metrics)
    place = rows[0].index("rollout/env_restarts")
    return [row[:place] + row[place + 1 :] for row in rows]


def test_three_ranks_go_on_until_one_has_one_too_many(tmp_path: Path) -> None:
    command = ("train", "a2c", *_CALAMITY, 1, "--ranks", 3, "--total-env-steps", 10**8, "--num-iterations", 10**7)
    done = run([*HPCRL, *map(str, command), "--run-dir", str(tmp_path / "run")], timeout=60)
    assert done.returncode == 1
    # Environments 0 and 1 are those of rank 1, where one broke until then.
    assert "[rank 2] environment 2 broke in its episode 5" in done.stderr
    assert "--env-restarts 1 allows this rank no further restart:\n" in done.stderr
    assert "in _break_if" in done.stderr.partition("further restart:")[2]
    rows = _rows(tmp_path / "run/metrics.csv")
    num_rows = len(rows) * TIME
    assert [int(row["rollout/env_restarts"]) for row in rows] == [
        _expected(end).num_broken for end in range(TIME, num_rows + 1, TIME)
    ]
    assert num_rows == 48 and _episodes(tmp_path / "run") == _expected(num_rows).episodes
