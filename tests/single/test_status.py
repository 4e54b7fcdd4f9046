"""hpcrl status: what it makes of a run's files and of Slurm's answers."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from hpcrl.commands.status import status
from hpcrl.config import A2CConfig, to_json
from hpcrl.errors import ConfigError
from hpcrl.storage.checkpoints import CheckpointStore

_CONFIG = A2CConfig(env="CartPole-v1", seed=3, total_env_steps=1000, num_iterations=10)
_HEADER = "iteration,env_steps,time/env_steps_per_s,rollout/episode_return_mean\n"
_SQUEUE = """\
#!/bin/sh
echo "$*" >>{folder}/calls
if [ -e {folder}/silent ]; then echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; fi
if [ -s {folder}/queue ]; then while read -r line; do echo "$line"; done <{folder}/queue; exit 0; fi
echo "slurm_load_jobs error: Invalid job id specified" >&2
exit 1
"""
_LOOK_UP = """\
#!/bin/sh
for job; do :; done
case "$0 $*" in *sacct*) job=${{4#--jobs=}};; esac
echo "$*" >>{folder}/calls
[ -r {folder}/{name}-$job ] || exit 1
while read -r line; do echo "$line"; done <{folder}/{name}-$job
"""
_HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "r+")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


class Slurm:
    """Stubs of squeue, scontrol and sacct, all that is on the path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._write("squeue", _SQUEUE.format(folder=folder))
        for name in ("scontrol", "sacct"):
            self._write(name, _LOOK_UP.format(folder=folder, name=name))

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def queue(self, *lines: str) -> None:
        """What squeue prints."""
        (self.folder / "queue").write_text("".join(f"{line}\n" for line in lines))

    def ended(self, job: str, state: str, reason: str = "None") -> None:
        """A job that scontrol still knows."""
        shown = f"JobId={job} JobName=run JobState={state} Reason={reason} Dependency=(null)\n"
        (self.folder / f"scontrol-{job}").write_text(shown)

    def accounted(self, job: str, state: str) -> None:
        """A job that only the accounting knows."""
        (self.folder / f"sacct-{job}").write_text(f"{state}\n")

    def is_silent(self) -> None:
        (self.folder / "silent").touch()

    @property
    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines() if (self.folder / "calls").exists() else []


@pytest.fixture(autouse=True)
def slurm(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """Slurm without a job, and an empty current folder."""
    made = Slurm(tmp_path_factory.mktemp("slurm"))
    monkeypatch.setenv("PATH", str(made.folder))
    monkeypatch.chdir(tmp_path)
    return made


def make_run(
    outcome: str | None = "running",
    jobs: Sequence[str] = (),
    rows: Sequence[str] = (),
    resumes: Sequence[Mapping[str, int]] = (),
) -> Path:
    """The run directory `run` as training leaves it."""
    run = Path("run")
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"config": to_json(_CONFIG), "resumes": resumes}))
    if outcome is not None:
        (run / "outcome").write_text(f"{outcome}\n")
    if jobs:
        (run / "jobs").write_text("".join(f"{job}\n" for job in jobs))
    if rows:
        (run / "metrics.csv").write_text(_HEADER + "".join(rows))
    return run


def told(capsys: pytest.CaptureFixture[str], expected: int = 0) -> list[str]:
    """The lines about the directory `run`; the first one without its name."""
    assert status(["run"]) == expected
    first, *rest = capsys.readouterr().out.splitlines()
    return [first.removeprefix("run: "), *(line.removeprefix("  ") for line in rest)]


