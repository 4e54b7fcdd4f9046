"""Batch scripts under bash with stubs for Slurm and the ranks: warned, requeued, preempted, cancelled, staged."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from hpcrl.slurm.job import Component, Job, Training
from hpcrl.slurm.script import scaling_script, training_script

_STUB = Path(__file__).parents[1] / "data/slurm/stub.py"
#: All that is on the path beside the stubs: of Slurm nothing, even where it is installed.
_TOOLS = (
    *("sh", "bash", "env", "timeout", "uname", "cat", "grep", "head", "tail", "sed", "cut", "tr", "sort", "xargs"),
    *("true", "mkdir", "rm", "mv", "cp", "ls", "chmod", "touch", "dirname", "basename", "tar", "gzip"),
)
_PATIENCE_S = 15.0
_JOB = Job("hpcrl", [Component(nodes=2, tasks_per_node=4)])
_TRAINING = Training(("a2c", "--env", "CartPole-v1"))
_STATE = """\
JobId=77 JobName=hpcrl
   JobState={state} Reason=None Dependency=(null)
   Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0
   PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime={preempted}
   Command=/home/me/train.sbatch a2c --env CartPole-v1
   WorkDir=/home/me
"""
#: The script passes a warning on that came before srun, as after a second: srun has begun by then.
_EARLY = {"STUB_SLEEP_S": "0.5"}
#: A run that works until it is warned.
_STOPS = {"STUB_WARNINGS": "1", "STUB_OUTCOME": "stopped"}


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a stub."""

    name: str
    arguments: list[str]
    variables: dict[str, str | None]
    ignores_warnings: bool

    def value(self, option: str) -> str:
        """What follows an option the last time that it is there."""
        place = len(self.arguments) - self.arguments[::-1].index(option)
        return self.arguments[place]


