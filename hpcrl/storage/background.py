"""Writing while the caller goes on: one task at a time, in a thread that knows no MPI."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """Runs tasks one after the other in a thread of its own. Local.

    A process that ends waits for the task under way, unless it is killed.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "hpcrl-writer")
        self._task: Future[float] | None = None

    def begin(self, task: Callable[[], None]) -> None:
        """Start a task. The one before must have been waited for, so that its error is not lost."""
        assert self._task is None, "a task is under way, or nobody asked what became of it"
        self._task = self._thread.submit(_timed, task)

    @property
    def is_over(self) -> bool:
        """Whether `wait` would return, or raise, at once."""
        return self._task is None or self._task.done()

    def wait(self) -> float:
        """Return once no task is under way: the seconds that it took, 0 where there was none.

        Raises what the task did. Signal handlers run meanwhile.
        """
        if (task := self._task) is None:
            return 0.0
        try:
            return task.result()
        finally:
            # Not where a signal handler raised meanwhile.
            if task.done():
                self._task = None

    def close(self) -> None:
        """End the thread, once no task is under way; what that one raised is lost unless `wait` asks."""
        self._thread.shutdown()


def _timed(task: Callable[[], None]) -> float:
    begin = time.monotonic()
    task()
    return time.monotonic() - begin
