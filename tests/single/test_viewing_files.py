"""What is made of a run's files, whole, half-written, damaged or missing; and `hpcrl runs`."""

from __future__ import annotations

import dataclasses
import fcntl
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from hpcrl.commands.main import main
from hpcrl.errors import ConfigError
from hpcrl.metrics import COLUMNS
from hpcrl.viewing.groups import group_runs
from hpcrl.viewing.run import find_runs, load_run
from hpcrl.viewing.tables import read_table
from tests.viewed import CONFIG, make_run

_HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "r+")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def table_of(tmp_path: Path, text: bytes, **options: int) -> tuple[list[float], str, int]:
    path = tmp_path / "table.csv"
    path.write_bytes(text)
    table = read_table(path, "x", **options)
    return table.column("y").tolist(), table.word, table.left_out


@pytest.mark.parametrize(
    ("text", "values", "word", "left_out"),
    [
        (b"x,y\n1,2\n3,4\n", [2, 4], "", 0),
        (b"x,y\n1,2\n3,4", [2], "", 0),  # half-written
        (b"x,y\n1,2\n3\n4,5,6\n7,8\n", [2, 8], "damaged", 2),
        (b"x,y\n1,2\nthree,4\n,5\nnan,6\n7,8\n", [2, 8], "damaged", 3),
        (b'x,y\n1,2\n"3,4\n5,6\n', [2, 6], "damaged", 1),  # a quote must not swallow what follows
        (b"x,y\n1,2\n\xff\x00,1\n5,6\n", [2, 6], "damaged", 1),
        (b"x,y\n1,1e300\n2,8\n", [np.nan, 8], "", 0),
        (b"x,y\n", [], "", 0),  # no row yet
        (b"", [], "empty", 0),
        (b"x,", [], "damaged", 0),
        (b"other,y\n1,2\n", [], "damaged", 0),
    ],
)
def test_a_table_has_every_whole_line(
    tmp_path: Path, text: bytes, values: list[float], word: str, left_out: int
) -> None:
    found, said, lost = table_of(tmp_path, text)
    np.testing.assert_array_equal(found, values)
    assert (said, lost) == (word, left_out)


def test_a_table_may_be_read_from_its_end(tmp_path: Path) -> None:
    lines = b"".join(b"%d,%d\n" % (number, 2 * number) for number in range(100, 1000))
    values, word, left_out = table_of(tmp_path, b"x,y\n" + lines, newest_bytes=100)
    assert values == [2.0 * number for number in range(1000 - len(values), 1000)]
    assert 10 <= len(values) <= 12 and not word and not left_out
    assert not read_table(tmp_path / "table.csv", "x", newest_bytes=100).is_whole
    assert len(read_table(tmp_path / "table.csv", "x", newest_bytes=1 << 20)) == 900


def test_a_missing_file_and_a_folder_in_its_place_are_said(tmp_path: Path) -> None:
    assert read_table(tmp_path / "none", "x").word == "missing"
    assert read_table(tmp_path, "x").word == "damaged"


@pytest.mark.parametrize(
    ("outcome", "jobs", "state"),
    [
        ("finished", (), "finished"),
        ("stopped", (), "stopped"),
        ("running", (), "died"),
        ("running", ("17", "17"), "running?"),
        (None, (), "not begun"),
    ],
)
def test_states(tmp_path: Path, outcome: str | None, jobs: tuple[str, ...], state: str) -> None:
    run = load_run(make_run(tmp_path / "run", outcome=outcome, jobs=jobs))
    assert run.state == state
    assert not run.notes


