"""Comparisons with other libraries: scripts' clocks, times to a goal, rounds that go on, tables; stubs for all."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import atari, cartpole, contestants, peers_table, robots, time_to_solve
from benchmarks.children import CommandFailed
from benchmarks.contestants import BOTH, Peer
from benchmarks.peer_results import Section, markdown
from benchmarks.peers import rates
from benchmarks.settings import Settings
from benchmarks.tables import Measurement
from benchmarks.time_to_solve import Problem, solved
from benchmarks.turns import Line, Turn, read
from hpcrl.errors import ConfigError

#: Stands for a peer's script: says what it was told, and takes its goal for what it reaches in as many seconds.
PEER = """
import json, sys
if "breaks" in sys.argv:
    sys.exit("its learner raised")
print("noise")
if "silent" not in sys.argv:
    goal = float(sys.argv[sys.argv.index("--goal") + 1]) if "--goal" in sys.argv else None
    line = {"env_steps": int(sys.argv[1]), "env_steps_per_s": int(sys.argv[1]) / float(sys.argv[2])}
    if goal is not None:
        seed = int(sys.argv[sys.argv.index("--seed") + 1])
        line |= {"reached": seed % 2, "first_step_s": 1.5, "return_last_100": goal - 1 + seed % 2}
        line |= {"reached_s": 4.0} if seed % 2 else {}
    print(json.dumps(line))
print("more noise")
"""

#: Stands for `hpcrl`: an iteration that reaches what it is told to stop at, but for seed 2; seed 3 makes none.
OURS = """
import os, sys, time
told = dict(zip(sys.argv, sys.argv[1:]))
goal = float(next(word for word in sys.argv if word.startswith("--stop-return=")).partition("=")[2])
os.mkdir(told["--run-dir"])
with open(told["--run-dir"] + "/metrics.csv", "w") as file:
    file.write("env_steps,time/elapsed_s,rollout/return_last_100\\n")
    if told["--seed"] != "3":
        file.write(f"100,0.01,\\n200,0.02,{goal - (told['--seed'] == '2')}\\n")
"""

STUB = Peer("json", "stub.py", 16, ("--slow",), "none to speak of")


@pytest.fixture(autouse=True)
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "stub.py").write_text(PEER)
    (tmp_path / "ours.py").write_text(OURS)
    monkeypatch.setattr(contestants, "_SCRIPTS", tmp_path)
    return tmp_path


# What scripts say


class Clock:
    """In place of `time.perf_counter`; the process is 5 s old at 0."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(rates.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(rates, "_age_s", lambda: 5.0)


