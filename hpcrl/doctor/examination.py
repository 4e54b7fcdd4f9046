"""All checks in their order: facts are gathered over the ranks, and rank 0 judges them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcrl.activity import Activity
from hpcrl.cluster.clocks import clock_offsets
from hpcrl.cluster.collectives import broadcast, gather
from hpcrl.cluster.library import cuda_aware, library, library_path
from hpcrl.cluster.mpi import Comm, thread_level
from hpcrl.cluster.ranks import split_nodes
from hpcrl.cluster.waiting import Waiter
from hpcrl.doctor.cores import judge_cores
from hpcrl.doctor.facts import RankFacts, TorchFacts, look_at_rank, look_at_torch
from hpcrl.doctor.finding import Finding
from hpcrl.doctor.gpu_use import judge_gpu_use
from hpcrl.doctor.gpus import judge_gpus, list_gpus
from hpcrl.doctor.library import judge_library, look_at_library
from hpcrl.doctor.links import check_sums, judge_links, measure_links
from hpcrl.doctor.nodes import (
    judge_clocks,
    judge_shared_memory,
    judge_versions,
    judge_visibility,
    see_file,
    shared_memory_space,
)
from hpcrl.doctor.report import exit_status
from hpcrl.doctor.threads import judge_threads
from hpcrl.doctor.time_limit import TimeLimit


class Examination:
    """The checks of one world. Collective over `comm` to make, as is every method.

    Args:
        comm: the world.
        limit: is told which check is under way.
        say: gets every finding as it comes, on rank 0.

    Attributes:
        findings: so far, on rank 0; elsewhere [].
        ranks: what every rank tells of itself, on rank 0; elsewhere [].
        measured: further facts by name, on rank 0.
    """

    def __init__(self, comm: Comm, limit: TimeLimit, say: Callable[[Finding], None]) -> None:
        self._comm, self._limit, self._say = comm, limit, say
        self._waiter = Waiter(Activity())
        self.findings: list[Finding] = []
        self.measured: dict[str, Any] = {}
        limit.enter("nodes")
        _, self._node_of = split_nodes(comm)
        self._is_first = self._node_of[comm.rank] == comm.rank
        limit.enter("gpus of every rank")
        self.ranks: Sequence[RankFacts] = gather(comm, look_at_rank(comm.rank, self._node_of[comm.rank]), self._waiter)

    def add(self, finding: Finding | None) -> None:
        """Keep a finding of rank 0 and say it. Local."""
        if finding is not None and self._comm.rank == 0:
            self.findings.append(finding)
            self._say(finding)

    def run(self, run_dir: Path, environment: Mapping[str, str]) -> None:
        """All checks but the one of the world's size."""
        self._look_at_compute()
        if self._comm.rank == 0:
            aware = cuda_aware()
            mpi = look_at_library(library(), library_path(), thread_level())
            self.measured |= {"mpi": mpi, "cuda_aware": aware}
            self.add(judge_cores(self.ranks, library(), environment))
            self.add(judge_threads(self.ranks))
            self.add(judge_gpus(self.ranks, aware))
            for finding in judge_gpu_use(self.ranks):
                self.add(finding)
            self.add(judge_library(mpi, len(set(self._node_of)), environment))
        self._test_links()
        self._look_at_files(run_dir, environment)
        self._compare_clocks()
        if self._comm.rank == 0:
            self.add(judge_versions(self.ranks))

    def status(self) -> int:
        """The exit status, the same on every rank."""
        return broadcast(self._comm, exit_status(self.findings), self._waiter)

    def _look_at_compute(self) -> None:
        """Torch is loaded by one rank of each situation: a second of a core each."""
        self._limit.enter("cores, threads and gpus")
        firsts: dict[tuple[object, ...], int] = {}
        for rank in self.ranks:
            firsts.setdefault(rank.situation, rank.rank)
        witnesses = broadcast(self._comm, set(firsts.values()), self._waiter)
        torch: TorchFacts | None = None
        listed: tuple[str, ...] = ()
        if self._comm.rank in witnesses:
            self._limit.enter(f"loading torch on rank {self._comm.rank}", alone=True)
            torch = look_at_torch()
        if self._is_first:
            listed = list_gpus()
        self._limit.enter("cores, threads and gpus")
        known = gather(self._comm, (torch, listed), self._waiter)
        self.ranks = [
            replace(rank, torch=known[firsts[rank.situation]][0], listed_gpus=known[rank.node][1])
            for rank in self.ranks
        ]

    def _test_links(self) -> None:
        self._limit.enter("links")
        links = measure_links(
            self._comm, self._node_of, broadcast(self._comm, self._hosts(), self._waiter), self._waiter
        )
        sums = check_sums(self._comm, self._waiter) if self._comm.size > 1 else None
        if self._comm.rank == 0:
            self.measured["links"] = [link._asdict() for link in links]
            for finding in judge_links(links):
                self.add(finding)
            self.add(sums)

    def _look_at_files(self, run_dir: Path, environment: Mapping[str, str]) -> None:
        if self._comm.rank != 0:
            self._look_for_file(None)
            return
        from hpcrl.doctor.files import judge_folder, judge_hdf5, probing

        self._limit.enter(f"writing to {run_dir}")
        with probing(run_dir) as (facts, marker):
            self.measured["run_dir"] = facts
            self.add(judge_folder(facts))
            complaints, spaces = self._look_for_file(marker)
        self.measured["shared_memory"] = spaces
        self.add(judge_visibility(facts.path, complaints))
        self.add(judge_hdf5(facts, environment.get("HDF5_USE_FILE_LOCKING")))
        self.add(judge_shared_memory(self.ranks, spaces))

    def _look_for_file(self, path: Path | None) -> tuple[dict[str, str], dict[int, tuple[int, int] | None]]:
        """Whether the other nodes see rank 0's file, by host, and the space in every node's shared memory."""
        self._limit.enter("files seen by all nodes")
        path = broadcast(self._comm, path, self._waiter)
        complaint, space = None, None
        if self._is_first:
            self._limit.enter(f"looking for {path} on rank {self._comm.rank}", alone=True)
            complaint = see_file(path, str(path)) if path is not None and self._comm.rank > 0 else None
            space = shared_memory_space()
            self._limit.enter("files seen by all nodes")
        found = gather(self._comm, (complaint, space), self._waiter)
        hosts = self._hosts()
        complaints = {hosts[rank]: said for rank, (said, _) in enumerate(found) if said is not None}
        return complaints, {rank: found[rank][1] for rank in sorted(set(self._node_of)) if found}

    def _compare_clocks(self) -> None:
        self._limit.enter("clocks")
        offsets, errors = clock_offsets(self._comm, self._node_of, self._waiter, time.time_ns)
        if self._comm.rank == 0:
            hosts = self._hosts()
            others = sorted(set(self._node_of) - {self._node_of[0]})
            skews = {hosts[node]: (float(offsets[node]) * 1e-9, float(errors[node]) * 1e-9) for node in others}
            self.measured["clocks"] = skews
            self.add(judge_clocks(skews))

    def _hosts(self) -> list[str]:
        return [rank.host for rank in self.ranks]
