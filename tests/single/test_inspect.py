"""`hpcrl inspect` tells what files hold; those made to harm end the process that reads them, not ours."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hpcrl.commands.main import main
from hpcrl.storage import confined
from hpcrl.storage.checkpoints import CheckpointStore, save_checkpoint
from hpcrl.storage.confined import inspect_files
from hpcrl.storage.inspection import describe_shard
from hpcrl.storage.shard_reader import Shard
from tests.recordings import make_shard
from tests.single.test_hostile_shards import no_about
from tests.single.test_segments import table_of

ARRAYS = {"weights/a": np.arange(6, dtype=np.float32).reshape(2, 3), "weights/b": np.ones(2), "rng/seed": np.ones(1)}
ATTRIBUTES = {
    "config": json.dumps({"algorithm": "ppo", "env": "CartPole-v1"}),
    "env_steps": 4096,
    "learner_updates": 12,
}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save("step_000000004096", ARRAYS, ATTRIBUTES, score=21.5)
    make_shard(tmp_path / "trajectories")
    return tmp_path


def inspect_json(path: Path, capsys: pytest.CaptureFixture[str], status: int = 0) -> dict[str, Any]:
    assert main(["inspect", str(path), "--json"]) == status
    return json.loads(capsys.readouterr().out)


def test_a_checkpoint(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run_dir / "checkpoints/step_000000004096.h5"
    facts = inspect_json(path, capsys)
    expected = {"kind": "checkpoint", "env_steps": 4096, "learner_updates": 12, "algorithm": "ppo", "score": 21.5}
    assert facts.items() >= (expected | {"env": "CartPole-v1", "manifest": "agrees"}).items()
    assert facts["groups"]["weights"] == {"arrays": 2, "numbers": 8, "bytes": 40}
    weights = {array["name"]: (array["shape"], array["dtype"], array["bytes"]) for array in facts["arrays"]}
    assert weights["weights/a"] == ([2, 3], "float32", 24)
    assert main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("4,096 env steps", "ppo on CartPole-v1", "21.5", "agrees", "[2, 3]"))


def test_checkpoints_that_no_manifest_vouches_for(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(run_dir / "mine.h5", ARRAYS, ATTRIBUTES)
    assert inspect_json(run_dir / "mine.h5", capsys)["manifest"] == "none"
    save_checkpoint(run_dir / "checkpoints/mine.h5", ARRAYS, ATTRIBUTES)
    assert inspect_json(run_dir / "checkpoints/mine.h5", capsys)["manifest"] == "does not list it"
    # Whole, but another one.
    save_checkpoint(run_dir / "checkpoints/step_000000004096.h5", ARRAYS, ATTRIBUTES | {"env_steps": 1})
    damaged = inspect_json(run_dir / "checkpoints/step_000000004096.h5", capsys, status=1)
    assert "sha256 is not the manifest's" in damaged["error"]


@pytest.mark.parametrize("seed", range(3))
def test_a_shard(tmp_path: Path, seed: int) -> None:
    path = make_shard(tmp_path, seed)
    facts, shard = describe_shard(path), Shard(path)
    assert (facts["kind"], facts["actor"], facts["number"]) == ("training", 3, 0)
    assert (facts["rows"], facts["environments"], facts["unroll_length"]) == (60, 3, 16)
    parts = table_of(shard)
    assert facts["env_steps"] == sum(end - first for _, _, first, end, *_ in parts) < 180
    kinds = [(before == 0, over) for *_, before, _, over in parts]
    names = {"whole": (True, True), "begun": (True, False), "ended": (False, True), "neither": (False, False)}
    assert facts["episodes"] == {name: kinds.count(kind) for name, kind in names.items()}
    returns = [total for *_, total, over in parts if over]
    assert facts["returns"] == {"mean": pytest.approx(np.mean(returns)), "min": min(returns), "max": max(returns)}
    assert facts["policy_versions"] == {
        "first": 0,
        "last": (first := shard.unrolls["first_row"][-1] // 4),
        "lag": first,
    }
    arrays = {array["name"]: array for array in facts["arrays"]}
    assert arrays.keys() > shard.series.keys()
    for name, series in shard.series.items():
        assert arrays[name]["shape"] == list(series.shape)
        assert (arrays[name]["bytes"], arrays[name]["stored_bytes"]) == (series.nbytes, series.stored_bytes)
    assert arrays["reward"]["filters"] == ["shuffle", "gzip", "fletcher32"]


def test_what_a_person_sees_of_a_shard(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run_dir / "trajectories/actor00003-0000.h5"
    assert main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out
    words = ("training, actor 3", "60 rows of 3 environments", "hpcrl 1.0", "checksums: all hold", "finals/observation")
    assert all(word in said for word in words)


def test_a_run_directory_and_what_a_kill_or_a_resume_left(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = run_dir / "trajectories"
    (shards / "actor00003-0001.h5.discarded").write_bytes(b"of another future")
    (shards / ".actor00003-0002.h5.tmp-77").write_bytes(b"half")
    for folder in (run_dir, shards):
        assert main(["inspect", str(folder)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert sum("actor00003-0001.h5.discarded: discarded" in line for line in lines) == 1
        assert sum(".actor00003-0002.h5.tmp-77: unfinished" in line for line in lines) == 1
        assert lines[-1] == "total: nothing damaged"
    facts = inspect_json(run_dir, capsys)
    assert [each["kind"] for each in facts["files"]] == ["checkpoint", "training"]
    assert facts["totals"]["training"]["env_steps"] == facts["files"][1]["env_steps"]
    assert len(facts["discarded"]) == len(facts["unfinished"]) == 1


def test_damage_is_named_and_the_rest_is_told(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = run_dir / "trajectories/actor00003-0000.h5"
    with h5py.File(shard, "r+") as file:
        no_about(file, shard)
    assert main(["inspect", str(run_dir)]) == 1
    said = capsys.readouterr().out
    assert "actor00003-0000.h5: DAMAGED" in said
    assert "total: 1 checkpoint" in said
    assert "total: 1 damaged file" in said
    assert main(["inspect", str(shard)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("hpcrl: ") and captured.err.count("\n") == 1


@pytest.mark.parametrize("name", ["nowhere", "nowhere.h5", "empty"])
def test_there_is_no_such_thing(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["inspect", str(tmp_path / name)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_pipe_and_a_text_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe.h5")
    (tmp_path / "text.h5").write_text("not HDF5 at all")
    for name in ("pipe.h5", "text.h5"):
        assert main(["inspect", str(tmp_path / name)]) == 1
        assert name in capsys.readouterr().err


def test_a_terminal_obeys_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.dumps({"algorithm": "\x1b[2J", "env": "[bold]\u202e" + "x" * 100_000})
    save_checkpoint(tmp_path / "x\x1b[31m.h5", ARRAYS, ATTRIBUTES | {"config": config})
    for path in (tmp_path, tmp_path / "x\x1b[31m.h5"):
        assert main(["inspect", str(path)]) == 0
        said = capsys.readouterr().out
        assert said.replace("\n", "").isprintable()
        assert len(said) < 10_000
    assert "[bold]" in said


#: What the reader does at a file of that name, and what is to be said of it.
CALAMITIES: dict[str, tuple[str, str]] = {
    "whole": ("pass", ""),
    "crashes": ("os.kill(os.getpid(), signal.SIGSEGV)", "ended by SIGSEGV"),
    "leaves": ("os._exit(3)", "left with status 3"),
    "hangs": ("time.sleep(1000)", "no answer within 2 s"),
    "computes": ("while True: pass", "of CPU time"),
    "allocates": ("bytearray(1 << 40)", "GiB of memory"),
    "fills": ("held = [bytes([n % 256]) * (1 << 22) for n in range(1 << 20)]", "GiB of memory"),
    "whole too": ("pass", ""),
}
READER = """
import json, os, signal, sys, time
from hpcrl.storage import inspection
does = json.loads(os.environ["DOES"])
inspection.cpu_seconds = lambda path: 0.5
inspection.MEMORY_BYTES = 1 << 28
real = inspection.describe_checkpoint
def describe(path):
    exec(does[path.stem])
    return real(path)
