"""The scaling benchmark: what is missing, what is refused, efficiency by hand, and the plot; a stub for the ranks."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import plot, scaling, steps
from benchmarks.efficiency import Curve, Spread, curves, markdown
from benchmarks.repeats import Repeat, append, missing, read
from hpcrl.errors import ConfigError

REPEAT = Repeat(
    mode="strong",
    algorithm="a2c",
    env="CartPole-v1",
    placement="split",
    options=[],
    ranks=1,
    nodes=1,
    learners=1,
    actors=1,
    num_envs=96,
    env_steps=400_000,
    batch_envs=None,
    repeat=1,
    env_steps_per_s=1000.0,
    updates_per_s=1.0,
    measured_s=4.0,
    time_split={"actor_acting": 0.5},
    machine={"cpu": "some", "cores": 4},
    versions={"hpcrl": "0.1.0"},
    git_commit=None,
    hosts=["a"],
    slurm={},
    started="2026-01-01T00:00:00+00:00",
    command=["hpcrl", "train"],
)

#: Stands for a launcher of three ranks on two nodes, and for what they do; fails where the seed is 2 and told so.
STUB = """
import json, os, sys

words = sys.argv[1:]
if words[0] == "sh":
    print("rank on node a", "rank on node b", "rank on node a", sep="\\n")
    sys.exit()
told = dict(zip(words, words[1:]))
if told["--seed"] == os.environ.get("STUB_FAILS"):
    sys.exit("the third rank was lost")
run_dir, steps, envs = told["--run-dir"], int(told["--total-env-steps"]), int(told["--num-envs"])
os.mkdir(run_dir)
actors = {"1": [0, 1], "2": [1, 2]}
layout = {"ranks": int(told["--ranks"]), "hosts": ["a", "a", "b"], "learners": [0], "actors": actors}
config = {"algorithm": "a2c", "env": "CartPole-v1", "placement": "split", "num_envs": envs, "total_env_steps": steps}
facts = {"config": config, "layout": layout, "versions": {}, "machine": {}, "git_commit": None}
json.dump(facts, open(run_dir + "/config.json", "w"))
with open(run_dir + "/metrics.csv", "w") as file:
    file.write("env_steps,learner_updates,time/elapsed_s,time/actor_acting_s,rollout/return_last_100\\n")
    file.write(f"{steps // 4},10,5,3,\\n{steps // 2},20,7,1,\\n")
    if os.environ.get("STUB_STOPS") is None:
        file.write(f"{steps},40,9,2,\\n")
