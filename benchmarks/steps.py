"""Runs commands until they end, or until this process is asked to: then they are ended first."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from types import FrameType

from benchmarks.children import CommandFailed

_EVERY_S = 0.05
#: `hpcrl train` answers the first SIGTERM by saving and the second by leaving at once, srun by ending the job step.
_GRACE_S = (3.0, 10.0)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Stopped(Exception):
    """A signal asked this process to stop, and the command that ran has ended."""


class Stop:
    """Whether a signal asked this process to stop (SIGINT, SIGTERM, SIGHUP or SIGUSR1), and which."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def install(self) -> None:
        """Handle the signals from now on. A second one changes nothing: a batch system may send several."""
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._ask)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number)


def run(command: Sequence[str], timeout: float, stop: Stop) -> str:
    """Run a command to its end; what it wrote to stdout.

    Raises:
        CommandFailed: it could not be started, failed or was not over in time; with the last lines of its output.
        Stopped: a signal asked to stop.
    """
    if stop.signal is not None:
        raise Stopped
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )
        except OSError as error:
            raise CommandFailed(f"{' '.join(command)}: {error}") from error
        in_time = _wait(process, timeout, stop)
        _end(process)
        if stop.signal is not None:
            raise Stopped
        out.seek(0), err.seek(0)
        output, errors = out.read(), err.read()
    if process.returncode or not in_time:
        why = f"status {process.returncode}" if in_time else f"not over within {timeout:.0f} s"
        raise CommandFailed(f"{' '.join(command)}: {why}\n{output[-2000:]}\n{errors[-2000:]}")
    return output


def _wait(process: subprocess.Popen, timeout: float, stop: Stop) -> bool:
    """Until the command is over (true), the time is, or a signal asks to stop."""
    end = time.monotonic() + timeout
    while time.monotonic() < end and stop.signal is None:
        try:
            process.wait(_EVERY_S)
        except subprocess.TimeoutExpired:
            continue
        return True
    return process.poll() is not None


def _end(process: subprocess.Popen) -> None:
    """End the command where it still runs: a launcher that is killed may leave its ranks behind, so ask first."""
    for seconds in _GRACE_S:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                continue
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
