"""Cores of its own for every rank: sets the CPU mask of this process, and puts the former one back."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from hpcrl.cluster.collectives import broadcast, gather, on_root
from hpcrl.cluster.cores import Need, describe_cores, plan_cores, read_cores
from hpcrl.cluster.launch import promised_size
from hpcrl.cluster.mpi import Comm
from hpcrl.cluster.ranks import Ranks
from hpcrl.cluster.waiting import Waiter
from hpcrl.errors import ConfigError

_THREADS = Path("/proc/self/task")


class Affinity:
    """The CPUs of this process. Local.

    Attributes:
        started_with: CPUs that it could use at first.
        note: what a person should know of the cores of this rank's node, one line; None where that is nothing.
    """

    def __init__(self) -> None:
        self.started_with = usable_cpus()
        self.note: str | None = None
        self._former: dict[int, set[int]] = {}

    def pin(self, cpus: frozenset[int]) -> str | None:
        """Keep all threads, those to come too, to these CPUs; why that can't be, as what follows "where"."""
        try:
            for thread in _threads():
                with suppress(ProcessLookupError):
                    self._former[thread] = os.sched_getaffinity(thread)
            _set_masks(lambda _thread: cpus)
        except OSError as error:
            # What refuses a mask may refuse the former one as well.
            with suppress(OSError):
                self.release()
            return f"the system refuses a CPU mask ({error.strerror})"
        return None

    def release(self) -> None:
        """Give all threads the CPUs that they had; those begun since, what the process started with."""
        former, self._former = self._former, {}
        if former:
            _set_masks(lambda thread: former.get(thread, self.started_with))


def usable_cpus() -> frozenset[int]:
    """CPUs that this process may use; all of the machine where the system knows no masks. Local."""
    if not hasattr(os, "sched_getaffinity"):
        return frozenset(range(os.cpu_count() or 1))
    return frozenset(os.sched_getaffinity(0))


def _threads() -> list[int]:
    return [int(entry.name) for entry in _THREADS.iterdir()]


def _set_masks(mask_of: Callable[[int], frozenset[int] | set[int]]) -> None:
    # A thread that one not yet reached began has its mask; the second pass finds it.
    for _ in range(2):
        for thread in _threads():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(thread, mask_of(thread))


def settle_cores(
    ranks: Ranks,
    mode: Literal["auto", "on", "off"],
    learner_cores: int,
    environment: Mapping[str, str],
    waiter: Waiter,
) -> Affinity:
    """Give every rank cores of its own where `mode` wants it (see `hpcrl.config.TrainConfig`).

    Collective over the world.

    Args:
        waiter: gets to know whether ranks of this node share CPUs.

    Raises:
        ConfigError: mode is "on", and on a node it can't be; on every rank.
    """
    affinity = Affinity()
    waiter.is_crowded = are_crowded(ranks.node, affinity.started_with, waiter)
    if mode == "off" or (mode == "auto" and ranks.size == 1):
        return affinity
    need = Need(affinity.started_with, learner_cores if ranks.is_learner else 1, ranks.learner)
    needs = gather(ranks.node, need, waiter)
    plan = _plan_node(needs, mode, ranks.size, environment) if ranks.node.rank == 0 else ""
    plan = broadcast(ranks.node, plan, waiter)
    reason = plan if isinstance(plan, str) else affinity.pin(plan[ranks.node.rank])
    reasons = gather(ranks.world, reason and f"on {os.uname().nodename}, where {reason}", waiter)
    node_of = ranks.layout.node_of
    try:
        failed = on_root(ranks.world, lambda: _require(mode, node_of, reasons), waiter)
    except ConfigError:
        affinity.release()
        raise
    own_node = node_of[ranks.rank]
    notes = []
    if own_node in failed:
        # Another rank of the node may have no mask, and would run on the cores of this one.
        affinity.release()
    elif not isinstance(plan, str):
        of_node = [rank for rank in range(ranks.size) if node_of[rank] == own_node]
        where = f"on {os.uname().nodename} " if len(set(node_of)) > 1 else ""
        notes.append(where + describe_cores(dict(zip(of_node, plan, strict=True))))
    if failed and "SLURM_JOB_ID" in environment:
        notes.append(f"not pinned {failed.get(own_node) or next(iter(failed.values()))}")
    if notes:
        affinity.note = f"cores: {'; '.join(notes)}"
    return affinity


def are_crowded(node: Comm, usable: frozenset[int], waiter: Waiter) -> bool:
    """Whether the ranks of a node are more than the CPUs that they may use together. Collective over them."""
    reach = gather(node, usable, waiter)
    return broadcast(node, node.size > len(frozenset().union(*reach)), waiter)


def _plan_node(
    needs: Sequence[Need], mode: Literal["auto", "on"], num_ranks: int, environment: Mapping[str, str]
) -> list[frozenset[int]] | str:
    """CPUs for every rank of this node, or why there are none. Local, on the first of them."""
    if not hasattr(os, "sched_setaffinity"):
        return "the system knows no CPU masks"
    if mode == "auto" and (reason := shared_cpus(environment, num_ranks, len(needs[0].allowed))):
        return reason
    return plan_cores(needs, read_cores(needs[0].allowed))


def shared_cpus(environment: Mapping[str, str], num_ranks: int, num_cpus: int) -> str | None:
    """Why others may be at work on the CPUs of this node's ranks, as what follows "where"; None where nobody is.

    Nobody is where the ranks are one whole step of Slurm's that is confined to what it got: two runs side by side in
    one job would choose the same cores.

    Args:
        environment: of a rank.
        num_ranks: in the world.
        num_cpus: that the ranks of this node may use.
    """
    step = promised_size(None, {name: value for name, value in environment.items() if name.startswith("SLURM_")})
    if step is None or step.size != num_ranks:
        return "others may use the same CPUs, since the ranks are no step of srun"
    got = environment.get("SLURM_CPUS_ON_NODE", "")
    if not got.isdigit():
        return "others may use the same CPUs, since Slurm does not say how many the step got"
    if num_cpus > int(got):
        return f"others may use the same CPUs, since the ranks may use {num_cpus} and Slurm gave the step {got}"
    return None


def _require(mode: Literal["auto", "on"], node_of: Sequence[int], reasons: Sequence[str | None]) -> dict[int, str]:
    """Why there are no cores on a node, by node; ConfigError where there must be. Local, on rank 0."""
    failed = {node: reason for node, reason in zip(node_of, reasons, strict=True) if reason is not None}
    if failed and mode == "on":
        raise ConfigError(f"--pin-cores on is not possible {next(iter(failed.values()))}")
    return failed
