"""The same work in several processes at once: two cores may be worth less than twice one."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from typing import Any

_barrier: Any = None


def on_every_core(work: Callable[..., Any], arguments: Sequence[Any], processes: int) -> list[Any]:
    """What `work(*arguments)` returns in each of the processes, which begin together."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    with context.Pool(processes, _remember, (barrier,)) as pool:
        return pool.starmap(_work, [(work, arguments)] * processes, chunksize=1)


def _remember(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _work(work: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    _barrier.wait(60)
    return work(*arguments)
