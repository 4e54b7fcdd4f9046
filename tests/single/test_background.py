"""What is written in the background: one task at a time, no error lost, no process that ends before it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hpcrl.storage.background import Background


def test_the_caller_goes_on_and_can_wait() -> None:
    background, may_end, done = Background(), threading.Event(), list[str]()

    def task() -> None:
        may_end.wait()
        done.append(threading.current_thread().name)

    assert background.is_over and background.wait() == 0
    background.begin(task)
    assert not background.is_over and not done
    with pytest.raises(AssertionError, match="under way"):
        background.begin(task)
    may_end.set()
    assert background.wait() > 0
    assert done != [threading.current_thread().name] and len(done) == 1
    background.begin(task)
    background.close()
    assert len(done) == 2 and background.is_over


def test_an_error_comes_to_whoever_waits_and_only_once() -> None:
    background = Background()

    def task() -> None:
        raise KeyError("lost?")

    background.begin(task)
    with pytest.raises(KeyError, match="lost"):
        background.wait()
    assert background.wait() == 0
    background.close()


def test_a_wait_that_a_signal_ends_forgets_no_task() -> None:
    background, may_end = Background(), threading.Event()
    background.begin(lambda: may_end.wait() and None)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            background.wait()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not background.is_over
    may_end.set()
    assert background.wait() > 0
    background.close()


_ENDS = """
import sys, time
from pathlib import Path
from hpcrl.storage.background import Background
Background().begin(lambda: (time.sleep(0.2), Path(sys.argv[1]).write_text("whole")))
{end}
"""


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "raise RuntimeError"])
def test_a_process_that_ends_waits(tmp_path: Path, end: str) -> None:
    subprocess.run(
        [sys.executable, "-c", _ENDS.format(end=end), tmp_path / "x"], stderr=subprocess.DEVNULL, check=False
    )
    assert (tmp_path / "x").read_text() == "whole"
