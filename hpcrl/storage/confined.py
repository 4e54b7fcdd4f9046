"""Asks a process with limits what files hold, so that one made to harm ends that process and nothing else."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Timer
from typing import Any

#: Bytes that reading a file may take beside what the process has before: a chunk or an array at a time.
MEMORY_BYTES = 2 << 30
#: A megabyte may well unpack to hundreds.
_SECONDS, _SECONDS_PER_MB = 30.0, 2.0
#: A file system may be slower than the processor.
_PATIENCE = 4

Facts = dict[str, Any]


def cpu_seconds(path: Path) -> float:
    """How much CPU time reading all of a file may take."""
    try:
        return _SECONDS + _SECONDS_PER_MB * path.stat().st_size / 1e6
    except OSError:
        return _SECONDS


def inspect_files(paths: Sequence[Path]) -> Iterator[Facts]:
    """What each file holds, as `hpcrl.storage.inspection` tells it, in order; under "error" why that can't be told."""
    done = 0
    while done < len(paths):
        for facts in _ask(paths[done:]):
            yield facts
            done += 1


def _ask(paths: Sequence[Path]) -> Iterator[Facts]:
    """The answers of one process, up to the file that ends it."""
    command = [sys.executable, "-m", "hpcrl.storage.inspection"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdin is not None and process.stdout is not None
            # Who is gone already is found out below.
            with suppress(BrokenPipeError), process.stdin:
                process.stdin.write(json.dumps([str(path) for path in paths]).encode())
            for path in paths:
                seconds = _PATIENCE * cpu_seconds(path)
                with _Deadline(process, seconds) as deadline:
                    line = process.stdout.readline()
                if not line.endswith(b"\n"):
                    reason = f"it gave no answer within {seconds:.0f} s" if deadline.is_over else _end_of(process, path)
                    yield {"path": str(path), "error": f"{path} can't be read: {reason}."}
                    return
                yield json.loads(line)
        finally:
            process.kill()


class _Deadline:
    """Ends a process that is not done in time."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        self.is_over = False
        self._process = process
        self._timer = Timer(seconds, self._end)

    def _end(self) -> None:
        self.is_over = True
        self._process.kill()

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


def _end_of(process: subprocess.Popen[bytes], path: Path) -> str:
    """Why a process left by itself."""
    status = process.wait()
    if status == -signal.SIGXCPU:
        return f"that takes more than {cpu_seconds(path):.0f} s of CPU time"
    if status < 0:
        return f"the process that read it was ended by {signal.Signals(-status).name}"
    return f"the process that read it left with status {status}"
