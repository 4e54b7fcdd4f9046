"""What may fail or hang on one rank alone: tried while the main thread waits politely, then agreed on by all."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, NamedTuple, TypeVar

from hpcrl.activity import Phase
from hpcrl.cluster.collectives import broadcast, gather
from hpcrl.cluster.mpi import Comm
from hpcrl.cluster.waiting import Waiter
from hpcrl.errors import HpcrlError

T = TypeVar("T")

#: The place in the source that some libraries put before a message.
_SOURCE = re.compile(r"^\[[^]]*:\d+\]\s*")


class Attempt(NamedTuple, Generic[T]):
    """What came of an attempt: a value, or what was in its way as part of a sentence."""

    value: T | None
    trouble: str = ""


def attempt(function: Callable[[], T], waiter: Waiter, limit_s: float) -> Attempt[T]:
    """Call what blocks, in a thread of its own, and wait politely for at most `limit_s` seconds. Local.

    Args:
        function: must not call MPI. Where it takes longer its thread is left to itself, and does not keep the process.
    """
    done: list[Attempt[T]] = []

    def call() -> None:
        try:
            done.append(Attempt(function()))
        except Exception as error:
            done.append(Attempt(None, in_one_sentence(error)))

    threading.Thread(target=call, name="hpcrl-attempt", daemon=True).start()
    end = time.monotonic() + limit_s
    # Not WAITING: where all ranks do that, they are taken for a deadlock.
    waiter.until(lambda: bool(done) or time.monotonic() > end, Phase.STARTING)
    return done[0] if done else Attempt(None, f"no answer within {limit_s:g} s")


def in_one_sentence(error: BaseException) -> str:
    """The first sentence of a message that may have many lines, without a full stop; the error's name without one."""
    line = next(iter(str(error).splitlines()), "")
    return _SOURCE.sub("", line).partition(". ")[0].rstrip(". ") or type(error).__name__


def everyones(comm: Comm, value: T, waiter: Waiter) -> list[T]:
    """The values of all ranks, in rank order, on every rank. Collective over `comm`."""
    return broadcast(comm, gather(comm, value, waiter), waiter)


def first_trouble(comm: Comm, trouble: str, waiter: Waiter) -> str:
    """The trouble of the first learner that has any, with its number; the same on all, empty where none has any.

    Collective over `comm`.
    """
    troubles = everyones(comm, trouble, waiter)
    return next((f"learner {learner}: {text}" for learner, text in enumerate(troubles) if text), "")


@contextmanager
def time_limit(waiter: Waiter, limit_s: float, error: HpcrlError) -> Iterator[None]:
    """Raise `error` from a wait that `limit_s` seconds are over in; the phase is then the one before. Local."""
    watch, phase, end = waiter.watch, waiter.activity.phase, time.monotonic() + limit_s

    def watch_the_clock() -> None:
        watch()
        if time.monotonic() > end:
            raise error

    waiter.watch = watch_the_clock
    try:
        yield
    finally:
        waiter.watch = watch
        waiter.activity.enter(phase)
