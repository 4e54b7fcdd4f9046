"""The benchmark of presets: what a run counts as, rows that replace others, table and plot; a stub for hpcrl."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import preset_results, presets
from benchmarks.preset_results import Result, draw, markdown, read, read_curve, write
from benchmarks.presets import Plan, result_of
from hpcrl.commands.options import parse
from hpcrl.errors import ConfigError
from hpcrl.metrics import COLUMNS

#: Stands for `hpcrl train`: three iterations, the last of which has the return 100 + seed, and what it was told to do.
STUB = """
import json, os, sys, time

told = dict(zip(sys.argv, sys.argv[1:]))
run_dir, behaviour = told["--run-dir"], os.environ.get("STUB_" + told["--seed"], "finished")
if behaviour == "fails":
    sys.exit("the second rank was lost")
os.mkdir(run_dir)
with open(os.environ["STUB_LOG"], "a") as file:
    json.dump(sys.argv[1:], file)
    file.write("\\n")
facts = {"layout": {"ranks": int(told["--ranks"])}, "machine": {"cores": 6}}
json.dump(facts, open(run_dir + "/config.json", "w"))
with open(run_dir + "/metrics.csv", "w") as file:
    file.write("iteration,env_steps,time/elapsed_s,rollout/return_last_100\\n")
    if behaviour != "stuck":
        file.write(f"1,100,1.5,\\n2,200,2.5,50.5\\n3,300,4,{100 + int(told['--seed'])}\\n")
with open(run_dir + "/outcome", "w") as file:
    file.write(behaviour)
if behaviour in ("slow", "stuck"):
    time.sleep(60)
