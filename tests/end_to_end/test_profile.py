"""`--profile`: a trace of all ranks on one clock, without holes, whatever way the run ends in order."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from hpcrl.activity import Phase
from tests.commands import HPCRL, Running, Runs
from tests.hosts import run_on_hosts, why_not

_SHORT = ("--num-envs", "8", "--total-env-steps", "20480", "--num-iterations", "4", "--profile")
_NO_HOSTS = why_not()


def _check(path: Path, names: list[str], longest_s: float) -> dict[str, Any]:
    """What holds for every trace; what it says of the run."""
    trace = json.loads(path.read_text())
    events = trace["traceEvents"]
    named = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert named == dict(enumerate(names))
    assert trace["otherData"]["spans_left_out"] == {str(rank): 0 for rank in named}
    for rank, name in named.items():
        spans = [event for event in events if event["pid"] == rank and event["ph"] == "X"]
        assert {span["name"] for span in spans} <= {phase.name.lower() for phase in Phase}
        assert {"learning"} <= {span["name"] for span in spans} or "learner" not in name
        assert {"acting", "inference"} <= {span["name"] for span in spans} or "actor" not in name
        begins = [span["ts"] for span in spans]
        ends = [span["ts"] + span["dur"] for span in spans]
        # Times are floats of microseconds.
        assert all(begin >= end - 1e-3 for begin, end in zip(begins[1:], ends, strict=False)), "two phases at once"
        assert begins[0] >= 0 and ends[-1] < longest_s * 1e6
        assert sum(span["dur"] for span in spans) > 0.9 * (ends[-1] - begins[0])
        updates = [span["args"]["update"] for span in spans]
        assert updates == sorted(updates) and updates[0] == 0
        assert updates[-1] > 0
    return trace["otherData"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs that end by themselves; a folder stands where the trace of `refused` would go."""
    folder = tmp_path_factory.mktemp("profile")
    (folder / "refused/trace.json").mkdir(parents=True)
    a2c = ("a2c", *_SHORT)
    worlds = [
        (1, {"one-process": a2c, "unasked": (*a2c, "--no-profile")}),
        (2, {"run-ahead": ("impala", *_SHORT, "--batch-envs", 8), "refused": a2c, "two-ranks": a2c}),
    ]
    return Runs(folder, worlds)


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        ("one-process", ["rank 0 (learner, actor)"]),
        ("two-ranks", ["rank 0 (learner)", "rank 1 (actor)"]),
    ],
)
def test_a_run_leaves_its_trace(runs: Runs, layout: str, names: list[str]) -> None:
    trace, done = runs[layout] / "trace.json", runs.done(layout)
    about = _check(trace, names, done.seconds)
    assert f"trace: {trace}" in done.stdout
    assert about["algorithm"] == "a2c" and about["env_steps"] == 20480 and about["clock_error_us"] == 0


def test_an_actor_that_runs_ahead_is_seen_behind(runs: Runs) -> None:
    trace = runs["run-ahead"] / "trace.json"
    _check(trace, ["rank 0 (learner)", "rank 1 (actor)"], runs.done("run-ahead").seconds)
    events = json.loads(trace.read_text())["traceEvents"]
    counters = {event["pid"]: event["name"] for event in events if event["ph"] == "C"}
    assert counters == {0: "learner updates", 1: "updates behind"}


def test_a_signal_leaves_a_trace_too(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    options = ["--total-env-steps", "100000000", "--num-iterations", "10000", "--no-tensorboard"]
    running = Running([*HPCRL, "train", "a2c", "--run-dir", str(run_dir), "--profile", "--ranks", "2", *options])
    metrics = run_dir / "metrics.csv"
    running.until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 2)
    running.process.send_signal(signal.SIGTERM)
    done = running.wait(timeout=30)
    assert done.returncode == 0, done.stderr
    _check(run_dir / "trace.json", ["rank 0 (learner)", "rank 1 (actor)"], 60)


def test_a_disk_that_refuses_is_a_warning(runs: Runs) -> None:
    done = runs.done("refused")
    assert done.returncode == 0, done.stderr
    assert "TRACE NOT WRITTEN" in done.stderr
    assert "trace:" not in done.stdout


def test_without_the_option_there_is_none(runs: Runs) -> None:
    assert not (runs["unasked"] / "trace.json").exists()
    assert "trace" not in runs.done("unasked").stdout


@pytest.mark.skipif(_NO_HOSTS is not None, reason=str(_NO_HOSTS))
def test_two_hosts_are_on_one_clock(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hpcrl", "train", "a2c", "--run-dir", str(tmp_path / "run"), "--no-tensorboard"]
    done = run_on_hosts([*command, *_SHORT], {"left": 2, "right": 1}, timeout=90)
    assert done.returncode == 0, done.stderr
    about = _check(tmp_path / "run/trace.json", ["rank 0 (learner)", "rank 1 (actor)", "rank 2 (actor)"], 90)
    assert 0 < about["clock_error_us"] < 5000
