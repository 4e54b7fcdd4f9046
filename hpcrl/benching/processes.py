"""The same work in several processes at once: two cores may be worth less than twice one."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from typing import Any

_barrier: Any = None


def on_every_core(work: Callable[..., Any], arguments: Sequence[Any], processes: int) -> list[Any]:
    """What `work(*arguments)` returns in each of the processes, which begin together."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    # A terminal's Ctrl-C reaches them too, and is for this process alone, which ends them.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        pool = context.Pool(processes, _remember, (barrier,))
    finally:
        signal.signal(signal.SIGINT, before)
    with pool:
        return pool.starmap(_work, [(work, arguments)] * processes, chunksize=1)


def _remember(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _work(work: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    _barrier.wait(60)
    return work(*arguments)