class Batch:
    """A node's folder for batch scripts, and the script under way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stubs = folder / "stubs"
        self.script = folder / "slurm_script"
        self.tools = folder / "tools"
        for made in (self.stubs, self.tools):
            made.mkdir()
        for name in _TOOLS:
            (self.tools / name).symlink_to(shutil.which(name) or "/missing")
        shorter = f'#!/bin/sh\n[ "$1" = 1 ] && set -- "${{STUB_SLEEP_S:-0.05}}"\nexec {shutil.which("sleep")} "$@"\n'
        self._executable("sleep", shorter)
        for name in ("srun", "scontrol", "sbatch", "python3"):
            self._executable(name, f"#!{sys.executable} -IS\n{_STUB.read_text()}")
        self.state()

    def _executable(self, name: str, text: str) -> None:
        (self.tools / name).write_text(text)
        (self.tools / name).chmod(0o755)

    def state(self, state: str = "RUNNING", preempted: str = "None") -> None:
        """What scontrol shows from now on."""
        (self.stubs / "state").write_text(_STATE.format(state=state, preempted=preempted))

    def slurm_is_silent(self) -> None:
        """scontrol finds no controller from now on."""
        (self.stubs / "state").unlink()

    def start(
        self, training: Training = _TRAINING, job: Job = _JOB, arguments: Sequence[str] = (), **variables: str
    ) -> None:
        """Start the script of a run with the arguments that stand after its name."""
        self.start_script(training_script(job, training, ["title"]), arguments, **variables)

    def start_script(self, script: str, arguments: Sequence[str] = (), **variables: str) -> None:
        self.script.write_text(script)
        job = {"ID": "77", "NODELIST": "n[1-2]", "NAME": "hpcrl", "NUM_NODES": "2"}
        environment = {f"SLURM_JOB_{name}": value for name, value in job.items()}
        environment |= {"PATH": str(self.tools), "STUB_FOLDER": str(self.stubs), "HOME": str(self.folder)}
        with (self.folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                [str(self.tools / "bash"), str(self.script), *arguments],
                env=environment | variables,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def warn(self, number: int = signal.SIGUSR1) -> None:
        """Slurm's warning, to the script alone."""
        self.process.send_signal(number)

    def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + _PATIENCE_S
        while not condition():
            assert time.monotonic() < end, f"{self.log}\n{self.calls()}"
            time.sleep(0.01)

    def until_called(self, *names: str) -> None:
        """Wait for calls by stubs of all these names; fails where the script ends before."""
        self.until(lambda: {call.name for call in self.calls()} >= set(names) or self.process.poll() is not None)
        assert {call.name for call in self.calls()} >= set(names), self.log

    def end(self) -> int:
        """The script's exit status."""
        try:
            return self.process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not over:\n{self.log}\n{self.calls()}") from None

    def run(self, *given: Any, **variables: Any) -> int:
        """Start, and the exit status."""
        self.start(*given, **variables)
        return self.end()

    def warned_run(self, *given: Any, **variables: Any) -> int:
        """Start, warn once the ranks listen, and the exit status."""
        self.start(*given, **{**_STOPS, **variables})
        self.until_called("listens")
        self.warn()
        return self.end()

    def calls(self, *names: str) -> list[Call]:
        """Calls of all stubs or of these, in their order."""
        file = self.stubs / "calls"
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        calls = [Call(**json.loads(line)) for line in lines if line.endswith("\n")]
        return [call for call in calls if not names or call.name in names]

    @property
    def requeues(self) -> list[list[str]]:
        """Arguments of every `scontrol requeue` and every sbatch."""
        return [call.arguments for call in self.calls("scontrol", "sbatch") if call.arguments[0] != "show"]

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def said(self) -> list[str]:
        """Lines of the script itself after its first one."""
        return [line for line in self.log.splitlines() if line.startswith("hpcrl: ")][1:]

    def kill(self) -> None:
        """End what is left."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (AttributeError, ProcessLookupError):
            return
        self.process.wait()


@pytest.fixture
def batch(tmp_path: Path) -> Iterator[Batch]:
    made = Batch(tmp_path)
    yield made
    made.kill()


def test_a_run_that_finishes_ends_the_job(batch: Batch) -> None:
    assert batch.run() == 0
    assert batch.requeues == [] and batch.said == []
    assert (batch.folder / "runs/hpcrl-77/jobs").read_text() == "77\n"
    [step] = batch.calls("srun")
    assert {"--mpi=pmi2", "--kill-on-bad-exit=1", "--cpu-bind=none"} <= set(step.arguments)
    [rank] = batch.calls("rank")
    assert rank.arguments == ["train", "a2c", "--env", "CartPole-v1", "--run-dir", "runs/hpcrl-77", "--resume"]


def test_a_warning_reaches_the_ranks_and_the_job_is_requeued_once(batch: Batch) -> None:
    assert batch.warned_run() == 0
    assert batch.requeues == [["requeue", "77"]]


def test_ranks_are_warned_until_they_leave(batch: Batch) -> None:
    assert batch.warned_run(STUB_WARNINGS="4") == 0
    assert batch.requeues == [["requeue", "77"]]


def test_a_run_that_finishes_when_it_is_warned_is_not_requeued(batch: Batch) -> None:
    assert batch.warned_run(STUB_OUTCOME="finished") == 0
    assert batch.requeues == []


def test_many_warnings_requeue_once(batch: Batch) -> None:
    batch.start(STUB_REQUEUE_S="0.3", **{**_STOPS, "STUB_WARNINGS": "3"})
    batch.until_called("listens")
    for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
        batch.warn(number)
    batch.until(lambda: batch.requeues)
    # Slurm ends a job that is requeued.
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
        batch.warn(number)
    assert batch.end() == 0
    assert batch.requeues == [["requeue", "77"]]


def test_a_warning_before_srun_starts_requeues_without_starting_it(batch: Batch) -> None:
    batch.start(STUB_PLUGIN_S="0.2", **_EARLY, **_STOPS)
    batch.until_called("plugin")
    batch.warn()
    assert batch.end() == 0
    assert batch.requeues == [["requeue", "77"]]
    assert batch.calls("srun", "rank") == []


def test_ranks_are_not_warned_before_all_of_them_listen(batch: Batch) -> None:
    batch.start(STUB_SRUN_DEAF_S="0.3", STUB_RANK_DEAF_S="0.3", **_STOPS)
    batch.until_called("srun")
    batch.warn()
    assert batch.end() == 0
    assert batch.requeues == [["requeue", "77"]]
    assert [call.ignores_warnings for call in batch.calls("srun", "rank")] == [True, True]


@pytest.mark.parametrize("components", [1, 2])
def test_a_warning_while_srun_starts_ends_neither_it_nor_the_ranks(batch: Batch, components: int) -> None:
    job = Job("hpcrl", [Component(2, 4)] * components)
    batch.start(job=job, STUB_SRUN_DEAF_S="0.3", STUB_RANK_DEAF_S="0.3", **_STOPS)
    batch.until_called("srun")
    batch.warn()
    assert batch.end() == 0
    assert batch.requeues == [["requeue", "77"]]


def test_ranks_that_fail_end_the_job_with_their_status(batch: Batch) -> None:
    assert batch.run(STUB_RANK_STATUS="7") == 7
    assert batch.requeues == []
    assert "status 7" in batch.said[0] and batch.said[0].endswith(
        ": HPCRL_RUN_DIR=runs/hpcrl-77 sbatch /home/me/train.sbatch a2c --env CartPole-v1"
    )


def test_ranks_that_fail_after_a_warning_are_not_requeued(batch: Batch) -> None:
    assert batch.warned_run(STUB_RANK_STATUS="7") == 7
    assert batch.requeues == []


@pytest.mark.parametrize("tells", [True, False])
def test_ranks_that_a_lost_node_ends_are_requeued(batch: Batch, tells: bool) -> None:
    if not tells:
        batch.slurm_is_silent()
    assert batch.run(STUB_RANK_STATUS="7", STUB_LOST="node", SLURMD_NODENAME="n1") == 0
    assert batch.requeues == [["requeue", "77"]]
    assert "a node does not answer" in batch.said[0]


def test_where_no_node_answers_the_job_is_over(batch: Batch) -> None:
    assert batch.run(STUB_RANK_STATUS="7", STUB_LOST="Slurm", SLURMD_NODENAME="n1") == 7
    assert batch.requeues == []


def test_a_finished_file_of_ranks_that_fail_does_not_count(batch: Batch) -> None:
    assert batch.run() == 0
    assert batch.run(STUB_RANK_STATUS="7") == 7


def test_ranks_that_somebody_stopped_are_not_requeued(batch: Batch) -> None:
    assert batch.run(STUB_OUTCOME="stopped") == 0
    assert batch.requeues == []
    [said] = batch.said
    assert "somebody asked the ranks to stop" in said


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING"])
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_job_that_was_cancelled_is_not_requeued(batch: Batch, state: str, number: int) -> None:
    batch.start(**_STOPS)
    batch.until_called("listens")
    batch.state(state)
    batch.warn(number)
    assert batch.end() == 1
    assert batch.requeues == []
    [said] = batch.said
    assert state in said and "to go on: HPCRL_RUN_DIR=" in said


def test_a_preempted_job_waits_for_slurm_to_requeue_it(batch: Batch) -> None:
    batch.start(**_STOPS)
    batch.until_called("listens")
    batch.state(preempted="2026-01-01T00:01:00")
    batch.warn(signal.SIGTERM)
    batch.until(lambda: batch.said)
    batch.warn()
    time.sleep(0.2)
    assert batch.process.poll() is None
    batch.warn(signal.SIGTERM)
    assert batch.end() == -signal.SIGTERM
    assert batch.requeues == [] and "preempted" in batch.said[0]


def test_where_preempted_jobs_are_cancelled_the_script_requeues(batch: Batch) -> None:
    batch.start(STUB_PREEMPT_MODE="CANCEL", SLURM_JOB_PARTITION="cpu", **_STOPS)
    batch.until_called("listens")
    batch.state(preempted="2026-01-01T00:01:00")
    batch.warn(signal.SIGTERM)
    assert batch.end() == 0
    assert batch.requeues == [["requeue", "77"]]


def test_a_preempted_job_whose_run_finishes_is_over_at_once(batch: Batch) -> None:
    batch.state(preempted="2026-01-01T00:01:00")
    assert batch.warned_run(STUB_OUTCOME="finished") == 0
    assert batch.requeues == []


@pytest.mark.parametrize("how", ["missing", "silent", "refuses"])
def test_where_slurm_refuses_a_requeue_another_job_goes_on(batch: Batch, how: str) -> None:
    if how == "missing":
        (batch.tools / "scontrol").unlink()
    if how == "silent":
        batch.slurm_is_silent()
    counts = {"SLURM_RESTART_COUNT": "2", "HPCRL_RESTARTS": "3"}
    assert batch.warned_run(arguments=["a2c", "--env", "my env"], STUB_REQUEUE_STATUS="1", **counts) == 0
    [submitted] = batch.calls("sbatch")
    assert submitted.arguments == ["--dependency=afterany:77", str(batch.script), "a2c", "--env", "my env"]
    assert submitted.variables["HPCRL_RUN_DIR"] == "runs/hpcrl-77"
    assert submitted.variables["HPCRL_RESTARTS"] == "6"
    assert submitted.variables["SLURM_RESTART_COUNT"] is None


def test_the_job_that_goes_on_has_the_same_run(batch: Batch) -> None:
    run_dir = {"HPCRL_RUN_DIR": "runs/hpcrl-77"}
    assert batch.run(SLURM_JOB_ID="78", **run_dir) == 0
    assert batch.calls("rank")[0].value("--run-dir") == "runs/hpcrl-77"
    assert (batch.folder / "runs/hpcrl-77/jobs").read_text() == "78\n"


@pytest.mark.parametrize("has_scontrol", [True, False])
def test_where_slurm_refuses_everything_it_is_said_what_to_type(batch: Batch, has_scontrol: bool) -> None:
    if not has_scontrol:
        (batch.tools / "scontrol").unlink()
    refuse = {"STUB_REQUEUE_STATUS": "1", "STUB_SBATCH_STATUS": "1"}
    assert batch.warned_run(arguments=["a2c", "--seed", "3"], **refuse) == 1
    [said] = batch.said
    command = "/home/me/train.sbatch a2c --env CartPole-v1" if has_scontrol else "SCRIPT a2c --seed 3"
    assert said.endswith(f"to go on: HPCRL_RUN_DIR=runs/hpcrl-77 sbatch {command}")


@pytest.mark.parametrize(("most", "status"), [(3, 1), (4, 0)])
def test_restarts_have_an_end(batch: Batch, most: int, status: int) -> None:
    job = dataclasses.replace(_JOB, max_restarts=most)
    counts = {"SLURM_RESTART_COUNT": "1", "HPCRL_RESTARTS": "2"}
    assert batch.warned_run(job=job, **counts) == status
    assert batch.requeues == [["requeue", "77"]] * (status == 0)


@pytest.mark.parametrize("tells", [True, False])
def test_an_end_without_a_warning_is_requeued_only_where_the_job_is_known_to_run(batch: Batch, tells: bool) -> None:
    if not tells:
        batch.slurm_is_silent()
    batch.start(**_STOPS)
    batch.until_called("listens")
    batch.warn(signal.SIGTERM)
    assert batch.end() == int(not tells)
    assert batch.requeues == [["requeue", "77"]] * tells


@pytest.mark.parametrize("element", ["0", "2"])
def test_an_element_of_an_array_requeues_itself_alone(batch: Batch, element: str) -> None:
    # The last element has the id of the whole array.
    array = {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": element}
    assert batch.warned_run(STUB_REQUEUE_STATUS="1", **array) == 0
    assert [call.arguments for call in batch.calls("scontrol")] == [
        ["show", "job", f"77_{element}"],
        ["requeue", f"77_{element}"],
    ]
    [submitted] = batch.calls("sbatch")
    assert submitted.arguments == [f"--dependency=afterany:77_{element}", f"--array={element}", str(batch.script)]
    assert (batch.folder / "runs/hpcrl-77/jobs").read_text() == f"77_{element}\n"


def test_without_a_plugin_for_the_mpi_library_no_rank_starts(batch: Batch) -> None:
    assert batch.run(STUB_PLUGIN_STATUS="2") == 2
    assert batch.calls("srun") == []


def test_the_plugin_can_be_named(batch: Batch) -> None:
    assert batch.run(HPCRL_MPI="pmix_v4") == 0
    assert batch.calls("plugin") == []
    assert batch.run(dataclasses.replace(_TRAINING, mpi="pmix_v5")) == 0
    plugins = [call.arguments[0] for call in batch.calls("srun")]
    assert plugins == ["--mpi=pmix_v4", "--mpi=pmix_v5"]


def test_steps_have_the_variables_of_the_script(batch: Batch) -> None:
    assert batch.run(SLURM_EXPORT_ENV="NONE") == 0
    assert batch.calls("srun")[0].variables["SLURM_EXPORT_ENV"] is None


def test_without_srun_the_job_fails(batch: Batch) -> None:
    (batch.tools / "srun").unlink()
    assert batch.run() == 127
    assert batch.requeues == []


_ODD = ("a2c", "--env", "my env", "--seed", "$HOME `date` 'it' \"is\" *\n;x")


@pytest.mark.parametrize("after_the_name", [True, False])
def test_arguments_with_spaces_and_quotes_survive(batch: Batch, after_the_name: bool) -> None:
    status = batch.run(arguments=_ODD) if after_the_name else batch.run(Training(_ODD))
    assert status == 0
    assert batch.calls("rank")[0].arguments == ["train", *_ODD, "--run-dir", "runs/hpcrl-77", "--resume"]


def test_a_run_directory_may_have_spaces(batch: Batch) -> None:
    run_dir = batch.folder / "my runs/it's $1"
    training = dataclasses.replace(_TRAINING, run_dir=run_dir)
    assert batch.warned_run(training, STUB_REQUEUE_STATUS="1") == 0
    assert batch.calls("rank")[0].value("--run-dir") == str(run_dir)
    assert (run_dir / "jobs").read_text() == "77\n"
    assert batch.calls("sbatch")[0].variables["HPCRL_RUN_DIR"] == str(run_dir)
    assert batch.run(training, STUB_RANK_STATUS="7") == 7
    typed = batch.said[-1].rpartition(": HPCRL_RUN_DIR=")[2].rpartition(" sbatch ")[0]
    assert subprocess.check_output(["bash", "-c", f"echo {typed}"], text=True) == f"{run_dir}\n"


def test_an_environment_that_is_not_there_ends_the_job(batch: Batch) -> None:
    assert batch.run(HPCRL_ENVIRONMENT="elsewhere") == 2
    assert batch.said == ["hpcrl: elsewhere holds no bin/python3"]
    assert batch.run(dataclasses.replace(_TRAINING, environment=Path("/nowhere"))) == 2
    assert batch.said == ["hpcrl: /nowhere holds no bin/python3"]
    assert batch.calls("plugin", "srun") == []


def test_the_environment_comes_first(batch: Batch) -> None:
    environment = batch.folder / "my environment"
    _make_environment(environment, batch)
    assert batch.run(HPCRL_ENVIRONMENT="my environment") == 0
    assert batch.run(dataclasses.replace(_TRAINING, environment=environment)) == 0
    # Absolute: a rank may start elsewhere.
    pythons = [call.variables["STUB_PYTHON"] for call in batch.calls("plugin", "rank")]
    assert pythons == [str(environment / "bin/python3")] * 4


@pytest.mark.parametrize("gpus", [1, 2])
def test_every_gpu_has_a_learner(batch: Batch, gpus: int) -> None:
    job = Job("hpcrl", [Component(nodes=2, tasks_per_node=4, gpus_per_node=gpus)])
    assert batch.run(job=job, SLURM_GPUS_ON_NODE=str(gpus)) == 0
    assert batch.calls("rank")[0].value("--learners") == str(2 * gpus)


def test_what_the_user_says_of_learners_wins(batch: Batch) -> None:
    job = Job("hpcrl", [Component(nodes=2, tasks_per_node=4, gpus_per_node=2)])
    assert batch.run(job=job, arguments=["a2c", "--learners", "1"], SLURM_GPUS_ON_NODE="2") == 0
    assert batch.run(Training(("a2c",), deals_roles=False), job, SLURM_GPUS_ON_NODE="2") == 0
    first, second = batch.calls("rank")
    assert first.arguments[1] == "a2c" and first.value("--learners") == "1"
    assert "--learners" not in second.arguments


def test_cores_of_a_task_are_told_to_srun(batch: Batch) -> None:
    assert batch.run(SLURM_CPUS_PER_TASK="3") == 0
    assert batch.run() == 0
    assert ["--cpus-per-task=3" in call.arguments for call in batch.calls("srun")] == [True, False]


def test_both_components_of_a_heterogeneous_job_are_one_step(batch: Batch) -> None:
    job = Job("hpcrl", [Component(2, 2, gpus_per_node=2), Component(3, 4)])
    assert batch.warned_run(job=job, SLURM_NTASKS_HET_GROUP_0="4") == 0
    [step] = batch.calls("srun")
    place = step.arguments.index(":")
    one, other = step.arguments[:place], step.arguments[place + 1 :]
    assert "--het-group=0" in one and other[0] == "--het-group=1"
    assert one[-len(other) + 1 :] == other[1:]
    [rank] = batch.calls("rank")
    assert (rank.value("--learners"), rank.value("--learner-ranks")) == ("4", "first")
    assert batch.requeues == [["requeue", "77"]]


_CHAIN = dataclasses.replace(_TRAINING, on_warning="chain")


def test_a_chain_whose_run_has_finished_starts_no_ranks(batch: Batch) -> None:
    assert batch.run(_CHAIN) == 0
    assert batch.run(_CHAIN) == 0
    assert len(batch.calls("srun")) == 1


def test_a_job_of_a_chain_that_is_warned_leaves_the_rest_to_the_next(batch: Batch) -> None:
    assert batch.warned_run(_CHAIN) == 0
    assert batch.requeues == []
    assert batch.run(_CHAIN) == 0
    assert len(batch.calls("rank")) == 2


def test_a_job_of_a_chain_that_fails_says_so(batch: Batch) -> None:
    assert batch.run(_CHAIN, STUB_RANK_STATUS="7") == 7
    assert "status 7" in batch.said[0]


def _make_environment(folder: Path, batch: Batch) -> None:
    """A folder with a Python that tells its path."""
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin/python3"
    python.write_text(f'#!/bin/sh\nSTUB_PYTHON=$0 exec {batch.tools}/python3 "$@"\n')
    python.chmod(0o755)


@pytest.fixture
def packed(batch: Batch) -> Training:
    """A run with a packed environment."""
    _make_environment(batch.folder / "whole", batch)
    with tarfile.open(batch.folder / "my environment.tar", "w") as file:
        file.add(batch.folder / "whole/bin", "bin")
    return dataclasses.replace(_TRAINING, packed_environment=batch.folder / "my environment.tar")


@pytest.mark.parametrize("components", [1, 2])
def test_a_packed_environment_is_used_from_the_nodes_disk_and_removed(
    batch: Batch, packed: Training, components: int
) -> None:
    disk = batch.folder / "disk"
    job = Job("hpcrl", [Component(2, 4)] * components)
    het = {"SLURM_NTASKS_HET_GROUP_0": "4", "SLURM_JOB_NUM_NODES_HET_GROUP_0": "2"}
    het |= {"SLURM_JOB_NUM_NODES_HET_GROUP_1": "3"}
    batch.start(packed, job, TMPDIR=str(disk), **het, **_STOPS)
    batch.until_called("listens")
    assert [path.name for path in disk.iterdir()] == ["hpcrl-77"]
    batch.warn()
    assert batch.end() == 0
    assert list(disk.iterdir()) == []
    unpacked, ranks, removed = batch.calls("srun")
    for step in (unpacked, removed):
        assert {"--ntasks-per-node=1", "--mpi=none", "--ntasks=2"} <= set(step.arguments)
        assert ({"--het-group=0", "--het-group=1", "--ntasks=3"} <= set(step.arguments)) == (components == 2)
    assert "--mpi=pmi2" in ranks.arguments
    pythons = [call.variables["STUB_PYTHON"] for call in batch.calls("plugin", "rank")]
    assert pythons == [str(disk / "hpcrl-77/bin/python3")] * 2
    assert batch.requeues == [["requeue", "77"]]


def test_a_warning_while_an_environment_is_unpacked_keeps_the_ranks_from_starting(
    batch: Batch, packed: Training
) -> None:
    batch.start(packed, TMPDIR=str(batch.folder / "disk"), STUB_SRUN_DEAF_S="0.2", **_EARLY, **_STOPS)
    batch.until_called("srun")
    batch.warn()
    assert batch.end() == 0
    assert len(batch.calls("srun")) == 2 and batch.calls("rank") == []
    assert list((batch.folder / "disk").iterdir()) == []
    assert batch.requeues == [["requeue", "77"]]


@pytest.mark.parametrize("how", ["missing", "damaged", "without Python"])
def test_an_environment_that_cannot_be_unpacked_ends_the_job_before_its_ranks(
    batch: Batch, packed: Training, how: str
) -> None:
    archive = packed.packed_environment
    assert archive is not None
    if how == "missing":
        archive.unlink()
    elif how == "damaged":
        archive.write_bytes(archive.read_bytes()[:100])
    else:
        with tarfile.open(archive, "w") as file:
            file.add(batch.folder / "whole", "whole")
    assert batch.run(packed, TMPDIR=str(batch.folder / "disk")) == 2
    assert batch.calls("rank", "plugin") == [] and batch.requeues == []
    assert list((batch.folder / "disk").iterdir()) == []
    assert str(archive) in batch.said[-1]


def test_a_failed_run_leaves_nothing_on_the_nodes_disk(batch: Batch, packed: Training) -> None:
    assert batch.run(packed, TMPDIR=str(batch.folder / "disk"), STUB_RANK_STATUS="7") == 7
    assert list((batch.folder / "disk").iterdir()) == []


_SCALING = scaling_script(_JOB, [(1, 2), (2, 8)], ["title"])
_ELEMENT = {"SLURM_JOB_ID": "90", "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "1"}


def test_an_element_of_the_scaling_benchmark_measures_its_layout(batch: Batch) -> None:
    batch.start_script(_SCALING, ["--mode", "weak", "--", "--env", "my env"], **_ELEMENT)
    assert batch.end() == 0
    [measured] = batch.calls("benchmark")
    assert measured.value("--out") == "results/scaling-77_1.jsonl"
    assert measured.arguments[-5:] == ["--mode", "weak", "--", "--env", "my env"]
    assert measured.value("--launch").endswith("--nodes=2 --ntasks=8 --ntasks-per-node=4")
    assert batch.requeues == []


def test_a_scaling_benchmark_that_is_warned_goes_on_later_in_the_same_file(batch: Batch) -> None:
    batch.start_script(_SCALING, STUB_WARNINGS="1", STUB_RANK_DEAF_S="0.3", STUB_REQUEUE_STATUS="1", **_ELEMENT)
    batch.until_called("benchmark")
    batch.warn()
    assert batch.end() == 0
    assert batch.requeues[0] == ["requeue", "77_1"]
    [submitted] = batch.calls("sbatch")
    # Never the whole array: each of its elements would submit it again.
    assert "--array=1" in submitted.arguments
    assert batch.calls("benchmark")[0].ignores_warnings
    results = submitted.variables["HPCRL_RESULTS"]
    assert results == "results/scaling-77_1.jsonl"
    batch.start_script(_SCALING, **{**_ELEMENT, "SLURM_ARRAY_JOB_ID": "99"}, HPCRL_RESULTS=str(results))
    assert batch.end() == 0
    assert batch.calls("benchmark")[-1].value("--out") == results


def test_a_scaling_benchmark_that_fails_is_not_requeued(batch: Batch) -> None:
    batch.start_script(_SCALING, STUB_RANK_STATUS="7", **_ELEMENT)
    assert batch.end() == 7
    assert batch.requeues == []