def test_a_run_whose_lock_is_held_is_running(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", outcome="running")
    (path / "run.lock").touch()
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(path / "run.lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert load_run(path).state == "running"
        holder.communicate(timeout=20)
    assert load_run(path).state == "died"
    with (path / "run.lock").open("r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # looking has left it free


def damaged(path: Path, name: str, content: bytes | None) -> Path:
    """A run with a file replaced, or removed."""
    run = make_run(path)
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_bytes(content)
    return run


_OLD = b'{"config": {"algorithm": "a2c", "env": "CartPole-v1", "seed": 1}}'


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("config.json", b'{"config": {"algo', "config.json: damaged"),
        ("config.json", b"[1, 2]", "config.json: damaged"),
        ("config.json", _OLD, "config.json: older"),
        ("config.json", b'{"config": {"algorithm": "dqn"}}', "config.json: unknown"),
        ("metrics.csv", None, "metrics.csv: missing"),
        ("metrics.csv", b"", "metrics.csv: empty"),
        ("metrics.csv", f"{','.join(COLUMNS)}\n1,500".encode(), "metrics.csv: half-written"),
        ("config.json", None, "config.json: missing"),
        ("metrics.csv", b"\x89HDF\r\n\x1a\n", "metrics.csv: damaged"),
        ("metrics.csv", b"iteration,env_steps\n1,500\n", "metrics.csv: older"),
        ("checkpoints/manifest.json", b"{", "manifest.json: damaged"),
        ("checkpoints/manifest.json", b'{"checkpoints": [7]}', "manifest.json: damaged"),
        ("outcome", b"\xff", "outcome: damaged"),
    ],
)
def test_what_is_wrong_is_said_in_a_word_by_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes | None, note: str
) -> None:
    run = damaged(tmp_path / "runs" / "one", name, content)
    assert load_run(run).notes == (note,)
    assert main(["watch", str(run), "--once"]) == 0
    assert note in capsys.readouterr().out
    assert main(["report", str(run), "-o", str(tmp_path / "page.html")]) == 0
    assert note in (tmp_path / "page.html").read_text()
    assert main(["runs", str(tmp_path / "runs")]) == 0
    assert note.rpartition(": ")[2] in capsys.readouterr().out


def test_half_a_line_of_a_run_that_goes_on_is_no_damage(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", outcome="running", jobs=("7",))
    with (path / "metrics.csv").open("a") as file:
        file.write("21,105")
    assert not load_run(path).notes
    (path / "outcome").write_text("stopped\n")
    assert load_run(path).notes == ("metrics.csv: half-written",)


def test_a_run_is_as_far_as_its_newest_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [make_run(tmp_path / f"run{reports}", reports=reports) for reports in (0, 4, 9)]
    for path in paths:
        manifest = path / "checkpoints" / "manifest.json"
        facts = json.loads(manifest.read_text())
        facts["checkpoints"][-1]["env_steps"] = 3000
        manifest.write_text(json.dumps(facts))
    assert not any(load_run(path).notes for path in paths)
    for path, steps in zip(paths, ("3,000", "3,000", "4,500"), strict=True):
        assert main(["watch", str(path), "--once"]) == 0
        assert f"{steps} of 10,000" in capsys.readouterr().out
        assert main(["report", str(path), "-o", str(tmp_path / "page.html")]) == 0
        assert f"{steps} of 10,000" in (tmp_path / "page.html").read_text()
    capsys.readouterr()
    assert main(["runs", str(tmp_path), "--json"]) == 0
    assert sorted(run["env_steps"] for run in json.loads(capsys.readouterr().out)) == [3000, 3000, 4500]


@pytest.mark.parametrize("name", ["episodes.csv", "checkpoints/manifest.json"])
def test_whatever_a_run_writes_tells_when_it_wrote(tmp_path: Path, name: str) -> None:
    path = make_run(tmp_path / "run")
    os.utime(path / name, (3e9, 3e9))
    assert load_run(path).written == 3e9


def test_a_checkpoint_of_another_size_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_run(tmp_path / "run")
    checkpoint = path / "checkpoints" / "step_000000010000.h5"
    for content, is_damaged in ((b"weights", False), (b"weight", True)):
        checkpoint.write_bytes(content)
        assert main(["watch", str(path), "--once"]) == 0
        assert ("damaged (6 of 7 bytes)" in capsys.readouterr().out) == is_damaged
        assert main(["report", str(path), "-o", str(tmp_path / "page.html")]) == 0
        assert ("damaged, of other sizes than listed: step_000000010000." in (tmp_path / "page.html").read_text()) == (
            is_damaged
        )


def test_a_table_of_runs_has_room_in_80_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, env="HalfCheetah-v5")
    paths = [make_run(tmp_path / "runs" / f"a-name-that-is-far-too-long-{seed}", config, scale=1e3) for seed in (1, 2)]
    with (paths[0] / "metrics.csv").open("a") as file:
        file.write("21,10500,half")
    for width, has_algorithm in ((80, False), (120, True)):
        terminal = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=width)
        monkeypatch.setattr("hpcrl.commands.runs.Console", lambda terminal=terminal: terminal)
        assert main(["runs", str(tmp_path)]) == 0
        assert isinstance(terminal.file, io.StringIO)
        lines = terminal.file.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        assert ("algorithm" in lines[0]) == has_algorithm and lines[0].rstrip().endswith("age")
        assert sum("HalfCheetah-v5" in line and "20,000.0" in line for line in lines) == 2


