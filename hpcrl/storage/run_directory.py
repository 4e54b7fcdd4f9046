"""The directory of one run: one writer at a time, and no run overwritten by another."""

import errno
import fcntl
import json
import os
import socket
import struct
import tempfile
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args

from hpcrl.config import TrainConfig
from hpcrl.errors import ConfigError
from hpcrl.storage.durable import write_durably, write_json_durably

#: How a run stands: under way (or dead), left by a signal, or at its end.
Outcome = Literal["running", "stopped", "finished"]

_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

#: Directories this process has open: POSIX locks don't keep a process out of its own files, and are all
#: dropped when it closes any descriptor of the file.
_open_here: set[Path] = set()


class RunDirectory:
    """Paths below a run directory, and the lock that makes this process its only writer."""

    def __init__(self, path: Path) -> None:
        """Names the directory; nothing is touched before `open`."""
        self.path = Path(path)
        self._descriptor: int | None = None
        self._identity = self.path.resolve()

    @property
    def checkpoints(self) -> Path:
        """The directory of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def trajectories(self) -> Path:
        """The directory of recorded trajectories."""
        return self.path / "trajectories"

    @property
    def metrics_file(self) -> Path:
        """The CSV file with a row per report."""
        return self.path / "metrics.csv"

    @property
    def episodes_file(self) -> Path:
        """The CSV file with a row per episode."""
        return self.path / "episodes.csv"

    @property
    def trace_file(self) -> Path:
        """The JSON file that says what every rank did when, of a run that was asked for it."""
        return self.path / "trace.json"

    @property
    def outcome_file(self) -> Path:
        """The file that says in one word how the run stands: running, stopped (by a signal) or finished."""
        return self.path / "outcome"

    @property
    def batch_script(self) -> Path:
        """The script that `hpcrl submit` made for the run."""
        return self.path / "job.sbatch"

    @property
    def jobs_file(self) -> Path:
        """The file with the ids of all batch jobs that the run had, a line each; a restarted job stands there again."""
        return self.path / "jobs"

    @property
    def config_file(self) -> Path:
        """The JSON file whose presence says that a run lives here."""
        return self.path / "config.json"

    def open(self, resume: bool) -> None:
        """Creates the directory where needed, locks it for the life of this process and claims it.

        Args:
            resume: Whether a run that is already in it goes on.

        Raises:
            ConfigError: Another process writes here, a run is here and `resume` is false, or the
                directory can't be written. What it holds is untouched then.
        """
        if self._identity in _open_here:
            raise ConfigError(f"Run directory {self.path} is in use by this process already.")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / "run.lock", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                self._claim(descriptor, resume)
            except BaseException:
                os.close(descriptor)
                raise
        except OSError as error:
            raise ConfigError(f"Run directory {self.path} can't be written: {error}.") from error
        self._descriptor = descriptor
        _open_here.add(self._identity)

    def refuse_what_open_would(self, resume: bool) -> None:
        """Says beforehand what `open` would refuse of a run that is here; nothing is touched, nor locked.

        Raises:
            ConfigError: As `open`, of a directory that is in use or holds a run.
        """
        with suppress(OSError):
            descriptor = os.open(self.path / "run.lock", os.O_RDWR)
            try:
                if _is_locked(descriptor):
                    raise self._in_use(descriptor)
            finally:
                os.close(descriptor)
        self._require_free(resume)

    def close(self) -> None:
        """Gives the lock back; a second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            _open_here.discard(self._identity)

    def write_config(self, config: dict[str, Any]) -> None:
        """Writes `config.json`, durably.

        Raises:
            ConfigError: The file can't be written, or `config` holds what JSON can't.
        """
        try:
            write_json_durably(self.config_file, config)
        except (OSError, TypeError, ValueError) as error:
            raise ConfigError(f"{self.config_file} can't be written: {error}.") from error

    def write_outcome(self, outcome: Outcome) -> None:
        """Writes `outcome`, durably; what is there already stays where the disk refuses."""
        with suppress(OSError):
            write_durably(self.outcome_file, lambda temporary: temporary.write_text(f"{outcome}\n"))

    def read_outcome(self) -> Outcome | None:
        """How the run stands; None where it has not begun. "running" also where it died."""
        try:
            word = self.outcome_file.read_text().strip()
        except (OSError, ValueError):
            return None
        return next((outcome for outcome in get_args(Outcome) if outcome == word), None)

    def add_job(self, job: str) -> None:
        """Notes a batch job that was submitted for the run."""
        with self.jobs_file.open("a") as file:
            file.write(f"{job}\n")

    def is_in_use(self) -> bool:
        """Whether a process has the directory open, as far as locks tell from this machine."""
        if self._identity in _open_here:
            return True
        try:
            descriptor = os.open(self.path / "run.lock", os.O_RDWR)
        except OSError:
            return False
        try:
            return _is_locked(descriptor)
        except OSError:
            return False
        finally:
            os.close(descriptor)

    def read_jobs(self) -> list[str]:
        """Ids of the run's batch jobs, each once, oldest first."""
        try:
            lines = self.jobs_file.read_text().split()
        except (OSError, ValueError):
            return []
        return list(dict.fromkeys(line for line in lines if line.replace("_", "").isdigit()))

    def read_config(self) -> dict[str, Any]:
        """Reads `config.json`.

        Raises:
            ConfigError: The file is missing, or holds no JSON object.
        """
        try:
            config = json.loads(self.config_file.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{self.config_file} can't be read: {error}.") from error
        if not isinstance(config, dict):
            raise ConfigError(f"{self.config_file} holds a {type(config).__name__}, expected a JSON object.")
        return config

    def _claim(self, descriptor: int, resume: bool) -> None:
        self._lock(descriptor)
        self._require_free(resume)
        with tempfile.TemporaryFile(dir=self.path):
            pass  # the lock file may be writable in a directory that is not
        self.checkpoints.mkdir(exist_ok=True)
        holder = json.dumps(_this_process()).encode()
        os.pwrite(descriptor, holder, 0)
        os.ftruncate(descriptor, len(holder))

    def _require_free(self, resume: bool) -> None:
        if self.config_file.exists() and not resume:
            raise ConfigError(f"Run directory {self.path} holds a run: give --resume, or another --run-dir.")

    def _in_use(self, descriptor: int) -> ConfigError:
        return ConfigError(f"Run directory {self.path} is in use by {_holder(descriptor)}.")

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise self._in_use(descriptor) from error
            if error.errno not in _NO_LOCKS_HERE:
                raise
            message = f"Run directory {self.path} can't be locked here: nothing keeps a second run out."
            warnings.warn(message, RuntimeWarning, stacklevel=4)


def default_run_dir(config: TrainConfig) -> Path:
    """Where a run lies whose configuration names no directory: runs/ALGORITHM-ENV-seedS-TIME.

    Of several environments the first is named, and how many there are beside it.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    first, *others = config.env_ids
    env = first.replace("/", "_") + (f"+{len(others)}" if others else "")
    return Path("runs") / f"{config.algorithm}-{env}-seed{config.seed}-{stamp}"


def _is_locked(descriptor: int) -> bool:
    """Whether another process has a file locked; asks without locking it, which could keep that process out."""
    # struct flock of Linux: type, whence, start, length, pid.
    answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    return struct.unpack("hhqqi4x", answer)[0] != fcntl.F_UNLCK


def _this_process() -> dict[str, Any]:
    return {"job": os.environ.get("SLURM_JOB_ID"), "host": socket.gethostname(), "pid": os.getpid()}


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        job = f" (job {holder['job']})" if holder["job"] else ""
        return f"pid {holder['pid']} on host {holder['host']}{job}"
    except (OSError, ValueError, TypeError, KeyError):  # it has the lock, but has not said yet who it is
        return "another process"
