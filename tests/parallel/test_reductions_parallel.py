"""Sums over real learners: the same bits by every way through MPI, process groups, and learners that vanish."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hpcrl.activity import Activity
from hpcrl.cluster.launch import launcher_command, rank_environment
from hpcrl.cluster.waiting import Waiter
from hpcrl.errors import ConfigError
from tests.commands import run
from tests.hosts import run_on_hosts, why_not

if TYPE_CHECKING:
    from torch.distributed import TCPStore

    from hpcrl.cluster.mpi import Comm
    from hpcrl.cluster.process_group import Group

_CPU = torch.device("cpu")


def gloo_group(store: TCPStore, learner: int, learners: int, device: torch.device) -> Group:
    """In place of NCCL's."""
    from torch.distributed import ProcessGroupGloo

    assert device.type == "cpu"
    options = ProcessGroupGloo._Options()
    options._devices = [ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    options._timeout = timedelta(seconds=100)
    return ProcessGroupGloo(store, learner, learners, options)  # type: ignore[no-any-return]


def _numbers(rng: np.random.Generator, size: int, comm: Comm) -> Tensor:
    """Where the order of a sum shows; zeros on a learner that has no data, if there are others."""
    vector = torch.from_numpy(rng.standard_normal(size, np.float32) * np.float32(10) ** rng.integers(-3, 4, size))
    return vector.float() * (0 if comm.rank == 1 else 1)


@pytest.mark.mpi(ranks=(1, 2, 3), timeout=120)
def test_staged_sums_have_the_bits_of_plain_ones_under_every_timing() -> None:
    from hpcrl.cluster.mpi import world
    from hpcrl.cluster.reductions import CHUNK_BYTES, HostReduction
    from hpcrl.cluster.staging import StagedReduction
    from tests.late_copies import LateCopies

    comm, waiter = world(), Waiter(Activity())
    chunk, rng, together = CHUNK_BYTES // 4, np.random.default_rng([7, comm.rank]), np.random.default_rng(5)
    plain, staged = HostReduction(comm, waiter), StagedReduction(comm, waiter, LateCopies(rng))
    for size in (0, 1, chunk - 1, chunk, chunk + 1, 6 * chunk + 5, *together.integers(1, 8 * chunk, 3)):
        vector = _numbers(rng, int(size), comm)
        expected, mixed = vector.clone(), vector.clone()
        plain.sum(expected)
        staged.begin(vector)
        if comm.rank != 1:
            for start in sorted(rng.integers(0, size + 1, 4), reverse=True):
                staged.filled(int(start))
        staged.finish()
        assert torch.equal(vector, expected)
        # Learners need not all have a device.
        (plain if comm.rank == 0 else staged).sum(mixed)
        assert torch.equal(mixed, expected)


@pytest.mark.mpi(ranks=(2,), timeout=60)
def test_a_short_wait_leaves_the_core_to_others_where_ranks_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcrl.cluster.affinity import are_crowded
    from hpcrl.cluster.mpi import world
    from hpcrl.cluster.reductions import HostReduction

    comm, waiter, left = world(), Waiter(Activity()), []
    monkeypatch.setattr("hpcrl.cluster.reductions._EAGER_S", 10.0)
    monkeypatch.setattr("os.sched_yield", lambda: left.append(None))
    for usable, shared in (({0, 1}, False), ({0}, True), ({comm.rank}, False)):
        waiter.is_crowded = are_crowded(comm, frozenset(usable), waiter)
        assert waiter.is_crowded is shared
        left.clear()
        if comm.rank == 1:
            time.sleep(0.01)
        HostReduction(comm, waiter).sum(torch.ones(8))
        assert bool(left) is shared or comm.rank == 1


def _network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(30, 700), nn.Tanh(), nn.Linear(700, 2000), nn.Tanh(), nn.Linear(2000, 2))


