"""Signals ask for something; the training loop answers at its next update. Handlers only set flags."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType

#: Set by the process that starts ranks: the file in which it says what asked it to stop, before it sends SIGUSR1.
ASKED_VARIABLE = "HPCRL_ASKED"
#: Exit status of a command that was stopped before its end.
INTERRUPTED = 130


def name_of(number: int) -> str:
    """What a person calls a signal: Ctrl-C, else its name."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def _what_asked(number: int) -> str:
    """What a signal stands for: SIGUSR1 of the process that started this rank, for what that process got."""
    if number != signal.SIGUSR1 or ASKED_VARIABLE not in os.environ:
        return name_of(number)
    try:
        return Path(os.environ[ASKED_VARIABLE]).read_text() or name_of(number)
    except OSError:  # not sent by that process
        return name_of(number)


class Requests:
    """What was asked of this process by signal: to stop (SIGINT, SIGTERM, SIGHUP, SIGUSR1) or to save (SIGUSR2)."""

    def __init__(self) -> None:
        self.stop: str | None = None
        self.save = False

    def install(self) -> None:
        """Handle the signals from now on; a second SIGINT or SIGTERM kills as it would without us.

        To be called again once MPI is initialised, which may put handlers of its own over ours.
        """
        if self.stop is None:
            signal.signal(signal.SIGINT, self._ask_to_stop)
            signal.signal(signal.SIGTERM, self._ask_to_stop)
        signal.signal(signal.SIGUSR1, self._ask_to_stop)
        signal.signal(signal.SIGUSR2, self._ask_to_save)
        # A terminal that goes away; under nohup it stays ignored.
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else self._ask_to_stop)

    def ignore(self) -> None:
        """The run is over and saved: requests that still come must not turn a good end into a death by signal."""
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)

    def take_save(self) -> bool:
        """Whether a save was asked for since the last call."""
        asked, self.save = self.save, False
        return asked

    def _ask_to_stop(self, number: int, _frame: FrameType | None) -> None:
        self.stop = _what_asked(number)
        if number in (signal.SIGINT, signal.SIGTERM):
            for fatal in (signal.SIGINT, signal.SIGTERM):
                signal.signal(fatal, signal.SIG_DFL)

    def _ask_to_save(self, _number: int, _frame: FrameType | None) -> None:
        self.save = True