@pytest.fixture
def writer() -> Iterator[None]:
    """Another process has the run directory open, from the test's beginning."""
    Path("run").mkdir()
    (Path("run") / "run.lock").touch()
    holder = subprocess.Popen([sys.executable, "-c", _HOLDER, "run/run.lock"], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    yield
    holder.kill()
    holder.wait()
    holder.stdout.close()


@pytest.mark.parametrize("name", ["missing", "empty", "file"])
def test_a_folder_that_is_no_run_is_refused_in_a_sentence(name: str) -> None:
    Path("empty").mkdir()
    Path("file").touch()
    with pytest.raises(ConfigError, match=f"^{name} is no run directory: ") as refused:
        status([name])
    assert len(str(refused.value).splitlines()) == 1
    assert not Path("missing").exists() and not list(Path("empty").iterdir())


def test_a_running_job(slurm: Slurm, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    slurm.queue("12|RUNNING|2|5:00|55:00|n[1-2]")
    make_run("running", ["11", "12", "12"], ["3,300,50,21.25\n"], [{"env_steps": 200}])
    slurm.ended("11", "TIMEOUT", "TimeLimit")
    now = time.time() + 3600  # a clock that does not move during the test
    monkeypatch.setattr(time, "time", lambda: now)
    os.utime("run/metrics.csv", (now - 75, now - 75))
    assert told(capsys) == [
        "running",
        "job 12: RUNNING on n[1-2] for 5:00, 55:00 left",
        "job 11: TIMEOUT (TimeLimit)",
        "a2c on CartPole-v1, seed 3",
        "progress: 300 of 1,000 env steps (30%), iteration 3 of 10, mean return 21.2, 50 env steps/s, 0:00:14 to go",
        "last report: 0:01:15 ago",
        "last checkpoint: none yet",
        "restarts: 1 (at env steps 200)",
    ]
    assert slurm.calls[0].startswith("--noheader --jobs=11,12 ")


@pytest.mark.parametrize(
    ("queued", "outcome", "standing"),
    [
        ("12|PENDING|2|0:00|1:00:00|(Resources)", None, "waits in the queue"),
        ("12|PENDING|2|0:00|1:00:00|(BeginTime)", "stopped", "saved, waits in the queue to go on"),
        ("12|PENDING|2|0:00|1:00:00|(BeginTime)", "running", "saved, waits in the queue to go on"),
        ("12|RUNNING|2|0:01|1:00:00|n1", None, "starting"),
        ("12|RUNNING|2|0:01|1:00:00|n1", "stopped", "starting"),
        ("12+0|RUNNING|2|0:01|1:00:00|n1", "running", "running"),
        ("12_3|RUNNING|2|0:01|1:00:00|n1", "running", "running"),
        ("12|RUNNING|2|0:01|1:00:00|n1", "finished", "finished"),
        ("12|COMPLETED|2|0:01|1:00:00|", "running", "died; --resume goes on from the last checkpoint"),
        ("12|CANCELLED|2|0:01|1:00:00|", "stopped", "stopped by a signal; --resume goes on"),
        ("12|FAILED|2|0:01|1:00:00|NonZeroExitCode", None, "ended before it began; its log tells why"),
        (None, None, "not begun"),
        (None, "stopped", "stopped by a signal; --resume goes on"),
        (None, "finished", "finished"),
        (None, "running", "died; --resume goes on from the last checkpoint"),
        (None, "nonsense", "not begun"),
    ],
)
def test_how_a_run_stands(
    queued: str | None, outcome: str | None, standing: str, slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    if queued is not None:
        slurm.queue(queued)
    make_run(outcome, ["12"])
    lines = told(capsys, int(standing.startswith(("died", "ended before"))))
    assert lines[0] == standing
    job = queued.partition("|")[0] if queued else "12"
    assert lines[1].startswith(f"job {job}: ")
    assert not any(line.startswith("job ") for line in lines[2:])


def test_a_run_without_jobs_asks_no_slurm(slurm: Slurm, capsys: pytest.CaptureFixture[str]) -> None:
    make_run("running")
    assert told(capsys, 1)[:2] == ["died; --resume goes on from the last checkpoint", "a2c on CartPole-v1, seed 3"]
    assert slurm.calls == []


def test_a_run_that_a_process_here_writes_is_running(writer: None, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run/config.json").write_text(json.dumps({"config": to_json(_CONFIG)}))
    Path("run/outcome").write_text("running\n")
    assert told(capsys)[0] == "running"


def test_a_look_leaves_the_lock_to_its_holder(writer: None, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run/config.json").write_text(json.dumps({"config": to_json(_CONFIG)}))
    Path("run/outcome").write_text("running\n")
    for _ in range(2):
        assert told(capsys)[0] == "running"
    with open("run/run.lock", "r+") as file, pytest.raises(BlockingIOError):  # noqa: PTH123
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_job_that_waits_is_told_with_its_reason(slurm: Slurm, capsys: pytest.CaptureFixture[str]) -> None:
    slurm.queue("12|PENDING|2|0:00|1:00:00|(Priority)")
    Path("run").mkdir()
    Path("run/jobs").write_text("12\n")
    assert told(capsys) == ["waits in the queue", "job 12: PENDING (Priority)"]


@pytest.mark.parametrize("how", ["silent", "missing"])
def test_where_slurm_does_not_tell_no_run_counts_as_dead(
    how: str, slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    if how == "silent":
        slurm.is_silent()
    else:
        (slurm.folder / "squeue").unlink()
    make_run("running", ["12"], ["3,300,50,21.25\n"])
    standing, job, *rest = told(capsys)
    assert standing == "running when it last wrote; Slurm does not tell whether its job still runs"
    assert job == "job 12: " + (
        "squeue gives no answer: slurm_load_jobs error: Unable to contact slurm controller"
        if how == "silent"
        else "no squeue is here"
    )
    assert rest[1].startswith("progress: 300 of 1,000")


def test_elements_of_an_array_are_told_apart(slurm: Slurm, capsys: pytest.CaptureFixture[str]) -> None:
    slurm.queue("12_1|RUNNING|1|0:01|1:00:00|n1")
    slurm.ended("12_0", "FAILED", "NonZeroExitCode")
    make_run("running", ["12_0", "12_1"])
    assert told(capsys)[1:3] == ["job 12_1: RUNNING on n1 for 0:01, 1:00:00 left", "job 12_0: FAILED (NonZeroExitCode)"]


def test_jobs_that_only_the_accounting_knows(slurm: Slurm, capsys: pytest.CaptureFixture[str]) -> None:
    slurm.accounted("12", "CANCELLED by 1000")
    make_run("stopped", ["12"])
    assert told(capsys)[1] == "job 12: CANCELLED by 1000"


def test_of_many_jobs_the_newest_are_told(slurm: Slurm, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [str(job) for job in range(1, 21)]
    for job in jobs:
        slurm.ended(job, "COMPLETED")
    make_run("finished", jobs)
    lines = told(capsys)
    assert [line for line in lines if line.startswith("job")] == [f"job {job}: COMPLETED" for job in (18, 19, 20)]
    assert len(slurm.calls) <= 4


@pytest.mark.parametrize(
    ("rows", "progress"),
    [
        ([], "0 of 1,000 env steps, no report yet"),
        (["3,300,50,21.25\n"], "300 of 1,000 env steps (30%), iteration 3 of 10, mean return 21.2, 50 env steps/s"),
        (["3,300,50,21.25\n", "4,400,"], "300 of 1,000 env steps (30%)"),
        (["3,300,50,21.25\n", "4,400,50,3"], "300 of 1,000 env steps (30%)"),
        (["3,300"], "0 of 1,000 env steps, no report yet"),
        (["1,100,,\n"], "100 of 1,000 env steps (10%), iteration 1 of 10"),
        (["10,1040,0,\n"], "1,040 of 1,000 env steps (104%), iteration 10 of 10"),
        (["3,300,50\n"], "metrics.csv can't be read: "),
        (["3,\0\0\0,50,1\n"], "metrics.csv can't be read: "),
    ],
)
def test_progress_is_that_of_the_last_whole_row(
    rows: list[str], progress: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("stopped", rows=rows)
    [line] = [line for line in told(capsys) if line.startswith("progress: ")]
    assert line.startswith(f"progress: {progress}")
    assert "to go" not in line


def test_metrics_that_are_no_text_do_not_hide_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run("stopped")
    (run / "metrics.csv").write_bytes(b"\xff\xfe\n\xff\n")
    lines = told(capsys)
    assert "progress: metrics.csv can't be read: " in lines[2] and lines[-1] == "restarts: 0"


def test_the_last_checkpoint_and_its_age(capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run("stopped")
    store = CheckpointStore(run / "checkpoints")
    for number in (1, 2):
        path = store.save(f"update-{number}", {"weights/x": np.zeros(2)}, {"env_steps": number}, None)
    os.utime(path, (time.time() - 3725, time.time() - 3725))
    [line] = [line for line in told(capsys) if line.startswith("last checkpoint")]
    assert re.fullmatch(r"last checkpoint: update-2\.h5, 1:02:0[5-9] ago", line)
    path.unlink()
    assert any(re.match("last checkpoint: .*No such file", line) for line in told(capsys))
    (run / "checkpoints/manifest.json").write_text("{")
    lines = told(capsys)
    assert any(re.match("last checkpoint: .*manifest", line) for line in lines) and lines[-1] == "restarts: 0"


def test_a_damaged_configuration_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    (make_run("stopped") / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json can't be read"):
        status(["run"])


def test_only_the_newest_restarts_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    make_run("stopped", resumes=[{"env_steps": 1000 * number} for number in range(1, 8)])
    assert told(capsys)[-1] == "restarts: 7 (at env steps ..., 3,000, 4,000, 5,000, 6,000, 7,000)"


def test_a_look_changes_nothing(slurm: Slurm, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run("running", ["12"], ["3,300,50,21.25\n"])
    before = {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in run.iterdir()}
    told(capsys, 1)
    assert {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in run.iterdir()} == before
