"""impala and appo from the command line: replayable where they promise it, bounded, and complete whatever is slow."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from tests.commands import Done, Runs, hpcrl, in_turn, relative_difference, weights
from tests.hosts import run_on_hosts, why_not

_SHORT = ("--num-envs", 16, "--batch-envs", 16, "--total-env-steps", 20 * 512, "--num-iterations", 2)
_LOCKSTEP = ("impala", *_SHORT, "--schedule", "lockstep")
_REPLAYED = ("--deterministic", "--max-lag", 2)
_SAVING = ("--checkpoint-every", 5 * 512, "--checkpoint-keep", 9)
_CUT = ("appo", *_SHORT, "--learners", 2, "--num-envs", 10, "--batch-envs", 4, "--replay-epochs", 2)
_CUT += ("--deterministic", "--max-lag", 9, "--check-in-sync-every", 1)
_WORLDS = [
    (
        1,
        {
            "lockstep-alone": _LOCKSTEP,
            "a2c": ("a2c", "--num-envs", 16, "--total-env-steps", 20 * 512, "--num-iterations", 2),
        },
    ),
    (
        2,
        {
            "lockstep": _LOCKSTEP,
            "no-lag": ("impala", *_SHORT, "--max-lag", 0),
            "lockstep-colocated": (*_LOCKSTEP, "--placement", "colocated"),
            "interrupted-lockstep": (*_LOCKSTEP, *_SAVING),
            "interrupted-run-ahead": ("impala", *_SHORT, "--schedule", "run-ahead", *_SAVING),
        },
    ),
    (
        4,
        {
            "replayed": ("impala", *_SHORT, *_REPLAYED, "--learners", 1),
            "cut-rounds": _CUT,
            "lockstep-four-ranks": _LOCKSTEP,
            "lockstep-central": (*_LOCKSTEP, "--inference", "learner"),
        },
    ),
    # The same again by other processes.
    (4, {"replayed-again": ("impala", *_SHORT, *_REPLAYED, "--learners", 1), "cut-rounds-again": _CUT}),
]
_TOLERANCE = 1e-5


def _rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _account(output: str) -> tuple[int, ...]:
    """Unrolls acted, learned from, dropped, under way."""
    line = next(line for line in output.splitlines() if line.startswith("unrolls: "))
    return tuple(int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", line))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All undisturbed runs that the tests compare; `lockstep` is on one learner and one actor."""
    return Runs(tmp_path_factory.mktemp("run-ahead"), _WORLDS)


def test_no_lag_is_lockstep_bit_for_bit(runs: Runs) -> None:
    assert weights(runs["no-lag"]).tobytes() == weights(runs["lockstep"]).tobytes()
    assert [row["lag/max"] for row in _rows(runs["no-lag"])] == ["0", "0"]


def test_a_deterministic_run_ahead_is_the_same_when_repeated(runs: Runs) -> None:
    again = runs["replayed-again"]
    assert weights(again).tobytes() == weights(runs["replayed"]).tobytes()
    assert [row["lag/max"] for row in _rows(again)] == ["2", "2"]
    assert relative_difference(weights(again), weights(runs["lockstep"])) > 0.01


def test_batches_that_cut_rounds_are_replayed_too(runs: Runs) -> None:
    one, other = runs["cut-rounds"], runs["cut-rounds-again"]
    assert weights(one).tobytes() == weights(other).tobytes()
    assert int(_rows(one)[-1]["lag/max"]) <= 9


@pytest.mark.parametrize("layout", ["alone", "four-ranks", "colocated", "central"])
def test_lockstep_is_the_same_run_on_any_layout(runs: Runs, layout: str) -> None:
    run_dir, reference = runs[f"lockstep-{layout}"], runs["lockstep"]
    assert relative_difference(weights(run_dir), weights(reference)) <= _TOLERANCE
    episodes = [(path / "episodes.csv").read_text() for path in (run_dir, reference)]
    assert episodes[0] == episodes[1]


def test_lockstep_impala_is_a2c(runs: Runs) -> None:
    assert relative_difference(weights(runs["a2c"]), weights(runs["lockstep"])) <= 1e-3


