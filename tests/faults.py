"""hpcrl with a planted fault: `python -m tests.faults ROLE:FAULT@ROUND train ...`.

ROLE is `actor` (the first rank that only acts), `learner`, or a rank number; FAULT is raise, exit, kill, stop, sleep.
`RANK:slow@FACTOR` makes every unroll of an actor take FACTOR times as long, by sleeping.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from hpcrl.commands.main import main
from hpcrl.roles.actor import Actor, ActorRank
from hpcrl.roles.learner import Learner


def _raise() -> None:
    raise RuntimeError("a planted fault")


FAULTS: dict[str, Callable[[], Any]] = {
    "raise": _raise,
    "exit": lambda: os._exit(3),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "sleep": lambda: time.sleep(10_000),
}


def _rank() -> str:
    return os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("PMI_RANK") or "0"


def plant(cls: type, fault: Callable[[], Any], at_round: int, rank: str | None) -> None:
    """Make `cls.advance` commit the fault at a round, on one rank or on the lowest of its role."""
    original = cls.advance  # type: ignore[attr-defined]
    rounds = 0

    def advance(self: Any) -> Any:
        nonlocal rounds
        rounds += 1
        if rounds == at_round and (rank is None or _rank() == rank):
            fault()
        return original(self)

    cls.advance = advance  # type: ignore[attr-defined]


def slow_down(factor: float, rank: str) -> None:
    """Make every unroll of a rank take `factor` times as long."""
    if _rank() != rank:
        return
    original = Actor.fill

    def fill(self: Any, *arguments: Any) -> None:
        start = time.monotonic()
        original(self, *arguments)
        time.sleep((factor - 1) * (time.monotonic() - start))

    Actor.fill = fill  # type: ignore[method-assign]


if __name__ == "__main__":
    role, _, rest = sys.argv[1].partition(":")
    name, _, number = rest.partition("@")
    roles = {"actor": (ActorRank, "1"), "learner": (Learner, "0")}
    if name == "slow":
        slow_down(float(number), role)
    else:
        for cls, rank in [roles[role]] if role in roles else [(ActorRank, role), (Learner, role)]:
            plant(cls, FAULTS[name], int(number), rank)
    sys.exit(main(sys.argv[2:]))
