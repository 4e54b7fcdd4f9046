"""`hpcrl watch`: a run as lines of text, and a tiny real run."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from hpcrl.commands.main import main
from hpcrl.viewing.actors import actor_steps, read_episodes, spread_of
from hpcrl.viewing.groups import group_runs
from hpcrl.viewing.measures import seconds_to_go, time_split
from hpcrl.viewing.run import load_run
from hpcrl.viewing.screen import Glyphs, bar, screen, sparkline
from tests.commands import hpcrl
from tests.viewed import CONFIG, make_run

_ASCII = Glyphs.of("ascii")


def shown(path: Path, width: int = 80, now: float = 0.0) -> str:
    lines = screen(load_run(path), width, _ASCII, now)
    assert max(map(len, lines)) <= width
    assert all(line.isascii() for line in lines)
    return "\n".join(lines)


def test_sparkline_and_bar() -> None:
    assert sparkline(np.array([0.0, 1, 2, np.nan, 7]), 80, _ASCII.levels) == "_.- @"
    assert sparkline(np.arange(800.0), 8, _ASCII.levels) == _ASCII.levels
    assert sparkline(np.array([3.0, 3.0]), 8, "abc") == "bb"
    assert sparkline(np.array([np.nan]), 8, _ASCII.levels) == ""
    assert sparkline(np.empty(0), 8, _ASCII.levels) == ""
    assert [bar(share, 10, "#") for share in (-1, 0, 0.5, 2)] == ["", "", "#####", "##########"]


def test_a_running_run(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", outcome="running", jobs=("41",), reports=10)
    text = shown(path, now=load_run(path).written + 120)
    assert text.startswith("run: running?\na2c on CartPole-v1, seed 3\n")
    for expected in (
        "5,000 of 10,000 (50%)",
        "0:00:20 trained, 0:00:20 to go, last wrote 2 min ago",
        "10.0, best 10.0 (return of the last 100 episodes)",
        "250 over the last 10 reports, median 250",
        "0.50 updates (0 to 1), 5 unrolls dropped",
        "3; nodes: 1, learners: 1",
        "step_000000005000, 2 min ago, score 18.5",
        "0, job 41",
    ):
        assert expected in text
    assert re.search(r"acting +50% #+\n", text) and re.search(r"waiting +25% #+ +60% #+", text)


def test_a_requeued_run_tells_its_restarts(tmp_path: Path) -> None:
    resumes = [{"env_steps": 1000 * number, "begun_anew": 0} for number in range(1, 8)]
    text = shown(make_run(tmp_path / "run", jobs=("41", "41"), resumes=resumes))
    assert "7 (at env steps ..., 3,000; 4,000; 5,000; 6,000; 7,000), job 41" in text


def test_time_split_is_of_the_wall_time(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "run"))
    expected = {
        "actor": {"acting": 0.5, "waiting": 0.25, "other": 0.25},
        "learner": {"learning": 0.2, "waiting": 0.6, "other": 0.2},
    }
    for newest in (None, 1, 5, 100):
        split = time_split(run, newest)
        assert {role: pytest.approx(shares) for role, shares in split.items()} == expected
    assert not time_split(load_run(make_run(tmp_path / "none", reports=0)))


def test_ranks_with_both_roles_have_one_time_split(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run")
    facts = json.loads((path / "config.json").read_text())
    facts["layout"] |= {"learners": [1, 2]}
    (path / "config.json").write_text(json.dumps(facts))
    (role, shares), *others = time_split(load_run(path)).items()
    assert role == "actor and learner" and not others
    # As both roles are of the same ranks, their waiting is one and the same.
    assert shares == pytest.approx({"acting": 1 / 2.6, "learning": 0.4 / 2.6, "waiting": 1.2 / 2.6})


def test_a_low_terminal_leaves_out_what_matters_least(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run")
    (path / "metrics.csv").open("a").write("21,10500,half")
    lines = shown(path).splitlines()
    assert lines[2].split() == ["note", "metrics.csv:", "half-written"]
    run, whole = load_run(path), len(lines)
    for height, has_curves in ((whole, True), (whole - 3, False), (whole - 6, False), (15, False)):
        low = screen(run, 80, _ASCII, 0.0, height)
        assert len(low) == height
        assert [line.split()[0] for line in low[-3:]] == ["ranks", "checkpoint", "restarts"]
        assert ("@" in "\n".join(low)) == has_curves


def test_before_the_first_report_nothing_is_told_of_reports(tmp_path: Path) -> None:
    text = shown(make_run(tmp_path / "run", outcome="running", reports=0))
    assert "no report yet, last wrote" in text and "0 reports" not in text and "best" not in text
    assert "over the last 1 report, median" in shown(make_run(tmp_path / "one", reports=1))


def test_only_a_run_that_goes_on_has_time_to_go(tmp_path: Path) -> None:
    assert np.isnan(seconds_to_go(load_run(make_run(tmp_path / "died", outcome="running", reports=5))))
    run = load_run(make_run(tmp_path / "run", outcome="running", jobs=("1",), reports=1))
    assert seconds_to_go(run) == pytest.approx(9500 / 250)


def test_a_thousand_ranks_are_summarised(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, num_envs=3996)
    path = make_run(tmp_path / "run", config, ranks=1000, slowest=702)
    run = load_run(path)
    steps = actor_steps(run, read_episodes(run, (), 1 << 21))
    assert len(steps) == 999 and set(steps.values()) == {150.0, 300.0}
    spread = spread_of(steps, run)
    assert spread is not None
    assert (spread.least, spread.median, spread.most, spread.slowest, spread.host) == (150, 300, 300, 702, "node175")
    text = shown(path)
    assert "min 150, median 300, max 300; slowest: rank 702 on node175" in text
    assert "1,000; nodes: 250, learners: 1" in text
    assert text.count("\n") < 40


def test_names_can_not_steer_the_terminal(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, env="Cart\x1b[2JPole\nv1")
    assert "Cart?[2JPole?v1" in shown(make_run(tmp_path / "run", config))


def test_a_narrow_terminal(tmp_path: Path) -> None:
    assert "~" in shown(make_run(tmp_path / "run"), width=40)


@pytest.mark.parametrize("every", ["0", "-1", "nan"])
def test_every_must_be_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str], every: str) -> None:
    assert main(["watch", str(make_run(tmp_path / "run")), "--every", every]) == 2
    assert "--every" in capsys.readouterr().err


def test_following_ends_with_the_run_or_with_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_run(tmp_path / "run", outcome="running", jobs=("1",))
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80)
    monkeypatch.setattr("hpcrl.commands.watch.Console", lambda: terminal)

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    def finish(seconds: float) -> None:
        assert seconds == 7
        (path / "outcome").write_text("finished\n")

    for during in (interrupt, finish):
        monkeypatch.setattr("hpcrl.commands.watch.time.sleep", during)
        assert main(["watch", str(path), "--every", "7"]) == 0
    assert isinstance(terminal.file, io.StringIO)
    shown_states = re.findall(r"run: (\S+)", terminal.file.getvalue())
    assert {*shown_states} == {"running?", "finished"} and shown_states[-1] == "finished"


def test_a_real_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "a2c", "--env", "CartPole-v1", "--total-env-steps", "1024", "--num-iterations", "2"]
    words += ["--num-envs", "8", "--no-tensorboard", "--run-dir", str(tmp_path / "run"), "--profile"]
    assert hpcrl(*words).returncode == 0
    run = load_run(tmp_path / "run")
    assert (run.state, run.notes, len(run.metrics)) == ("finished", (), 2)
    assert main(["watch", str(tmp_path / "run"), "--once"]) == 0
    assert "1,024 of 1,024 (100%)" in capsys.readouterr().out
    assert main(["runs", str(tmp_path)]) == 0
    band = group_runs([run])[0].band("time")
    assert band is not None and len(band.x) == 2
    assert main(["report", str(tmp_path / "run"), "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "episodes by return" in page and "step_000000001024" in page and 'class="warn">config' not in page
