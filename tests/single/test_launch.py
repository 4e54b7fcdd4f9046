"""Starting ranks: each launcher has a folder of its own, which is gone when it ends; and what launchers promise."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from hpcrl.cluster import launch
from hpcrl.signals import ASKED_VARIABLE, Requests


class Launcher:
    """Takes the place of the process; remembers the folder that it was given, and that it was there."""

    folders: list[str | None]
    status = 7
    ranks_leave_with = (0, 0)

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        assert "hpcrl" in command
        self._folder = environment.get(launch.SESSION_FOLDER)
        self._environment = environment

    def wait(self) -> int:
        assert self._folder is None or Path(self._folder).is_dir()
        self.folders.append(self._folder)
        for status in self.ranks_leave_with:
            assert launch.leave_in_order(status, self._environment) == 0
        return self.status


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The folders of the launchers that a test starts."""
    monkeypatch.setattr(launch, "_Ranks", Launcher)
    Launcher.folders = []
    return Launcher.folders


def test_every_launcher_has_a_folder_of_its_own(folders: list[str | None]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != launch.SESSION_FOLDER}
    assert [launch.start_ranks(2, ["train"], environment) for _ in range(2)] == [7, 7]
    one, other = folders
    assert one is not None and other is not None and one != other
    assert not Path(one).exists() and not Path(other).exists()


def test_a_folder_that_the_user_names_is_kept(folders: list[str | None], tmp_path: Path) -> None:
    assert launch.start_ranks(2, ["train"], {**os.environ, launch.SESSION_FOLDER: str(tmp_path)}) == 7
    assert folders == [str(tmp_path)] and tmp_path.is_dir()


def test_ranks_that_leave_in_order_need_no_word_of_the_launcher(
    folders: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Launcher, "ranks_leave_with", (2, 2))
    # One that broke was not in order: what the launcher says counts.
    for said, status in ((0, 2), (7, 7)):
        monkeypatch.setattr(Launcher, "status", said)
        assert launch.start_ranks(2, ["train"], os.environ) == status
    # Those of a launcher of the user's leave with their own.
    assert launch.leave_in_order(2, {}) == 2 and launch.leave_in_order(2, {launch._STATUS_VARIABLE: "/nowhere"}) == 2


def test_ranks_name_what_their_parent_was_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_prepare_launcher", lambda: None)
    requests = Requests()
    requests.install()
    for number, name in ((signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM"), (signal.SIGUSR1, "SIGUSR1")):
        environment = {**os.environ, ASKED_VARIABLE: str(tmp_path / name)}
        ranks = launch._Ranks(["sleep", "60"], environment)
        signal.raise_signal(number)
        assert ranks.wait() == 128 + signal.SIGUSR1
        monkeypatch.setenv(ASKED_VARIABLE, environment[ASKED_VARIABLE])
        requests.install()
        signal.raise_signal(signal.SIGUSR1)
        assert requests.stop == name
    # Slurm's own, to a rank that it started.
    monkeypatch.delenv(ASKED_VARIABLE)
    signal.raise_signal(signal.SIGUSR1)
    assert requests.stop == "SIGUSR1"


_STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4"}
_ONE = {**_STEP, "SLURM_STEP_NUM_TASKS": "1"}
_HET = {"SLURM_HET_SIZE": "2", "SLURM_NTASKS_HET_GROUP_0": "2", "SLURM_NTASKS_HET_GROUP_1": "5"}


@pytest.mark.parametrize(
    ("environment", "promise"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "3"}, (3, "OMPI_COMM_WORLD_SIZE")),
        ({"PMI_SIZE": "3"}, (3, "PMI_SIZE")),
        ({"PMI_SIZE": "1"}, (1, "PMI_SIZE")),
        (_STEP, (4, "SLURM_STEP_NUM_TASKS")),
        # A launcher inside a step of srun: the step is that of the launcher's own daemons.
        ({**_STEP, "OMPI_COMM_WORLD_SIZE": "8"}, (8, "OMPI_COMM_WORLD_SIZE")),
        ({**_STEP, "PMI_SIZE": "8"}, (8, "PMI_SIZE")),
        ({**_ONE, "PMI_SIZE": "8"}, (8, "PMI_SIZE")),
        # Every component of a heterogeneous step counts its own tasks.
        ({**_STEP, **_HET}, (7, "SLURM_NTASKS_HET_GROUP_*")),
        ({**_ONE, **_HET}, (7, "SLURM_NTASKS_HET_GROUP_*")),
        ({**_STEP, **_HET, "SLURM_NTASKS_HET_GROUP_1": "5(x2)"}, (4, "SLURM_STEP_NUM_TASKS")),
        ({**_STEP, "SLURM_HET_SIZE": "2"}, (4, "SLURM_STEP_NUM_TASKS")),
    ],
)
def test_ranks_know_how_many_there_should_be(environment: dict[str, str], promise: tuple[int, str]) -> None:
    assert launch.promised_size(None, environment) == promise
    assert launch.promised_size(2, environment) == (2, "--ranks")
    assert launch.inside_mpi(environment)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OMPI_COMM_WORLD_SIZE": "many"},
        # The batch script itself, and what it starts without srun.
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_NNODES": "2"},
        # A shell by salloc, or by `srun --pty bash`.
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"},
        {**_ONE, "SLURM_PTY_PORT": "4711"},
        _ONE,
        {name: value for name, value in _STEP.items() if name != "SLURM_PROCID"},
        {name: value for name, value in _STEP.items() if name != "SLURM_STEP_NUM_TASKS"},
    ],
)
def test_a_process_of_its_own_is_promised_nothing(environment: dict[str, str]) -> None:
    assert launch.promised_size(None, environment) is None
    assert launch.promised_size(2, environment) == (2, "--ranks")
    assert not launch.inside_mpi(environment)
