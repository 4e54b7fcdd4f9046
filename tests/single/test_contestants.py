"""Benchmarks of games and robots: where time goes by hand, who takes part, and a peer's rate; a stub for peers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import atari, contestants, robots
from benchmarks.contestants import ALONE, BOTH, TWO_AHEAD, Layout, Peer
from benchmarks.settings import Settings
from benchmarks.training import Run

STUB = 'import sys; print("noise"); print(\'{"env_steps_per_s": \' + sys.argv[1] + "}"); print("more noise")'

#: Two iterations after the first, 1000 env steps each; seconds are means over the ranks of a role.
SECONDS = {"actor_acting": 1.0, "actor_inference": 0.5, "actor_transport": 0.1, "actor_waiting": 0.2}
SECONDS |= {"learner_learning": 0.7, "learner_reducing": 0.2, "learner_publishing": 0.1}
SECONDS |= {"learner_inference": 0.5, "learner_transport": 0.3, "learner_waiting": 0.4}


@pytest.fixture
def run() -> Run:
    times = {f"time/{name}_s": seconds for name, seconds in SECONDS.items()}
    rows = [{"env_steps": 1000.0 * number, **times} for number in (1, 2, 3)]
    return Run(rows=rows, episodes=[], spans=[], checkpoint_mb=0.0, unrolls=(), cores=2.0, peak_mb=1.0)


def test_ranks_that_act_or_learn_have_a_clock_each(run: Run) -> None:
    # Two actors and a learner: acting of 2 x 1 s in each iteration of 1000 steps.
    expected = {"acting": 2000, "inference": 1000 + 500, "learning": 1000, "transport": 200 + 300, "waiting": 400 + 400}
    assert contestants.phases(run, TWO_AHEAD) == pytest.approx({f"{name}_us": us for name, us in expected.items()})


@pytest.mark.parametrize("layout", [ALONE, BOTH])
def test_a_rank_that_does_both_has_one_clock(run: Run, layout: Layout) -> None:
    expected = {"acting": 1000, "inference": 500, "learning": 1000, "transport": 100, "waiting": 200}
    expected = {f"{name}_us": layout.ranks * us for name, us in expected.items()}
    assert contestants.phases(run, layout) == pytest.approx(expected)


def test_the_rate_of_a_peer_is_the_line_that_it_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stub.py").write_text(STUB)
    monkeypatch.setattr(contestants, "_SCRIPTS", tmp_path)
    measured = Peer("json", "stub.py", 16, ()).measure(sys.executable, Settings(seconds=0.5), 0)
    assert measured["env_steps_per_s"] == 16


def test_peers_take_part_where_an_interpreter_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not atari.table(Settings()).against
    here = {"SB3": Peer("json", "sb3.py", 16, ()), "Absent": Peer("no_such_module", "absent.py", 16, ())}
    monkeypatch.setattr(atari, "PEERS", here)
    table = atari.table(Settings(peers_python=(sys.executable,)))
    assert list(table.against) == ["SB3"]
    assert "SB3" in table.workloads and "Absent" not in table.workloads


@pytest.mark.parametrize("kind", ["hpcrl", "gymnasium"])
def test_robots_step_alone(kind: str) -> None:
    pytest.importorskip("mujoco")
    assert robots.rate(kind, 2, 0.05) > 0