@pytest.mark.mpi(ranks=(2, 3), timeout=120)
def test_a_group_sums_what_mpi_sums_and_so_does_backward() -> None:
    from hpcrl.cluster.filling import Filling
    from hpcrl.cluster.mpi import world
    from hpcrl.cluster.process_group import open_group
    from hpcrl.cluster.reductions import HostReduction
    from hpcrl.models.flat import FlatParameters

    comm, waiter = world(), Waiter(Activity())
    rng = np.random.default_rng([3, comm.rank])
    group, trouble = open_group(comm, _CPU, waiter, 30.0, gloo_group, "gloo")
    assert group is not None and not trouble
    for size in (0, 1, 1000, 3 * group.chunk_bytes // 4 + 1):
        vector = _numbers(rng, size, comm)
        expected = vector.clone()
        HostReduction(comm, waiter).sum(expected)
        group.sum(vector)
        # Two numbers have one sum; of three it depends on the order.
        assert torch.equal(vector, expected) if comm.size == 2 else torch.allclose(vector, expected, rtol=1e-4)

    network, rows = _network(), torch.from_numpy(rng.random((4, 30), np.float32))
    flat = FlatParameters(network, 1)
    filling = Filling(list(network.parameters()), group)
    for has_data in (True, comm.rank != 1):
        expected = torch.zeros_like(flat.reduced)
        flat.reduced.zero_()
        flat.tail[:] = float(has_data)
        with filling.summing(flat.reduced):
            if has_data:
                network(rows).square().sum().backward()
        plain = _network()
        if has_data:
            plain(rows).square().sum().backward()
            expected[:-1] = torch.cat([parameter.grad.reshape(-1) for parameter in plain.parameters()])
            expected[-1] = 1
        HostReduction(comm, waiter).sum(expected)
        assert torch.allclose(flat.reduced, expected, rtol=1e-5, atol=1e-5)
    group.close()


@pytest.mark.mpi(ranks=(2,))
def test_a_learner_that_left_its_group_is_one_sentence_for_the_others() -> None:
    from hpcrl.cluster.mpi import world
    from hpcrl.cluster.process_group import open_group
    from hpcrl.cluster.reductions import SumError

    comm, waiter = world(), Waiter(Activity())
    group, _ = open_group(comm, _CPU, waiter, 30.0, gloo_group, "gloo")
    assert group is not None
    if comm.rank == 1:
        group.close()
        del group
    else:
        with pytest.raises(SumError, match=r"^a sum through gloo failed on learner 0 of 2: [^\n]*$"):
            for _ in range(1000):
                group.sum(torch.ones(100_000))
        group.close()
    waiter.request(comm.Ibarrier())


class _Wrong:
    """A group that sums wrongly on one learner, or never."""

    def __init__(self, group: Group, wrong: bool, late: bool) -> None:
        self.group, self.wrong, self.late = group, wrong, late
        self.is_aborted = False

    def abort(self) -> None:
        self.is_aborted = True
        self.group.abort()

    def allreduce(self, tensors: list[Tensor]) -> object:
        from tests.single.test_reductions import Work

        if self.late:
            return Work(done=False)
        work = self.group.allreduce(tensors)
        if self.wrong:
            work.wait()
            tensors[0][0] += 1
        return work


@pytest.mark.mpi(ranks=(2, 3), timeout=120)
def test_a_choice_is_the_same_on_all_learners_and_falls_back_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcrl.cluster import backends
    from hpcrl.cluster.backends import LearnerDevice, choose_reduction
    from hpcrl.cluster.mpi import world

    comm, waiter = world(), Waiter(Activity())

    def choose(asked: str, make: object = gloo_group, limit_s: float = 30.0) -> tuple[str, str]:
        reduction, why = choose_reduction(asked, comm, _CPU, waiter, limit_s, make)  # type: ignore[arg-type]
        vector = torch.ones(300_000)
        reduction.sum(vector)
        assert bool((vector == comm.size).all())
        reduction.close()
        return reduction.name, why

    assert choose("host") == ("MPI", "gradients are summed through MPI: it was asked for")
    assert choose("auto") == ("MPI", "gradients are summed through MPI: learner 0 computes on cpu")
    for asked, why in (("nccl", "learner 0 computes on cpu"), ("best", "one of auto, host, nccl, got 'best'")):
        with pytest.raises(ConfigError, match=why) as caught:
            choose(asked)
        assert caught.value.on_all_ranks

    monkeypatch.setattr(backends, "look_at_device", lambda _: LearnerDevice("cuda", str(comm.rank), True))
    for asked in ("auto", "nccl"):
        assert choose(asked) == ("NCCL", "gradients are summed through NCCL: every learner has a GPU of its own")

    made: list[_Wrong] = []

    def make(fault: str, *arguments: object) -> _Wrong:
        faulty = comm.rank == 1
        made.append(_Wrong(gloo_group(*arguments), faulty and fault == "wrong", faulty and fault == "late"))  # type: ignore[arg-type]
        if faulty and fault == "broken":
            raise RuntimeError("[x.cpp:1] no such fabric. Ask somebody.\nmore")
        return made[-1]

    broken, wrong, late = (partial(make, fault) for fault in ("broken", "wrong", "late"))
    told = "gradients are summed through MPI: "
    assert choose("auto", broken) == ("MPI", f"{told}learner 1: no such fabric")
    assert made[-1].is_aborted or comm.rank == 1
    name, why = choose("auto", wrong)
    assert name == "MPI" and f"{told}the self-test of sums through NCCL failed: learner 1: " in why
    assert "sums of known numbers are wrong" in why and made[-1].is_aborted
    name, why = choose("auto", late, 1.5)
    assert name == "MPI" and "no sum through NCCL within 1.5 s" in why and made[-1].is_aborted
    with pytest.raises(ConfigError, match=r"^gradients can't be summed through NCCL: the self-test") as caught:
        choose("nccl", wrong)
    assert caught.value.on_all_ranks


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 1, reason="no GPU")
@pytest.mark.mpi(ranks=(1,), timeout=120)
def test_a_group_of_nccl_has_what_is_used_of_it() -> None:
    from hpcrl.cluster.mpi import world
    from hpcrl.cluster.process_group import nccl_group
    from hpcrl.cluster.rendezvous import open_store

    waiter, device = Waiter(Activity()), torch.device("cuda", 0)
    store, trouble = open_store(world(), waiter, 30.0)
    assert store is not None, trouble
    group, vector = nccl_group(store, 0, 1, device), torch.arange(1000.0, device=device)
    work = group.allreduce([vector])
    waiter.until(work.is_completed)
    work.wait()
    assert vector.tolist() == list(range(1000))
    group.abort()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")
