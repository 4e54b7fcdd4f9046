"""The doctor tries a folder for real, says what is wrong with it, and leaves nothing behind."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from hpcrl.doctor import files
from hpcrl.doctor.files import FolderFacts, judge_folder, judge_hdf5, probing
from hpcrl.doctor.finding import Level
from hpcrl.doctor.nodes import see_file
from hpcrl.doctor.report import write_json
from hpcrl.errors import CheckpointError


def _probe(path: Path) -> FolderFacts:
    with probing(path) as (facts, _):
        return facts


def test_a_good_folder_is_fine_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine").touch()
    for path in (tmp_path / "here", tmp_path / "not" / "yet" / "here"):
        with probing(path) as (facts, marker):
            assert marker is not None
            assert see_file(marker, str(marker)) == ""
            assert facts.path == str(path)
        assert judge_folder(facts).level == Level.OK
        assert judge_hdf5(facts, None).level == Level.OK
        assert f"HDF5 {facts.hdf5} reads back" in judge_hdf5(facts, None).says
    assert [str(found.relative_to(tmp_path)) for found in sorted(tmp_path.rglob("*"))] == ["here", "here/mine"]


def test_a_folder_below_a_file_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with probing(tmp_path / "file" / "runs") as (facts, marker):
        assert marker is None
    found = judge_folder(facts)
    assert found.level == Level.WRONG
    assert f"{tmp_path}/file/runs can't be written: Not a directory" in found.says
    assert "--run-dir" in found.do
    assert judge_hdf5(facts, None).level == Level.NOTE


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_folder_that_refuses_a_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.tempfile, "mkdtemp", refuse)
    found = judge_folder(_probe(tmp_path / "a" / "b"))
    assert (found.level, os.strerror(number) in found.says) == (Level.WRONG, True)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(("number", "level"), [(errno.ENOLCK, Level.NOTE), (errno.EIO, Level.WRONG)])
def test_a_folder_without_locks_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, level: Level
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    found = judge_folder(_probe(tmp_path))
    assert (found.level, "lock" in found.says) == (level, True)


def test_steps_that_fail_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_off(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def damage(path: Path) -> None:
        raise CheckpointError(f"{path} can't be read as a checkpoint: bad checksum.")

    with monkeypatch.context() as planted:
        planted.setattr(files, "write_durably", break_off)
        found = judge_folder(_probe(tmp_path))
        assert (found.level, "can't replace a file durably" in found.says) == (Level.WRONG, True)
    with monkeypatch.context() as planted:
        planted.setattr(files, "read_arrays", damage)
        facts = _probe(tmp_path)
        found = judge_hdf5(facts, "TRUE")
        assert (found.level, "bad checksum" in found.says) == (Level.WRONG, True)
        assert "HDF5_USE_FILE_LOCKING=TRUE" in found.says
        assert judge_folder(facts).level == Level.OK
    assert not list(tmp_path.iterdir())


def test_space_is_judged() -> None:
    facts = FolderFacts("/runs", free_bytes=1 << 40, free_files=10)
    assert judge_folder(facts).level == Level.OK
    assert judge_folder(facts._replace(free_bytes=1 << 29)).level == Level.NOTE
    assert judge_folder(facts._replace(free_bytes=1 << 20)).level == Level.WRONG
    assert judge_folder(facts._replace(free_files=0)).level == Level.WRONG
    assert judge_folder(facts._replace(free_files=None)).level == Level.OK


def test_a_file_that_is_not_there_is_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcrl.doctor.nodes._PATIENCE_S", 0.0)
    assert see_file(tmp_path / "nowhere", "x") == "No such file or directory"
    (tmp_path / "other").write_text("y")
    assert see_file(tmp_path / "other", "x") != ""


def test_a_report_that_can_not_be_written_is_a_finding(tmp_path: Path) -> None:
    assert write_json(tmp_path / "report.json", [], [], {}) is None
    found = write_json(tmp_path / "nowhere" / "report.json", [], [], {})
    assert found is not None
    assert (found.level, "nowhere/report.json" in found.says) == (Level.WRONG, True)
