"""A run directory has one writer, and a refused one leaves no trace in it."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcrl.errors import ConfigError
from hpcrl.storage.run_directory import Outcome, RunDirectory

SECOND = """
import sys
from pathlib import Path
from hpcrl.errors import ConfigError
from hpcrl.storage.run_directory import RunDirectory
try:
    RunDirectory(Path(sys.argv[1])).open(resume=True)
    print("opened")
except ConfigError as error:
    print(error)
"""


def open_elsewhere(path: Path) -> str:
    """Opens the directory in another process; returns what it says."""
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", SECOND, str(path)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": root}, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def content(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    directory = RunDirectory(tmp_path / "new" / "run")
    yield directory
    directory.close()


def test_what_open_would_refuse_is_known_beforehand(run: RunDirectory) -> None:
    run.refuse_what_open_would(resume=False)
    assert not run.path.exists()
    run.open(resume=False)
    run.write_config({})
    run.close()
    before = content(run.path)
    with pytest.raises(ConfigError, match="holds a run: give --resume"):
        run.refuse_what_open_would(resume=False)
    run.refuse_what_open_would(resume=True)
    holder = "import sys, fcntl; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); print(); input()"
    command = [sys.executable, "-c", holder, str(run.path / "run.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline()
        for resume in (False, True):
            with pytest.raises(ConfigError, match="is in use by pid"):
                run.refuse_what_open_would(resume)
        process.communicate("\n")
    assert content(run.path) == before


def test_open_creates_the_directory(run: RunDirectory) -> None:
    run.open(resume=False)
    assert run.checkpoints.is_dir()
    assert {path.name for path in run.path.iterdir()} == {"checkpoints", "run.lock"}
    assert (run.metrics_file.name, run.episodes_file.name) == ("metrics.csv", "episodes.csv")


@pytest.mark.parametrize("job", [None, "4711"])
def test_lock_tells_its_holder(run: RunDirectory, monkeypatch: pytest.MonkeyPatch, job: str | None) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if job:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    run.path.mkdir(parents=True)
    (run.path / "run.lock").write_text("x" * 500)
    run.open(resume=False)
    # In another process: reading it here would drop the lock.
    said = json.loads(subprocess.check_output(["cat", run.path / "run.lock"]))
    assert said == {"job": job, "host": socket.gethostname(), "pid": os.getpid()}


def test_second_writer_is_refused_until_close(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    run.open(resume=False)
    before = subprocess.check_output(["cat", run.path / "run.lock"])
    refusal = f"Run directory {run.path} is in use by pid {os.getpid()} on host {socket.gethostname()} (job 4711)."
    assert open_elsewhere(run.path) == refusal
    assert open_elsewhere(run.path) == refusal
    assert subprocess.check_output(["cat", run.path / "run.lock"]) == before
    run.close()
    run.close()
    assert open_elsewhere(run.path) == "opened"


def test_second_open_here_is_refused_and_keeps_the_lock(run: RunDirectory) -> None:
    run.open(resume=False)
    for second in (run, RunDirectory(run.path)):
        with pytest.raises(ConfigError, match="in use by this process"):
            second.open(resume=True)
    assert "in use by pid" in open_elsewhere(run.path)


def test_lock_of_a_dead_process_is_free(run: RunDirectory) -> None:
    assert open_elsewhere(run.path) == "opened"
    run.open(resume=False)


def test_existing_run_needs_resume(run: RunDirectory) -> None:
    run.open(resume=False)
    run.write_config({"seed": 1, "name": "ü"})
    run.close()
    before = content(run.path)
    with pytest.raises(ConfigError, match="--resume, or another --run-dir"):
        RunDirectory(run.path).open(resume=False)
    assert content(run.path) == before
    run.open(resume=True)
    assert run.read_config() == {"seed": 1, "name": "ü"}


def test_resume_of_nothing_starts_a_run(run: RunDirectory) -> None:
    run.open(resume=True)
    assert run.checkpoints.is_dir()


def test_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ConfigError, match="can't be written"):
            RunDirectory(path).open(resume=False)


def test_unwritable_directory_is_refused(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    run.path.mkdir(parents=True)
    (run.path / "run.lock").write_text("old")
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(ConfigError, match="Read-only file system"):
        run.open(resume=False)
    assert content(run.path) == {str(run.path / "run.lock"): b"old"}
    monkeypatch.undo()
    assert open_elsewhere(run.path) == "opened"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_no_locks_here_is_a_warning(run: RunDirectory, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.warns(RuntimeWarning, match="can't be locked"):
        run.open(resume=False)
    assert run.checkpoints.is_dir()


def test_lock_without_a_readable_holder(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def held(*_: object) -> None:
        raise OSError(errno.EAGAIN, "held")

    run.path.mkdir(parents=True)
    monkeypatch.setattr(fcntl, "lockf", held)
    for text in ("", "{", "[]", "{}", "3"):
        (run.path / "run.lock").write_text(text)
        with pytest.raises(ConfigError, match="in use by another process"):
            run.open(resume=False)


@pytest.mark.parametrize("text", [None, "", "{", "[1]", "\udcff"])
def test_damaged_config_is_refused(tmp_path: Path, text: str | None) -> None:
    run = RunDirectory(tmp_path)
    if text is not None:
        run.config_file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=r"config\.json"):
        run.read_config()


@pytest.mark.parametrize("value", [float("nan"), object()])
def test_config_that_is_no_json_is_refused(tmp_path: Path, value: object) -> None:
    run = RunDirectory(tmp_path)
    run.write_config({"seed": 1})
    with pytest.raises(ConfigError, match="can't be written"):
        run.write_config({"seed": value})
    assert run.read_config() == {"seed": 1}
    assert {path.name for path in tmp_path.iterdir()} == {"config.json"}


@pytest.mark.parametrize("outcome", ["running", "stopped", "finished"])
def test_the_outcome_is_one_word(run: RunDirectory, outcome: Outcome) -> None:
    run.open(resume=False)
    assert run.read_outcome() is None
    run.write_outcome(outcome)
    assert run.read_outcome() == outcome
    # As batch scripts compare it.
    assert subprocess.check_output(["sh", "-c", 'printf %s "$(cat "$1")"', "sh", run.outcome_file]) == outcome.encode()
    assert {path.name for path in run.path.iterdir()} == {"checkpoints", "outcome", "run.lock"}


@pytest.mark.parametrize("text", ["", "finish", "finished soon", "\udcff"])
def test_an_outcome_that_is_none_of_them_is_none(tmp_path: Path, text: str) -> None:
    run = RunDirectory(tmp_path)
    run.outcome_file.write_bytes(text.encode(errors="surrogateescape"))
    assert run.read_outcome() is None


def test_a_disk_that_refuses_the_outcome_does_not_end_the_run(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.open(resume=False)
    run.write_outcome("running")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hpcrl.storage.run_directory.write_durably", refuse)
    run.write_outcome("stopped")
    assert run.read_outcome() == "running"


def test_jobs_are_told_once_each_oldest_first(run: RunDirectory) -> None:
    assert run.read_jobs() == []
    run.open(resume=False)
    for job in ("7", "12", "7", "9_3"):
        run.add_job(job)
    assert run.jobs_file.read_text() == "7\n12\n7\n9_3\n"
    assert run.read_jobs() == ["7", "12", "9_3"]


@pytest.mark.parametrize(("text", "jobs"), [("\n7\n--all\n8;x\n9", ["7", "9"]), ("\udcff\n7\n", []), ("", [])])
def test_lines_that_are_no_jobs_are_left_out(tmp_path: Path, text: str, jobs: list[str]) -> None:
    run = RunDirectory(tmp_path)
    run.jobs_file.write_bytes(text.encode(errors="surrogateescape"))
    assert run.read_jobs() == jobs


IN_USE = """
import sys
from pathlib import Path
from hpcrl.storage.run_directory import RunDirectory
print(RunDirectory(Path(sys.argv[1])).is_in_use())
"""


def is_in_use_elsewhere(path: Path) -> bool:
    """What another process says."""
    command = [sys.executable, "-c", IN_USE, str(path)]
    root = str(Path(__file__).parents[2])
    return subprocess.check_output(command, env=os.environ | {"PYTHONPATH": root}, text=True) == "True\n"


def test_a_directory_is_in_use_from_open_to_close(run: RunDirectory) -> None:
    assert not run.is_in_use() and not run.path.exists()
    run.open(resume=False)
    assert run.is_in_use() and RunDirectory(run.path).is_in_use()
    assert is_in_use_elsewhere(run.path)
    # To ask has not dropped the lock.
    assert "in use by pid" in open_elsewhere(run.path)
    run.close()
    assert not run.is_in_use() and not is_in_use_elsewhere(run.path)
    run.open(resume=True)