_STRANGE = [None, 7, -1, "x", [], [None], {}, {"a": None}, 1e999, True]


@pytest.mark.parametrize("value", _STRANGE, ids=repr)
def test_values_of_other_types_break_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], value: object) -> None:
    run = make_run(tmp_path / "run")
    facts = json.loads((run / "config.json").read_text())
    strange = dict.fromkeys([*facts, "more"], value) | {"config": dict.fromkeys(facts["config"], value)}
    for one in (strange, facts | {"layout": dict.fromkeys(facts["layout"], value)}):
        (run / "config.json").write_text(json.dumps(one))
        (run / "trace.json").write_text(json.dumps({"traceEvents": value}))
        assert main(["watch", str(run), "--once"]) == 0
        assert main(["report", str(run), "-o", str(tmp_path / "page.html")]) == 0
        assert main(["runs", str(tmp_path), "--json"]) == 0
    assert group_runs([load_run(run)])[0].band("time") is not None
    manifest = {"checkpoints": [{"name": value, "bytes": value, "env_steps": value}], "best": value}
    (run / "checkpoints" / "manifest.json").write_text(json.dumps(manifest))
    assert len(load_run(run).checkpoints) == 1


@pytest.mark.parametrize("command", ["watch", "report", "plot"])
def test_what_is_no_run_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    for folder, reason in (
        (tmp_path, "is no run directory"),
        (tmp_path / "x", "there is no run directory"),
        (tmp_path / "other", "no configuration of a run"),
    ):
        assert main([command, str(folder)]) == 2
        told = capsys.readouterr().err
        assert reason in told and told.count("\n") == 1


def test_a_folder_without_runs_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        assert main(["runs", str(folder)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_runs_lists_all_below_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(60):
        make_run(tmp_path / "sweep" / f"run{number}", reports=4)
    make_run(tmp_path / "died", outcome="running", reports=20)
    (tmp_path / "died" / "metrics.csv").open("a").write("21,10500,half")
    (tmp_path / "link").symlink_to(tmp_path / "died")
    (tmp_path / "submitted").mkdir()
    (tmp_path / "submitted" / "jobs").write_text("12\n")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text("{}")
    os.utime(tmp_path / "submitted" / "jobs", (2e9, 2e9))
    assert len(find_runs(tmp_path)) == 63
    assert main(["runs", str(tmp_path), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert len(listed) == 62
    by_name = {run["name"]: run for run in listed}
    died = by_name["died"]
    assert (died["state"], died["env_steps"], died["best_return"], died["last_return"]) == ("died", 10_000, 20, 20)
    assert (by_name["sweep/run7"]["env_steps"], by_name["sweep/run7"]["total_env_steps"]) == (2000, 10_000)
    newest = listed[-1]
    assert (newest["name"], newest["state"], newest["last_return"]) == ("submitted", "not begun", None)
    assert main(["runs", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert "died" in table and "10k of 10k" in table and "20.0" in table


def test_all_columns_of_metrics_are_read(tmp_path: Path) -> None:
    metrics = load_run(make_run(tmp_path / "run")).metrics
    assert list(metrics.columns) == list(COLUMNS)
    assert len(metrics) == 20 and metrics.last("rollout/return_last_100") == 20
    assert np.isnan(metrics.column("rollout/return_last_100")[:2]).all()
    with pytest.raises(ConfigError):
        load_run(tmp_path)


def test_folders_that_can_not_be_read_are_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, others = make_run(tmp_path / "mine"), make_run(tmp_path / "a-others")
    is_file = Path.is_file

    def refuse(path: Path) -> bool:
        if path.parent == others:
            raise PermissionError(13, "Permission denied")
        return is_file(path)

    # Permissions don't bind the super-user, who may run this.
    monkeypatch.setattr(Path, "is_file", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != others)
    assert find_runs(tmp_path) == [mine]
    assert main(["watch", str(others), "--once"]) == 2
    assert "another user" in capsys.readouterr().err