@pytest.mark.mpi(ranks=(2,), timeout=180)
def test_nccl_is_chosen_where_every_learner_has_a_gpu() -> None:
    from hpcrl.cluster.backends import choose_reduction
    from hpcrl.cluster.mpi import world

    comm, waiter = world(), Waiter(Activity())
    device = torch.device("cuda", comm.rank)
    for asked, name in (("auto", "NCCL"), ("host", "MPI through host memory")):
        reduction, _ = choose_reduction(asked, comm, device, waiter)
        assert reduction.name == name
        vector = torch.full((5_000_000,), 1.5, device=device)
        reduction.sum(vector)
        assert bool((vector == 3).all())
        reduction.close()


@pytest.mark.mpi(ranks=(2,))
def test_a_store_is_shared_or_refused_on_all_learners(monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcrl.cluster import rendezvous
    from hpcrl.cluster.mpi import world

    comm, waiter = world(), Waiter(Activity())
    store, trouble = rendezvous.open_store(comm, waiter, 20.0)
    assert store is not None and not trouble
    store.set(f"from-{comm.rank}", "x")
    assert store.get(f"from-{1 - comm.rank}") == b"x"
    waiter.request(comm.Ibarrier())

    # Nobody listens at another address of the loopback.
    monkeypatch.setattr(rendezvous, "addresses_of_first", lambda _: ["127.0.0.2"])
    store, trouble = rendezvous.open_store(comm, waiter, 5.0)
    assert store is None
    assert trouble.startswith("learner 1: the first learner's store can't be reached at port")


_ON_HOSTS = """
from hpcrl.activity import Activity
from hpcrl.cluster.mpi import world
from hpcrl.cluster.rendezvous import open_store
from hpcrl.cluster.waiting import Waiter

comm, waiter = world(), Waiter(Activity())
store, trouble = open_store(comm, waiter, 20.0)
assert store is not None, trouble
store.set(f"from-{comm.rank}", str(comm.rank))
assert [store.get(f"from-{rank}") for rank in range(comm.size)] == [b"0", b"1", b"2"]
waiter.request(comm.Ibarrier())
print("shared", flush=True)
"""


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
@pytest.mark.parametrize("nameless", [False, True])
def test_a_store_is_found_from_other_hosts(nameless: bool) -> None:
    """By name, and where the other host doesn't know the name, by the address that packets leave from."""
    script = _ON_HOSTS
    if nameless:
        script = "import hpcrl.cluster.rendezvous as r; from mpi4py import MPI; old = r.own_place\n" + script.replace(
            "comm, waiter =", "r.own_place = lambda: _renamed(old()); comm, waiter ="
        )
        script = (
            "def _renamed(place):\n"
            "    return place._replace(host='unknown.invalid') if place.host == 'left' else place\n" + script
        )
    done = run_on_hosts([sys.executable, "-c", script], {"left": 1, "right": 2}, timeout=60, env=_paths())
    assert done.returncode == 0, done.stderr
    assert done.stdout == "shared\n" * 3


def _paths() -> dict[str, str]:
    return {"PYTHONPATH": str(Path(__file__).parents[2])}


_VANISH = """
import os, signal, sys, time
import torch
from hpcrl.activity import Activity
from hpcrl.cluster.failures import ending_the_job
from hpcrl.cluster.heartbeats import Heartbeats
from hpcrl.cluster.layout import plan_layout
from hpcrl.cluster.mpi import world
from hpcrl.cluster.process_group import open_group
from hpcrl.cluster.ranks import Ranks, split_nodes
from hpcrl.cluster.reductions import HostReduction
from hpcrl.cluster.staging import StagedReduction
from hpcrl.cluster.waiting import Waiter
from tests.late_copies import LateCopies
from tests.parallel.test_reductions_parallel import gloo_group
import numpy as np

way, how = sys.argv[1:]
comm, activity = world(), Activity()
node, nodes = split_nodes(comm)
ranks = Ranks(comm, plan_layout(nodes, "auto", "colocated", comm.size), node)
waiter = Waiter(activity)
waiter.watch = Heartbeats(ranks, activity, 3.0).watch
learners = ranks.learners
if way == "group":
    reduction = open_group(learners, torch.device("cpu"), waiter, 30.0, gloo_group, "gloo").value
else:
    reduction = StagedReduction(learners, waiter, LateCopies(np.random.default_rng(comm.rank)))
with ending_the_job(comm):
    try:
        for number in range(1000):
            if number == 20 and comm.rank == 1:
                os.kill(os.getpid(), getattr(signal, how))
            reduction.sum(torch.ones(600_000))
    finally:
        begin = time.monotonic()
        reduction.close()
        print(f"closed after {time.monotonic() - begin:.1f} s", file=sys.stderr, flush=True)
"""


@pytest.mark.parametrize(("way", "how"), [("staged", "SIGKILL"), ("group", "SIGKILL"), ("group", "SIGSTOP")])
def test_a_learner_that_vanishes_in_a_sum_ends_the_job(way: str, how: str) -> None:
    command = launcher_command(3, [sys.executable, "-c", _VANISH, way, how])
    done = run(command, timeout=60, environment=rank_environment({**os.environ, **_paths()}))
    assert done.returncode not in (0, None)
    if how == "SIGSTOP":
        assert "hpcrl: [rank 0] rank 1 gave no sign of life for" in done.stderr
        assert "closed after " in done.stderr
