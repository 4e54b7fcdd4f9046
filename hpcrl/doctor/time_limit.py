"""Ends a process that hangs, wherever it hangs, and says in which check."""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import socket
import time
from contextlib import suppress
from types import TracebackType

_AFTERWARDS_S = 1.0
_LONGEST_NAME = 4096


class TimeLimit:
    """A limit to what happens inside `with`; then this process ends with status 1.

    MPI may hang where no Python thread gets a turn (in MPI_Init). So the sentence comes from a child process, forked
    before MPI and torch are loaded, and the end from a thread that needs no interpreter.

    Args:
        seconds: until the sentence; the end is a second later.
        speaks: this process says the sentence whatever it is at, on standard output.
    """

    def __init__(self, seconds: float, speaks: bool) -> None:
        self._seconds = seconds
        self._speaks = speaks

    def __enter__(self) -> TimeLimit:
        self._nowhere = open(os.devnull, "w")  # noqa: PTH123 (open as long as the thread may write)
        faulthandler.dump_traceback_later(self._seconds + _AFTERWARDS_S, exit=True, file=self._nowhere)
        reader, self._pipe = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            os.close(self._pipe)
            _watch(reader, self._seconds, self._speaks)
        os.close(reader)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._nowhere.close()
        os.close(self._pipe)
        os.waitpid(self._child, 0)

    def enter(self, check: str, alone: bool = False) -> None:
        """From here on it is this check that hangs; where a rank is `alone` with it, it says so itself. Local."""
        # The child may have spoken its last words already.
        with suppress(BrokenPipeError):
            os.write(self._pipe, f"{'alone' if alone else ''}\t{check}\n".encode())


def _watch(reader: int, seconds: float, speaks: bool) -> None:
    """The child: waits for the end of the pipe, or of the time. Does not return."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        end, alone, check = time.monotonic() + seconds, "", "start"
        while select.select([reader], [], [], max(0.0, end - time.monotonic()))[0]:
            words = os.read(reader, _LONGEST_NAME)
            if not words:
                os._exit(0)
            alone, _, check = words.decode().split("\n")[-2].partition("\t")
        if speaks or alone:
            line = f"{'WRONG':6} {check}: not over after {seconds:g} s on {socket.gethostname()}, so this ends here\n"
            os.write(1, line.encode())
    finally:
        os._exit(0)