def said(progress: rates.Progress, capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    progress.print()
    return json.loads(capsys.readouterr().out)


def test_a_rate_is_the_median_of_tenths_after_the_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, progress = Clock(monkeypatch), rates.Progress(10.5)
    progress.begin()
    for second, env_steps in enumerate([0, 5, 10, 20, 30, 40, 50, 60, 70, 80, 80]):
        clock.now = float(second)
        assert not progress.is_over
        progress.add(env_steps)
    clock.now = 12.0
    assert progress.is_over and said(progress, capsys) == {"env_steps": 80, "env_steps_per_s": 10}


def test_counts_in_large_steps_have_the_rate_between_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, progress = Clock(monkeypatch), rates.Progress(10.0)
    progress.begin()
    for second in range(41):
        clock.now = float(second)
        progress.add(1000 * (second // 8))
    assert said(progress, capsys) == {"env_steps": 5000, "env_steps_per_s": pytest.approx(125)}


@pytest.mark.parametrize(("at", "reached"), [(3.0, 1), (16.0, 0)])
def test_a_goal_counts_until_the_time_since_the_start_of_the_process_is_over(
    at: float, reached: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, progress = Clock(monkeypatch), rates.Progress(20.0, goal=100.0)
    clock.now = 1.0
    progress.begin()
    progress.add(0)
    clock.now = 2.0
    progress.add(50, 99.0)
    assert not progress.is_over
    clock.now = at
    progress.add(70, 101.0)
    assert progress.is_over
    line = said(progress, capsys)
    assert (line["reached"], line["first_step_s"], line["return_last_100"]) == (reached, 6, 101)
    assert line.get("reached_s") == (at + 5 if reached else None) and line["env_steps"] == 70


def test_a_mean_takes_a_hundred_episodes() -> None:
    assert rates.last_100([1.0] * 99) is None
    assert rates.last_100([9.0, *[1.0] * 50, *[3.0] * 50]) == 2


# Peers and ours


def test_a_peer_is_told_the_seed_of_the_round_and_says_its_rate() -> None:
    measured = STUB.measure(sys.executable, Settings(seconds=0.5), 0)
    assert (measured["env_steps"], measured["env_steps_per_s"]) == (16, 32)


def test_a_peer_that_reaches_the_goal_says_when() -> None:
    found = STUB.solve(sys.executable, 475.0, 9.0, 0)
    assert (found["reached"], found["solved_s"], found["from_start_s"], found["env_steps"]) == (1, 2.5, 4, 16)
    never = STUB.solve(sys.executable, 475.0, 9.0, 1)
    assert (never["reached"], never["return_last_100"]) == (0, 474) and "solved_s" not in never


@pytest.mark.parametrize(("word", "why"), [("breaks", "its learner raised"), ("silent", "printed no result")])
def test_a_peer_that_breaks_says_why(word: str, why: str) -> None:
    with pytest.raises(CommandFailed, match=why):
        STUB._replace(rest=(word,)).solve(sys.executable, 475.0, 9.0, 0)


def test_ours_are_there_once_the_last_row_is(scripts: Path) -> None:
    start = [sys.executable, "-S", str(scripts / "ours.py")]
    found = time_to_solve.solve("a2c", (), 475.0, 9.0, start, 0)
    assert (found["reached"], found["solved_s"], found["env_steps"]) == (1, 0.02, 200) and found["from_start_s"] < 9
    assert time_to_solve.solve("a2c", (), 475.0, 9.0, start, 1)["reached"] == 0
    with pytest.raises(CommandFailed, match="no iteration was over within 9 s"):
        time_to_solve.solve("a2c", (), 475.0, 9.0, start, 2)


def test_what_comes_too_late_is_not_reached() -> None:
    last = {"env_steps": 7.0, "time/elapsed_s": 2.0, "rollout/return_last_100": 475.0}
    assert solved(last, 9.0, 475.0, 9.0) == {
        **{"reached": 1, "env_steps": 7, "return_last_100": 475, "solved_s": 2, "from_start_s": 9}
    }
    assert solved(last, 9.5, 475.0, 9.0) == {"reached": 0, "env_steps": 7, "return_last_100": 475}
    assert solved({"env_steps": 7.0}, 1.0, 475.0, 9.0) == {"reached": 0, "env_steps": 7}


def test_the_best_of_ours_are_workloads_of_their_tables() -> None:
    for module in (cartpole, atari, robots):
        assert set(module.BEST) <= set(module.table(Settings()).workloads)
    section, turns = peers_table.rates("atari", Settings())
    assert [turn.workload for turn in turns] == atari.BEST and section.absent == list(atari.PEERS)
    assert {turn.facts["layout"] for turn in turns} == {"1 learner + 1 actor", "2 ranks that do both"}


# Rounds


FACTS = {"layout": "any", "peer": {"json": "1.0"}}


class Runs:
    """Two workloads, ours at 30 and 40 env steps/s and a peer at 10 that fails in the second round; counts them."""

    def __init__(self, length: float = 1.0) -> None:
        self.made: list[tuple[str, int]] = []
        self.works = False
        section = Section("table", "A table", ["ours"], {"peer": STUB}, ["absent"])
        turns = [Turn("table", name, self._measure(name), {"s": length}, FACTS, 60.0) for name in ("ours", "peer")]
        self.comparisons = [(section, turns)]

    def _measure(self, name: str) -> Callable[[int], Measurement]:
        def measure(number: int) -> Measurement:
            self.made.append((name, number))
            if name == "peer" and number == 1 and not self.works:
                raise CommandFailed("python stub.py: status 1\nno | memory")
            rate = 10.0 if name == "peer" else 30.0 + 10 * number
            return {"env_steps_per_s": rate, "cores": 1.0, "peak_mb": 7.0}

        return measure


def test_an_interrupted_comparison_goes_on_where_it_was(scripts: Path) -> None:
    out = scripts / "results" / "peers.md"
    first, second = Runs(), Runs()
    assert peers_table.compare(first.comparisons, 1, out) == 0
    assert first.made == [("ours", 0), ("peer", 0)]
    assert peers_table.compare(second.comparisons, 2, out) == 1
    assert second.made == [("ours", 1), ("peer", 1)]
    lines = read(out.with_suffix(".jsonl"), second.comparisons[0][1])
    assert [(line["workload"], line["round"], "failure" in line) for line in lines] == [
        *[("ours", 0, False), ("peer", 0, False)],
        *[("ours", 1, False), ("peer", 1, True)],
    ]
    assert all({"machine", "versions", "git_commit", "layout"} <= line.keys() for line in lines)
    assert "| peer | 10 | 1.0 | 7 | one core | 1 of 2 |" in out.read_text()
    assert "| peer | 3.00 |" in out.read_text()
    third = Runs()
    assert peers_table.compare(third.comparisons, 2, out) == 1 and third.made == []
    third.works = True
    assert peers_table.compare(third.comparisons, 2, out, again=True) == 0 and third.made == [("peer", 1)]
    assert "| peer | 3.50 (3.00 - 4.00) |" in out.read_text()


def test_no_run_is_started_that_would_end_too_late(scripts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, out = Runs(), scripts / "peers.md"
    assert peers_table.compare(runs.comparisons, 3, out, minutes=0.9) == 0
    assert runs.made == [] and "Nothing was measured" in out.read_text()
    said = capsys.readouterr()
    assert "6 of 6 runs to make" in said.out and "about 6 min, of which 0.9 min are given" in said.out
    assert "the same command goes on" in said.err


def test_whatever_breaks_is_a_row_and_the_others_take_their_turns(scripts: Path) -> None:
    runs = Runs()
    section, (ours, peer) = runs.comparisons[0]
    short = Turn("table", "ours", lambda number: {"env_steps_per_s": [][number]}, ours.length, FACTS, 1.0)
    assert peers_table.compare([(section, [short, peer])], 1, scripts / "peers.md") == 1
    assert "| ours | failed: list index out of range |" in (scripts / "peers.md").read_text()
    assert runs.made == [("peer", 0)]


def test_interpreters_are_found_from_any_folder_and_links_stay_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "venv" / "python"
    link.parent.mkdir()
    link.symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    assert contestants.interpreters(["venv/python"]) == [str(link)]


def test_an_interpreter_that_is_not_there_is_refused(scripts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    absent = str(scripts / "python")
    assert peers_table.main(["--peers-python", absent, "-o", str(scripts / "peers.md")]) == 2
    assert time_to_solve.main(["--peers-python", absent]) == 2
    assert capsys.readouterr().err.count("--peers-python must name interpreters") == 2


def test_runs_of_another_length_and_torn_lines_are_refused(scripts: Path) -> None:
    out = scripts / "peers.md"
    peers_table.compare(Runs().comparisons, 1, out)
    with pytest.raises(ConfigError, match=r"peers.jsonl, line 1: .*name another file"):
        peers_table.compare(Runs(length=2.0).comparisons, 1, out)
    file = out.with_suffix(".jsonl")
    file.write_text(file.read_text()[:-20])
    with pytest.raises(ConfigError, match="line 2"):
        peers_table.compare(Runs().comparisons, 1, out)


def test_a_problem_is_compared_from_end_to_end(
    scripts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peers = {"Stub": STUB, "Broken": STUB._replace(rest=("breaks",)), "Absent": STUB._replace(module="no_such_module")}
    problem = Problem("Stubs to 5", 5.0, 9.0, {"a2c": ("a2c", (), BOTH)}, peers)
    monkeypatch.setitem(time_to_solve.PROBLEMS, "stubs", problem)
    start = [sys.executable, "-S", str(scripts / "ours.py")]
    comparison = time_to_solve.comparison("stubs", Settings(peers_python=[sys.executable]), None, start)
    assert peers_table.compare([comparison], 1, scripts / "peers.md") == 1
    text = (scripts / "peers.md").read_text()
    assert "## Stubs to 5, within 9 s" in text and "| a2c | 1 of 1 |" in text
    assert "| Stub | 1 of 1 | 4.0 | 2.5 | 16 |" in text and "| Stub | 125.00 |" in text
    assert (
        "| Broken | 0 of 1 | failed: status 1: its learner raised |" in text and "- Not installed here: Absent." in text
    )
    assert "): none to speak of." in text


# Tables by hand


def line(workload: str, number: int, **numbers: Any) -> Line:
    return {
        **{
            "table": "t",
            "workload": workload,
            "round": number,
            "length": {"limit_s": 7.0},
            "started": f"{number}",
            "git_commit": "abc",
        },
        **{"machine": {"cpu": "a CPU", "cores": 2, "load": 0.5}, "versions": {"python": "3", "torch": "2"}},
        **{"cores": 2.0, "peak_mb": 100.0, **FACTS, **numbers},
    }


def times(workload: str, number: int, seconds: float) -> Line:
    if math.isinf(seconds):
        return line(workload, number, reached=0, env_steps=9)
    return line(workload, number, reached=1, solved_s=seconds, from_start_s=seconds + 1, env_steps=10 * seconds)


def test_what_is_not_reached_takes_for_ever() -> None:
    never = math.inf
    lines = [times("ours", number, seconds) for number, seconds in enumerate([1.0, 2.0, never, never])]
    lines += [times("peer", number, seconds) for number, seconds in enumerate([4.0, never, 5.0, never])]
    text = markdown(lines, [Section("t", "T", ["ours"], {"peer": STUB}, [], 475.0)])
    reached = "not reached (1.0 - not reached) | not reached (10 - not reached)"
    assert f"| ours | 2 of 4 | not reached (2.0 - not reached) | {reached} | 2.0 | 100 |" in text
    # 4 / 1; never; 0, as the peer alone is there; no ratio where neither is.
    assert "| s from the first step, theirs to ours | ours |" in text
    assert "| peer | 4.00 (0.00 - not reached) |" in text
    assert "| peer | 2.50 (0.00 - not reached) |" in text
    assert "    python -m benchmarks.peers_table --only t --rounds 4 --time-limit 7 --peers-python PYTHON...\n" in text
    assert "a CPU, 2 cores, load 0.5; hpcrl abc; Python 3, torch 2; 4 rounds, 0 to 3." in text


def test_what_binds_ours_is_their_longest_phase() -> None:
    phases = {"acting_us": 5.0, "inference_us": 1.0, "learning_us": 10.0, "transport_us": 2.0, "waiting_us": 2.0}
    lines = [
        line("ours", 0, env_steps_per_s=5000.0, **phases),
        line("peer", 0, failure="python x.py: not over within 9 s\nan Error | x\nlast line\n\n"),
    ]
    text = markdown(lines, [Section("t", "T", ["ours"], {"peer": STUB}, [])])
    assert "| ours | 5,000 | 2.0 | 100 | learning (50 %) | 1 of 1 |" in text
    assert (
        "| peer | failed: not over within 9 s: an Error / x |  |  |  | 0 of 1 |" in text
        and "ours to theirs" not in text
    )