"""

FIRST, GRID = "a2c/first-light", "a3c/a3c-grid-navigation"

RESULT = Result(FIRST, "", 1, 1, 6, 100.0, 300, 4.0, 101.0, 300, 4.0)

Measure = Callable[..., int]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def measure(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> Measure:
    """Runs the benchmark with the stub and a threshold of 102."""
    monkeypatch.setenv("STUB_LOG", str(tmp_path / "log"))
    (tmp_path / "stub.py").write_text(STUB)
    known = {label: presets.BY_LABEL[label]._replace(threshold=102.0) for label in (FIRST, GRID)}
    start = [sys.executable, "-S", str(tmp_path / "stub.py")]
    return lambda *words: presets.main([*words, "--out", str(out)], known, start)


def test_every_preset_is_run_with_every_seed(measure: Measure, out: Path, tmp_path: Path) -> None:
    assert measure("--seeds", "1", "2", "--ranks", "3") == 0
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    told = [parse(algorithm, options) for _, algorithm, *options in lines]
    assert [(line[1], config.seed) for line, config in zip(lines, told, strict=True)] == [
        ("a2c", 1),
        ("a2c", 2),
        ("a3c", 1),
        ("a3c", 2),
    ]
    assert all(line[0] == "train" and config.stop_return == 102 for line, config in zip(lines, told, strict=True))
    assert all(config.ranks == 3 for config in told) and told[0].env == "CartPole-v0"
    first, second, *others = read(out / "presets.csv")
    assert first == Result(FIRST, "", 1, 3, 6, 102.0, None, None, 101.0, 300, 4.0) and not first.reached
    assert second == Result(FIRST, "", 2, 3, 6, 102.0, 300, 4.0, 102.0, 300, 4.0) and second.reached
    assert others == [replace(first, preset=GRID), replace(second, preset=GRID)]
    assert not any(Path(config.run_dir or "").exists() for config in told)


def test_curves_are_kept_and_drawn_again_without_a_run(measure: Measure, out: Path, tmp_path: Path) -> None:
    assert measure("first-light", "--seeds", "2") == 0
    curve = read_curve(out / "curves" / "a2c-first-light-ranks1-seed2.csv")
    assert math.isnan(curve[0][2]) and curve[1:] == [(200, 2.5, 50.5), (300, 4.0, 102.0)]
    for path in (out / "presets.md", out / "presets.png", tmp_path / "log"):
        path.unlink()
    assert measure("--seeds") == 0
    assert "| a2c/first-light |  | 102 | 1 | 6 | 1 | 1 | 300 | 4.0 | 102 | 4.0 |" in (out / "presets.md").read_text()
    assert (out / "presets.png").read_bytes().startswith(b"\x89PNG") and not (tmp_path / "log").exists()
    assert sorted(path.name for path in out.iterdir()) == ["curves", "presets.csv", "presets.md", "presets.png"]


def test_options_go_to_the_run_and_have_a_row_of_their_own(measure: Measure, out: Path, tmp_path: Path) -> None:
    options = "--gamma 0.5 --run-name 'two words'"
    for words in ((), (f"--options={options}",)):
        assert measure("first-light", "--seeds", "2", *words) == 0
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert lines[1][lines[1].index("--gamma") :][:4] == ["--gamma", "0.5", "--run-name", "two words"]
    assert [result.options for result in read(out / "presets.csv")] == ["", options]
    assert sorted(path.name for path in (out / "curves").iterdir()) == [
        "a2c-first-light-gamma-0.5-run-name-two-words-ranks1-seed2.csv",
        "a2c-first-light-ranks1-seed2.csv",
    ]


def test_a_row_replaces_the_one_of_the_same_run(measure: Measure, out: Path) -> None:
    out.mkdir()
    same, other_ranks, other_preset = (
        replace(RESULT, seed=2, wall_s=9.0),
        replace(RESULT, seed=2, ranks=2),
        replace(RESULT, preset="a2c/grid-navigation", seed=2),
    )
    write(out / "presets.csv", [other_preset, same, other_ranks])
    assert measure("first-light", "--seeds", "2") == 2  # the curves of the others are missing
    new = Result(FIRST, "", 2, 1, 6, 102.0, 300, 4.0, 102.0, 300, 4.0)
    assert read(out / "presets.csv") == [new, other_ranks, other_preset]


def test_a_run_that_fails_or_was_stopped_leaves_no_row(
    measure: Measure, out: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STUB_1", "fails")
    monkeypatch.setenv("STUB_2", "stopped")
    assert measure("first-light") == 1
    assert [result.seed for result in read(out / "presets.csv")] == [3]
    said = capfd.readouterr().err
    assert "first-light, seed 1: " in said and "the second rank was lost" in said
    assert "first-light, seed 2: " in said and "it was stopped" in said


def test_the_time_limit_ends_a_run_and_what_it_did_counts(
    measure: Measure, out: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STUB_1", "slow")
    monkeypatch.setenv("STUB_2", "stuck")
    assert measure("first-light", "--seeds", "1", "2", "--time-limit", "0.8") == 1
    [result] = read(out / "presets.csv")
    assert (result.seed, result.reached, result.env_steps, result.return_last_100) == (1, False, 300, 101)
    said = capfd.readouterr()
    assert "did not reach 102 in 300 env steps" in said.out and "no iteration was over" in said.err


def test_a_signal_stops_it_after_what_was_measured(
    measure: Measure, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_2", "slow")

    def ask() -> None:
        while not (tmp_path / "log").exists() or len((tmp_path / "log").read_text().splitlines()) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    assert measure("first-light") == 128 + signal.SIGTERM
    asking.join()
    assert [result.seed for result in read(out / "presets.csv")] == [1]


FACTS = {"layout": {"ranks": 2}, "machine": {"cores": 8}}


def test_the_first_iteration_that_reaches_the_threshold_counts() -> None:
    plan = Plan("p", "--precision bfloat16", 3, 5.0)
    curve = [(10, 1.0, math.nan), (20, 2.0, 5.0), (30, 3.0, 7.0), (40, 4.0, 6.0)]
    expected = Result("p", "--precision bfloat16", 3, 2, 8, 5.0, 20, 2.0, 6.0, 40, 4.0)
    assert result_of(plan, FACTS, curve) == expected
    late = replace(expected, threshold=7.0, threshold_env_steps=30, threshold_s=3.0)
    assert result_of(plan._replace(threshold=7.0), FACTS, curve) == late
    never = replace(expected, threshold=7.5, threshold_env_steps=None, threshold_s=None)
    assert result_of(plan._replace(threshold=7.5), FACTS, curve) == never
    assert result_of(plan, FACTS, curve[:1]).return_last_100 is None


def test_a_negative_threshold_is_a_value_of_its_option(measure: Measure, tmp_path: Path) -> None:
    start = [sys.executable, "-S", str(tmp_path / "stub.py")]
    known = {FIRST: presets.BY_LABEL[FIRST]._replace(threshold=-1e-5)}
    assert presets.main(["--seeds", "1", "--out", str(tmp_path)], known, start) == 0
    [line] = (tmp_path / "log").read_text().splitlines()
    assert parse("a2c", json.loads(line)[2:]).stop_return == -1e-5


def test_the_table_by_hand() -> None:
    late, never = replace(RESULT, seed=2, threshold_env_steps=900, threshold_s=12.0, wall_s=12.0), RESULT
    never = replace(RESULT, seed=3, threshold_env_steps=None, threshold_s=None, return_last_100=None, wall_s=20.0)
    table = markdown([never, late, RESULT])
    assert (
        "| a2c/first-light |  | 100 | 1 | 6 | 3 | 2 | 900 (300 - not reached) | 12.0 (4.0 - not reached) "
        "| 101 | 12.0 (4.0 - 20.0) |"
    ) in table
    apart = markdown([RESULT, replace(RESULT, cores=8), replace(RESULT, ranks=4), replace(RESULT, threshold=90.0)])
    assert apart.count("| a2c/first-light |") == 4
    assert "| a2c/first-light | `--gamma 0.5` | 100 |" in markdown([RESULT, replace(RESULT, options="--gamma 0.5")])
    assert "| not reached | not reached |" in markdown([never])


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    never = replace(RESULT, seed=3, threshold_env_steps=None, threshold_s=None, return_last_100=None, wall_s=1 / 3)
    write(tmp_path / "presets.csv", [never, RESULT])
    assert read(tmp_path / "presets.csv") == [RESULT, never]
    assert read(tmp_path / "none.csv") == []


@pytest.mark.parametrize(
    "text", ["", "env_steps\n1\n", "env_steps,time/elapsed_s,rollout/return_last_100\n1,2\n1,x,3\n"]
)
def test_curves_that_can_not_be_read_are_refused(
    text: str, measure: Measure, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (out / "curves").mkdir(parents=True)
    write(out / "presets.csv", [RESULT])
    (out / "curves" / RESULT.curve).write_text(text)
    assert measure("--seeds") == (2 if text else 0)
    assert ("a learning curve of" in capsys.readouterr().err) == bool(text)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [("preset,", "name,", 1), (",1,6,", ",one,6,", 2), (",1,6,", ",6,", 2), (",1,6,", ",,6,", 2)],
)
def test_other_files_are_refused(old: str, new: str, line: int, measure: Measure, out: Path) -> None:
    out.mkdir()
    write(out / "presets.csv", [RESULT])
    text = (out / "presets.csv").read_text()
    assert old in text
    (out / "presets.csv").write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=f"presets.csv, line {line}: "):
        read(out / "presets.csv")
    assert measure("--seeds") == 2


def test_the_plot_has_every_seed_and_the_threshold() -> None:
    other = replace(RESULT, seed=2)
    alone = replace(RESULT, preset="a2c/grid-navigation", ranks=4, threshold=0.5)
    curves = {
        RESULT.key: [(10, 1.0, math.nan), (20, 2.0, 50.0)],
        other.key: [(10, 1.0, 60.0)],
        alone.key: [(5, 1.0, 0.25)],
    }
    first, second = draw([alone, other, RESULT], curves).axes
    assert (first.get_title(), second.get_title()) == ("a2c/first-light, 1 rank", "a2c/grid-navigation, 4 ranks")
    one, two, dashed = first.lines
    np.testing.assert_array_equal(one.get_xydata(), [[10, math.nan], [20, 50]])
    np.testing.assert_array_equal(two.get_xydata(), [[10, 60]])
    assert dashed.get_linestyle() == "--" and np.asarray(dashed.get_ydata()).tolist() == [100, 100]
    legend = first.get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()] == ["seed 1", "seed 2"]


def test_without_matplotlib_there_is_a_table_and_one_sentence(
    measure: Measure, out: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert measure("first-light", "--seeds", "1") == 0
    said = capfd.readouterr().err
    assert "matplotlib is missing" in said and said.count("\n") == 1
    assert (out / "presets.md").exists() and not (out / "presets.png").exists()


def test_presets_that_can_not_be_measured_are_refused(
    measure: Measure, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measure("first-lihgt") == 2 and measure("ppo/first-light") == 2
    unknown, other = capsys.readouterr().err.splitlines()
    assert "unknown preset 'first-lihgt'" in unknown and "unknown preset 'ppo/first-light'" in other
    assert not out.exists()


def test_columns_are_those_of_metrics() -> None:
    assert {preset_results._STEPS, preset_results._SECONDS, preset_results._RETURN} <= set(COLUMNS)