_STALE: dict[str, tuple[object, ...]] = {
    "drop": ("--total-env-steps", 40 * 512),
    "wait": ("--on-stale", "wait", "--total-env-steps", 12 * 512),
}


@pytest.fixture(scope="module")
def with_a_slow_actor(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[dict[str, str]], Done]]:
    """Two learners with an actor each, of which rank 3 takes 20 times as long; rows and outcome by --on-stale."""
    folder = tmp_path_factory.mktemp("slow")
    common = ("train", "impala", "--learners", 2, "--no-tensorboard", "--num-iterations", 2)
    common += ("--num-envs", 16, "--batch-envs", 16, "--max-lag", 2)
    commands = [(*common, *options, "--run-dir", folder / name) for name, options in _STALE.items()]
    outcomes = in_turn(commands, ranks=4, fault="3:slow@20")
    assert [done.returncode for done in outcomes] == [0, 0], outcomes
    return {name: (_rows(folder / name), done) for name, done in zip(_STALE, outcomes, strict=True)}


def test_a_slow_actor_is_not_waited_for_but_what_it_brings_too_late_is_counted(
    with_a_slow_actor: dict[str, tuple[list[dict[str, str]], Done]],
) -> None:
    rows, done = with_a_slow_actor["drop"]
    acted, learned, dropped, under_way = _account(done.stdout)
    assert all(float(row["lag/max"]) <= 2 for row in rows)
    assert acted == learned + dropped + under_way and 0 <= under_way <= 2 * 3
    assert sum(int(row["lag/dropped_unrolls"]) for row in rows) >= 1
    assert sum(int(row["lag/dropped_steps"]) for row in rows) >= 32 * 8


def test_with_wait_nothing_is_too_old(with_a_slow_actor: dict[str, tuple[list[dict[str, str]], Done]]) -> None:
    rows, done = with_a_slow_actor["wait"]
    acted, learned, dropped, under_way = _account(done.stdout)
    assert all(float(row["lag/max"]) <= 2 for row in rows)
    assert dropped == 0 and acted == learned + under_way
    assert sum(int(row["wait/learner_for_unrolls"]) for row in rows) > 0


@pytest.mark.parametrize("schedule", ["lockstep", "run-ahead"])
def test_an_interrupted_run_goes_on(schedule: str, runs: Runs) -> None:
    run_dir = runs[f"interrupted-{schedule}"]
    kept = sorted((run_dir / "checkpoints").glob("step_*.h5"))
    for path in kept[1:]:
        path.unlink()
    options = ("--ranks", 2, "--schedule", schedule)
    done = hpcrl("train", "impala", "--run-dir", run_dir, "--resume", *options, *_SHORT, "--no-tensorboard")
    assert done.returncode == 0, done.stderr
    assert int(_rows(run_dir)[-1]["env_steps"]) >= 20 * 512
    if schedule == "lockstep":
        assert weights(run_dir).tobytes() == weights(runs["lockstep"]).tobytes()


_FAR = {
    "deterministic": _REPLAYED,
    "central": ("--max-lag", 0, "--inference", "learner"),
    "run-ahead": ("--learners", 2),
}


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Done]]:
    """Runs over two hosts of two ranks each."""
    folder = tmp_path_factory.mktemp("far")
    common = ("train", "impala", "--no-tensorboard", *_SHORT, "--learners", 1)
    commands = [(*common, *options, "--run-dir", folder / name) for name, options in _FAR.items()]
    outcomes = in_turn(commands, start=lambda command: run_on_hosts(command, {"left": 2, "right": 2}, timeout=120))
    return {name: (folder / name, done) for name, done in zip(_FAR, outcomes, strict=True)}


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
@pytest.mark.parametrize("options", _FAR)
def test_hosts_that_share_no_memory_run_ahead_as_well(
    runs: Runs, far: dict[str, tuple[Path, Done]], options: str
) -> None:
    run_dir, done = far[options]
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    acted, learned, dropped, under_way = _account(done.stdout)
    assert acted == learned + dropped + under_way and dropped == 0
    if options == "deterministic":
        assert relative_difference(weights(runs["replayed"]), weights(run_dir)) <= _TOLERANCE
    if options == "central":
        assert relative_difference(weights(runs["lockstep"]), weights(run_dir)) <= _TOLERANCE