"""


@pytest.fixture
def launch(tmp_path: Path) -> str:
    """What starts the stub."""
    (tmp_path / "stub.py").write_text(STUB)
    return f"{sys.executable} -S {tmp_path / 'stub.py'}"


def scale(out: Path, launch: str, *words: str) -> int:
    return scaling.main(["--mode", "weak", "--out", str(out), "--launch", launch, *words])


def test_a_repeat_says_what_was_measured(tmp_path: Path, launch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    out = tmp_path / "results" / "weak.jsonl"
    words = ("--envs-per-rank", "8", "--env-steps-per-rank", "1000", "--repeats", "1", "--", "--unroll-length", "16")
    assert scale(out, launch, *words) == 0
    [repeat] = read(out)
    # Two ranks act: 2 x 1000 env steps, of which 1500 were made between 5 s and 9 s, with 30 updates.
    assert (repeat.num_envs, repeat.env_steps, repeat.env_steps_per_s, repeat.updates_per_s) == (16, 2000, 375, 7.5)
    assert (repeat.ranks, repeat.nodes, repeat.learners, repeat.actors, repeat.measured_s) == (3, 2, 1, 2, 4)
    assert repeat.time_split == {"actor_acting": 0.75} and repeat.options == ["--unroll-length", "16"]
    assert {"job": 17, "array_task": 3}.items() <= repeat.slurm.items() and repeat.hosts == ["a", "b"]
    assert repeat.series[-3:] == (8, 1000, None)
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_only_missing_repeats_are_measured(
    tmp_path: Path, launch: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "weak.jsonl"
    monkeypatch.setenv("STUB_FAILS", "2")
    assert scale(out, launch) == 1
    assert [repeat.repeat for repeat in read(out)] == [1, 3]
    assert "the third rank was lost" in capfd.readouterr().err
    monkeypatch.delenv("STUB_FAILS")
    assert scale(out, launch) == 0
    assert [repeat.repeat for repeat in read(out)] == [1, 3, 2]


def test_a_run_that_was_stopped_is_no_repeat(
    tmp_path: Path, launch: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STUB_STOPS", "")
    assert scale(tmp_path / "weak.jsonl", launch, "--repeats", "1") == 1
    assert not (tmp_path / "weak.jsonl").exists()
    assert "stopped at env step 200,000 of 400,000" in capfd.readouterr().err


def test_missing_tells_layouts_and_work_apart() -> None:
    present = [replace(REPEAT, repeat=number) for number in (1, 3)]
    assert missing(present, REPEAT.series, 1, 1, 4) == [2, 4]
    assert missing(present, REPEAT.series, 2, 1, 2) == [1, 2]
    assert missing(present, REPEAT.series, 1, 2, 1) == [1]
    for other in ({"options": ["--vector", "native"]}, {"num_envs": 64}, {"env_steps": 1}, {"mode": "weak"}):
        assert missing(present, replace(REPEAT, **other).series, 1, 1, 1) == [1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--mode", "strong", "--ranks", "2", "--envs-per-rank", "8"], "--envs-per-rank is for --mode weak"),
        (["--mode", "weak", "--ranks", "2", "--env-steps", "8"], "--env-steps is for --mode strong"),
        (["--mode", "weak", "--ranks", "2", "--batch-envs-per-rank", "8"], "for impala and appo, got a2c"),
        (["--mode", "strong", "--ranks", "4", "--num-envs", "2"], "at least the number of actors, 3, got 2"),
        (["--mode", "weak", "--ranks", "2", "--", "--num_envs=8"], "--num-envs is set by this benchmark"),
        (["--mode", "weak", "--ranks", "2", "--", "--learners", "2"], "--learners 2 needs an actor for each"),
    ],
)
def test_what_can_not_be_run_is_refused(
    words: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scaling.main(["--out", str(tmp_path / "out.jsonl"), *words]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_a_signal_ends_the_command(tmp_path: Path) -> None:
    stop, pid = steps.Stop(), tmp_path / "pid"
    stop.install()

    def ask() -> None:
        while not pid.exists() or not pid.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    asking = threading.Thread(target=ask)
    asking.start()
    with pytest.raises(steps.Stopped):
        steps.run(["sh", "-c", f"echo $$ > {pid}; exec sleep 60"], 30, stop)
    asking.join()
    assert stop.signal == signal.SIGUSR1
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


@pytest.fixture
def curve() -> Curve:
    """1 rank at 900, 1000 and 1100 env steps/s, 4 ranks at 2000 and 3000."""
    rates = {1: (900.0, 1100.0, 1000.0), 4: (3000.0, 2000.0)}
    repeats = [
        replace(REPEAT, ranks=ranks, actors=max(1, ranks - 1), repeat=number, env_steps_per_s=rate)
        for ranks in (4, 1)
        for number, rate in enumerate(rates[ranks], 1)
    ]
    [found] = curves([*repeats, *repeats])  # a file that is named twice counts once
    return found


def test_efficiency_by_hand(curve: Curve) -> None:
    one, four = curve.points
    assert curve.base is one and (one.rate, four.rate) == (Spread(1000, 900, 1100), Spread(2500, 2000, 3000))
    assert curve.efficiency(one) == Spread(1, 0.9, 1.1)
    assert curve.efficiency(four) == Spread(0.625, 0.5, 0.75)
    assert curve.ideal(four) == 4000 and (one.roles, four.roles) == ("both", "1 + 3")
    assert "| 4 | 1 | 1 + 3 | 2,500 | 2,000-3,000 | 833 | 62% | 50-75% | 2 | 4.0 s |" in markdown(curve)


def test_the_base_is_the_smallest_layout_that_is_there() -> None:
    [curve] = curves(replace(REPEAT, ranks=ranks, env_steps_per_s=100.0 * ranks) for ranks in (8, 2, 4))
    assert curve.base.ranks == 2
    assert [curve.efficiency(point).median for point in curve.points] == [1, 1, 1]


def test_weak_scaling_is_one_curve_and_strong_another() -> None:
    weak = [
        replace(REPEAT, mode="weak", ranks=actors + 1, actors=actors, num_envs=8 * actors, env_steps=100 * actors)
        for actors in (1, 2, 3)
    ]
    strong, other = curves([*weak, REPEAT])
    assert (strong.series.mode, other.series.mode) == ("strong", "weak")
    assert [point.ranks for point in other.points] == [2, 3, 4]


@pytest.mark.parametrize("learners", [1, 2])
def test_where_only_actors_are_added_each_of_them_is_compared(learners: int) -> None:
    [curve] = curves(
        replace(REPEAT, ranks=learners + actors, learners=learners, actors=actors, env_steps_per_s=rate)
        for actors, rate in ((1, 100.0), (4, 300.0))
    )
    assert curve.by_actors and [curve.ideal(point) for point in curve.points] == [100, 400]
    assert [curve.efficiency(point).median for point in curve.points] == [1, 0.75]
    assert "by actors" in plot.draw([curve]).axes[0].get_legend().get_texts()[0].get_text()  # type: ignore[union-attr]


def test_the_plot_has_every_point_and_the_ideal(curve: Curve) -> None:
    figure = plot.draw([curve])
    above, below = figure.axes
    for ax, heights in ((above, [1000, 2500]), (below, [1, 0.625])):
        [measured] = [line for line in ax.lines if line.get_marker() == "o"]
        assert np.asarray(measured.get_xydata()).tolist() == [[1, heights[0]], [4, heights[1]]]
    [ideal] = [line for line in above.lines if line.get_linestyle() == ":"]
    assert np.asarray(ideal.get_xydata()).tolist() == [[1, 1000], [4, 4000]]
    legend = above.get_legend()
    assert legend is not None and "(base: 1 rank)" in legend.get_texts()[0].get_text()
    assert above.get_xscale() == "linear"


def test_plot_writes_a_png_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "one.jsonl", tmp_path / "many.jsonl"]
    append(files[0], REPEAT)
    for ranks in (2, 64):
        append(files[1], replace(REPEAT, ranks=ranks, actors=ranks - 1, nodes=ranks // 2))
    picture = tmp_path / "scaling.png"
    assert plot.main([*map(str, files), "-o", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "### Strong scaling: a2c, CartPole-v1, 96 envs" in printed
    assert "| 64 | 32 | 1 + 63 | 1,000 | 1,000-1,000 | 16 | 2% | 2-2% | 1 | 4.0 s |" in printed


WHOLE = json.dumps(asdict(REPEAT)) + "\n"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (WHOLE[:-1], "has no end"),
        (WHOLE[:200] + "\n", "not JSON"),
        ("\n", "not JSON"),
        ("[1]\n", "expected a JSON object, got list"),
        ('{"table": "cartpole"}\n', "which differs in: actors"),
        (WHOLE.replace('"ranks": 1', '"ranks": "1"'), "ranks must be of type int, got '1'"),
        (WHOLE.replace('"ranks": 1', '"ranks": 0'), "ranks must be a finite number above 0, got 0"),
        (WHOLE.replace("1000.0", "NaN"), "env_steps_per_s must be a finite number above 0, got nan"),
        (WHOLE.replace('"strong"', '"both"'), "mode must be one of strong, weak, got 'both'"),
    ],
)
def test_incomplete_and_foreign_lines_are_refused(
    line: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text(WHOLE + line)
    assert plot.main([str(path), "-o", str(tmp_path / "scaling.png")]) == 2
    said = capsys.readouterr().err
    assert f"{path}, line 2: " in said and why in said and said.count("\n") == 1
    assert not (tmp_path / "scaling.png").exists()
    with pytest.raises(ConfigError, match="line 2"):
        read(path)


def test_no_file_and_no_repeats_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.jsonl").touch()
    assert plot.main([str(tmp_path / "empty.jsonl")]) == 2
    assert plot.main([str(tmp_path / "none.jsonl")]) == 2
    no_repeats, no_file = capsys.readouterr().err.splitlines()
    assert "no repeats" in no_repeats and "none.jsonl can't be read" in no_file