inspection.describe_checkpoint = describe
inspection.main()
"""


def test_a_reader_that_ends_badly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file is named, and those before and after are told all the same."""
    paths = [tmp_path / f"{name}.h5" for name in CALAMITIES]
    for path in paths:
        save_checkpoint(path, ARRAYS, ATTRIBUTES)
    monkeypatch.setenv("DOES", json.dumps({name: does for name, (does, _) in CALAMITIES.items()}))
    real: Any = confined.subprocess.Popen
    started = []

    def start(command: list[str], **words: Any) -> Any:
        started.append(real([command[0], "-c", READER], **words))
        return started[-1]

    monkeypatch.setattr(confined.subprocess, "Popen", start)
    monkeypatch.setattr(confined, "cpu_seconds", lambda path: 0.5 if path.stem == "hangs" else 15.0)
    for path, facts, (_, expected) in zip(paths, inspect_files(paths), CALAMITIES.values(), strict=True):
        assert facts["path"] == str(path)
        if path.stem.startswith("whole"):
            assert facts["env_steps"] == 4096
        else:
            assert path.name in facts["error"]
            assert expected in facts["error"]
    assert len(started) == 5
    assert all(process.returncode is not None for process in started)


def test_the_reader_knows_neither_mpi_nor_torch() -> None:
    from tests.single.test_hostile_files import run_python

    done = run_python("import sys, hpcrl.storage.inspection; print({'torch', 'mpi4py'} & set(sys.modules))")
    assert done.stdout == "set()\n", done.stderr
