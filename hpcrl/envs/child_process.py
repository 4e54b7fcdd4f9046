"""The process of an isolated environment, seen from its rank: started, asked, and ended."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from hpcrl.envs.child_channel import START, Channel, Message, Start

#: Variables by which a process takes itself for a rank, or an environment's own MPI would.
LAUNCHER_PREFIXES = ("OMPI_", "OPAL_", "PMIX_", "PMI_", "PRTE_", "HYDRA_", "MPIR_", "MPIEXEC_", "MPI4PY_", "SLURM_")
_LOOK_EVERY_S = 1.0
_DUMP_S = 0.1
_LONGEST_DUMP = 1 << 16


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables of a child: it is no rank, and finds modules where this process does."""
    ours = {name: value for name, value in environment.items() if not name.startswith(LAUNCHER_PREFIXES)}
    return ours | {"PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)}


class Ending(NamedTuple):
    """How a child ended, and where it crashed or hung as far as it could tell, else ""."""

    how: str
    traceback: str


class Child:
    """The process of one environment. Making it does not wait until it runs."""

    def __init__(self, start: Start) -> None:
        first = Message(START, body=pickle.dumps(start, 5))
        ours, its = socket.socketpair()
        self.memory_file, self._dump_file = _anonymous_file("observations"), _anonymous_file("traceback")
        fds = (its.fileno(), self.memory_file, self._dump_file)
        arguments = map(str, (*fds, os.getpid()))
        # A group of its own: Ctrl-C and a launcher's signals are meant for the rank, and what the environment starts
        # in its turn can be ended together with it.
        with its:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "hpcrl.envs.isolated_child", *arguments],
                env=child_environment(os.environ),
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                process_group=0,
            )
        self._channel = Channel(ours)
        self.send(first)

    def send(self, message: Message) -> None:
        """Send it; where the child is dead, `receive` will tell."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._channel.send(message)

    def receive(self, deadline: float) -> Message:
        """Its next message.

        Args:
            deadline: in seconds of time.monotonic.

        Raises:
            TimeoutError: there was none in time.
            EOFError: it is dead, or about to die.
        """
        # Where it forked, somebody else holds its socket open.
        while not self._channel.wait(min(_LOOK_EVERY_S, deadline - time.monotonic())):
            if self._has_ended() and not self._channel.wait(0):
                raise EOFError
            if time.monotonic() >= deadline:
                raise TimeoutError
        return self._channel.receive()

    def _has_ended(self) -> bool:
        """Whether it is dead; it stays unreaped, so that its number and its group's remain its own."""
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None

    @property
    def pid(self) -> int:
        """Its process number."""
        return self._process.pid

    def tell_where(self) -> None:
        """Let it write down where it is, for `end`; in C too."""
        self._process.send_signal(signal.SIGQUIT)
        time.sleep(_DUMP_S)

    def end(self, patience_s: float) -> Ending:
        """End it and its group, after so many seconds to end by itself, and let go of all."""
        give_up = time.monotonic() + patience_s
        while not self._has_ended() and time.monotonic() < give_up:
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        traceback = os.pread(self._dump_file, _LONGEST_DUMP, 0).decode(errors="replace").strip()
        self._channel.close()
        os.close(self.memory_file)
        os.close(self._dump_file)
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
        return Ending(how, traceback)


def _anonymous_file(name: str) -> int:
    """A file that goes with the last process that has it open; in memory, where the system offers that."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(f"hpcrl-{name}")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
