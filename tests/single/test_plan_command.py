"""`hpcrl plan` as a user runs it, in this process: measured, saved, read again, drawn, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from hpcrl.commands.main import main
from hpcrl.commands.plan import parse_nodes
from hpcrl.planning import measure
from tests.planning import costs

SIZES = ["--num-envs", "8", "--unroll-length", "4"]


def test_it_measures_predicts_and_is_read_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "_BUDGET_S", 0.02)
    saved = tmp_path / "costs.json"
    words = ["plan", "a2c", *SIZES, "--nodes", "1..4", "--ranks-per-node", "2", "--save", str(saved)]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "between nodes: assumed, give --latency-us and --bandwidth-gbit" in text
    assert "most per core on 4 nodes: --" in text
    facts = json.loads(saved.read_text())
    assert facts["weights_bytes"] == 4 * (2 * (4 * 64 + 64 + 64 * 64 + 64) + 64 * 2 + 2 + 64 + 1)
    assert all(facts[name]["fixed"] + facts[name]["each"] > 0 for name in ("step", "inference", "gradient"))

    doctor = tmp_path / "doctor.json"
    doctor.write_text(json.dumps({"links": [{"name": "net link", "small_s": 1e-5, "large_s": 1e-2}]}))
    picture = tmp_path / "plan.png"
    again = ["plan", "a2c", *SIZES, "--nodes", "1,4", "--ranks-per-node", "2", "--from", str(saved), "--from"]
    assert main([*again, str(doctor), "--simulate", "--json", "--out", str(picture)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["ranks"] for row in found["layouts"]] == [2, 8]
    assert [row["learners"] for row in found["layouts"]] == [1, 4]
    assert found["costs"]["net"]["latency_s"] == 1e-5
    for row in found["layouts"]:
        ratio = row["predicted"]["env_steps_per_s"] / row["simulated"]["env_steps_per_s"]
        assert 0.8 < ratio < 1.25
    assert found["recommended"]["predicted"]["lag_mean"] == 0
    assert picture.read_bytes().startswith(b"\x89PNG")

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main([*again, str(doctor), "--out", "x.png"]) == 2
    assert "--out needs matplotlib: pip install 'hpcrl[plot]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        ("ppo", ["--minibatches", "2", "--normalise-advantages"]),
        ("impala", ["--core", "gru", "--core-size", "8"]),
        ("a3c", ["--frame-stack", "2", "--optimizer", "adam"]),
        ("appo", ["--env", "Pendulum-v1", "--normalise-returns", "--normalise-observations"]),
    ],
)
def test_every_algorithm_can_be_measured(
    algorithm: str, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "_BUDGET_S", 0.01)
    words = ["--nodes", "1,2", "--ranks-per-node", "3", "--envs-per-actor", "2", "--json"]
    assert main(["plan", algorithm, *SIZES, *options, *words]) == 0
    found = json.loads(capsys.readouterr().out)
    for row in found["layouts"]:
        assert row["num_envs"] == 2 * row["actors"]
        assert row["predicted"]["env_steps_per_s"] > 0


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["sac"], "unknown algorithm 'sac'"),
        (["bc", "--nodes", "1"], "hpcrl plan is for runs that act"),
        (["a2c", "--nodes", "0..4"], "--nodes must be like 4, 1..64 or 1,2,3, each from 1 to 4096, got '0..4'"),
        (["a2c", "--nodes", "4..1"], "--nodes must go from fewer to more, got '4..1'"),
        (["a2c", "--nodes", "1", "--ranks-per-node", "0"], "--ranks-per-node must be a whole number of at least 1"),
        (["a2c", "--nodes", "4", "--ranks-per-node", "8"], "--num-envs 16 leaves some of 28 actors"),
        (["a2c", "--nodes", "1", "--ranks-per-node", "4", "--learners-per-node", "3"], "needs an actor for each"),
        (["a2c", "--nodes", "1", "--learners", "1", "--learners-per-node", "1"], "say the same"),
        (["a2c", "--nodes", "1", "--ranks", "4"], "--ranks is decided by --nodes and --ranks-per-node"),
        (["a2c", "--nodes", "1", "--latency-us", "-1"], "--latency-us must be a number of at least 0, got -1"),
        (["a2c", "--nodes", "1", "--from", "missing.json"], "missing.json can't be read as JSON"),
        (["a2c", "--nodes", "1", "--from", "{costs}"], "was measured with --vector None, expected sync"),
        (["a2c", "--nodes", "1", "--from", "{empty}"], "but has no links"),
        ([], "hpcrl plan needs an algorithm"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(
    words: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"{costs}": costs().to_json(), "{empty}": {}}
    for name, data in files.items():
        (tmp_path / name).write_text(json.dumps(data))
    assert main(["plan", *(str(tmp_path / word) if word in files else word for word in words)]) == 2
    said = capsys.readouterr().err.strip()
    assert complaint in said and said.count("\n") == 0


def test_numbers_of_nodes() -> None:
    assert parse_nodes("8") == [8]
    assert parse_nodes("1..8") == [1, 2, 4, 8]
    assert parse_nodes("3..10") == [3, 6, 10]
    assert parse_nodes("4,1,4") == [1, 4]
