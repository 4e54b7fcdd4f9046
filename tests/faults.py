"""hpcrl with a planted fault: `python -m tests.faults ROLE:FAULT@ROUND train ...`.

ROLE is `actor` (the first rank that only acts), `learner`, `worker` or `owner` (the lowest of each under a3c), or a
rank number; FAULT is raise, exit, kill, stop, sleep. A round of an owner is one in which it found gradients.
`RANK:slow@FACTOR` makes every unroll of an actor take FACTOR times as long, by sleeping.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from hpcrl.cluster.layout import Layout
from hpcrl.cluster.ranks import Ranks
from hpcrl.commands.main import main


def _raise() -> None:
    raise RuntimeError("a planted fault")


FAULTS: dict[str, Callable[[], Any]] = {
    "raise": _raise,
    "exit": lambda: os._exit(3),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "sleep": lambda: time.sleep(10_000),
}


def own_rank() -> str:
    """This process's rank in the world, as the launcher numbers it."""
    return os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("PMI_RANK") or "0"


def plant(cls: type, fault: Callable[[], Any], at_round: int, is_chosen: Callable[[], bool]) -> None:
    """Make `cls.advance` commit the fault at a round, on the ranks that are chosen then."""
    original = cls.advance  # type: ignore[attr-defined]
    rounds = 0

    def advance(self: Any) -> Any:
        nonlocal rounds
        rounds += 1
        if rounds == at_round and is_chosen():
            fault()
        return original(self)

    cls.advance = advance  # type: ignore[attr-defined]


def plant_in_owner(fault: Callable[[], Any], at_round: int, is_chosen: Callable[[], bool]) -> None:
    """Make an owner of weights commit the fault once it has served so often that something had arrived."""
    from hpcrl.roles.parameter_owner import ParameterOwner

    original = ParameterOwner.serve
    rounds = 0

    def serve(self: ParameterOwner) -> bool:
        nonlocal rounds
        found = original(self)
        rounds += found
        if found and rounds == at_round and is_chosen():
            fault()
        return found

    ParameterOwner.serve = serve  # type: ignore[method-assign]


def _is_lowest_worker() -> Callable[[], bool]:
    """Whether this rank is the first of those that act, once the layout is known."""
    original = Ranks.__init__
    layouts: list[Layout] = []

    def init(self: Ranks, world: Any, layout: Layout, node: Any) -> None:
        layouts.append(layout)
        original(self, world, layout, node)

    Ranks.__init__ = init  # type: ignore[method-assign]
    return lambda: own_rank() == str(layouts[-1].actors[0])


def plant_by_role(role: str, fault: Callable[[], Any], at_round: int) -> None:
    """Plant a fault in what the word or the number on the command line means."""
    from hpcrl.roles.actor import ActorRank
    from hpcrl.roles.async_worker import AsyncWorker
    from hpcrl.roles.learner import Learner

    if role == "owner":
        plant_in_owner(fault, at_round, lambda: own_rank() == "0")
    elif role == "worker":
        plant(AsyncWorker, fault, at_round, _is_lowest_worker())
    elif role in ("actor", "learner"):
        cls, rank = {"actor": (ActorRank, "1"), "learner": (Learner, "0")}[role]
        plant(cls, fault, at_round, lambda: own_rank() == rank)
    else:
        for cls in (ActorRank, Learner, AsyncWorker):
            plant(cls, fault, at_round, lambda: own_rank() == role)
        plant_in_owner(fault, at_round, lambda: own_rank() == role)


def slow_down(factor: float, rank: str) -> None:
    """Make every unroll of a rank take `factor` times as long."""
    if own_rank() != rank:
        return
    from hpcrl.roles.actor import Actor

    original = Actor.fill

    def fill(self: Any, *arguments: Any) -> None:
        start = time.monotonic()
        original(self, *arguments)
        time.sleep((factor - 1) * (time.monotonic() - start))

    Actor.fill = fill  # type: ignore[method-assign]


def plant_as_told(told: str) -> None:
    """Plant the fault that a first argument names."""
    role, _, rest = told.partition(":")
    name, _, number = rest.partition("@")
    if name == "slow":
        slow_down(float(number), role)
    else:
        plant_by_role(role, FAULTS[name], int(number))


if __name__ == "__main__":
    plant_as_told(sys.argv.pop(1))
    sys.exit(main())
