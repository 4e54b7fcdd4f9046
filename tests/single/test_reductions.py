"""Sums over the learners without learners: chunks, pipelines under every timing, hooks, failures in one sentence."""

from __future__ import annotations

import tests.no_mpi  # noqa: F401

# isort: split
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hpcrl.activity import Activity, Phase
from hpcrl.cluster.attempts import attempt, in_one_sentence, time_limit
from hpcrl.cluster.backends import LearnerDevice, look_at_device, why_not_nccl
from hpcrl.cluster.cuda_copies import CudaCopies
from hpcrl.cluster.filling import Filling
from hpcrl.cluster.process_group import GroupReduction
from hpcrl.cluster.reductions import CHUNK_BYTES, HostReduction, Reduction, SumError, check_vector, chunks
from hpcrl.cluster.rendezvous import Place, addresses_of_first, join
from hpcrl.cluster.staging import StagedReduction
from hpcrl.errors import RankError, ShapeError
from hpcrl.models.flat import FlatParameters
from tests.late_copies import LateCopies

_CHUNK = CHUNK_BYTES // 4
_SIZES = (0, 1, 15, 17, _CHUNK - 1, _CHUNK, _CHUNK + 1, 5 * _CHUNK + 3)
_CPU = torch.device("cpu")


def _waiter(watch: Any = lambda: None) -> Any:
    from hpcrl.cluster.waiting import Waiter

    return Waiter(Activity(), watch)


class Request:
    """Over after some looks, in any order; the sum is there then, and not before."""

    def __init__(self, array: NDArray[np.float32], learners: int, looks: int) -> None:
        self._array, self._learners, self._looks = array, learners, looks

    def Test(self) -> bool:  # noqa: N802
        self._looks -= 1
        if self._looks == 0:
            self._array *= self._learners
        return self._looks <= 0


class Alike:
    """A communicator whose ranks all have the same numbers; it writes down what it is asked, and by whom."""

    def __init__(self, rng: np.random.Generator, size: int = 2) -> None:
        self.size, self.rank = size, 0
        self.messages: list[int] = []
        self._rng = rng

    def Iallreduce(self, _in_place: object, array: NDArray[np.float32]) -> Request:  # noqa: N802
        assert threading.current_thread() is threading.main_thread()
        self.messages.append(array.size)
        return Request(array, self.size, int(self._rng.integers(1, 50)))


class Recorder(Reduction):
    """Sums nothing, and writes down the places from which it may."""

    overlaps = True

    def __init__(self) -> None:
        super().__init__(Alike(np.random.default_rng(0)), _waiter())  # type: ignore[arg-type]
        self.news: list[int] = []
        self.finished = 0

    def filled(self, start: int) -> None:
        self.news.append(start)

    def _start(self, part: slice) -> None: ...

    def _complete(self) -> None:
        self.finished += 1


class Work:
    def __init__(self, done: bool = True, error: Exception | None = None) -> None:
        self.done, self.error = done, error

    def is_completed(self) -> bool:
        return self.done

    def wait(self) -> None:
        if self.error:
            raise self.error


class Group:
    """A process group of one's own."""

    def __init__(self, work: Work, may_end: threading.Event | None = None) -> None:
        self.work, self.may_end = work, may_end
        self.sums: list[int] = []
        self.aborted = False

    def allreduce(self, tensors: list[Tensor]) -> Work:
        self.sums += [tensor.numel() for tensor in tensors]
        return self.work

    def abort(self) -> None:
        if self.may_end:
            self.may_end.wait(20)
        self.aborted = True


# Chunks and guards


def test_chunks_cover_the_vector_from_its_end_and_are_nearly_equal() -> None:
    for size in (*_SIZES, *range(2, 200, 7), 1_693_875):
        for chunk_bytes in (64, 256, CHUNK_BYTES):
            if size * 4 // chunk_bytes > 100_000:
                continue
            parts = chunks(size, chunk_bytes)
            assert [part.stop for part in parts[1:]] == [part.start for part in parts[:-1]]
            assert (parts[0].stop, parts[-1].start) == (size, 0) if size else not parts
            assert all(part.start % 16 == 0 and 0 < 4 * (part.stop - part.start) <= chunk_bytes for part in parts)
            assert len({part.stop - part.start for part in parts[1:]}) <= 1
            assert len(parts) == -(-size * 4 // chunk_bytes) or chunk_bytes < CHUNK_BYTES


@pytest.mark.parametrize(
    "wrong",
    [
        torch.ones(4, dtype=torch.bfloat16),
        torch.ones(4, dtype=torch.float64),
        torch.ones(4, 6).t(),
        torch.ones(8)[::2],
        torch.ones(3, requires_grad=True) * 2,
        torch.ones(3, device="meta"),
    ],
    ids=["bfloat16", "float64", "transposed", "strided", "graph", "device"],
)
@pytest.mark.parametrize("kind", [HostReduction, StagedReduction, GroupReduction])
def test_what_would_be_summed_wrongly_is_refused(wrong: Tensor, kind: type) -> None:
    rng = np.random.default_rng(0)
    more = {StagedReduction: (LateCopies(rng),), GroupReduction: (Group(Work()), _CPU)}.get(kind, ())
    with pytest.raises(ShapeError):
        kind(Alike(rng), _waiter(), *more).sum(wrong)


def test_a_vector_of_another_device_is_named() -> None:
    with pytest.raises(ShapeError, match=r"needs contiguous cuda memory, got strides .* on cpu"):
        check_vector(torch.ones(3), "cuda")
    check_vector(torch.ones(3, requires_grad=True))


# The pipeline


@pytest.mark.parametrize("seed", range(5))
def test_a_staged_sum_calls_mpi_in_one_order_whatever_the_timing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    comm = Alike(rng)
    reduction = StagedReduction(comm, _waiter(), LateCopies(rng))  # type: ignore[arg-type]
    for size in rng.permutation([*_SIZES, *rng.integers(1, 6 * _CHUNK, 6)]):
        vector = torch.arange(int(size), dtype=torch.float32)
        expected = vector * 2
        comm.messages.clear()
        reduction.begin(vector)
        for start in sorted(rng.integers(0, size + 1, 3), reverse=True):
            # Backward of a device runs in a thread of its own, which may not call MPI.
            thread = threading.Thread(target=reduction.filled, args=[int(start)])
            thread.start()
            thread.join()
        assert not comm.messages
        reduction.finish()
        assert torch.equal(vector, expected)
        assert comm.messages == [part.stop - part.start for part in chunks(int(size))]


def test_only_chunks_that_are_filled_to_their_start_leave_early() -> None:
    comm = Alike(np.random.default_rng(1))
    reduction = HostReduction(comm, _waiter())  # type: ignore[arg-type]
    size = 3 * _CHUNK
    reduction.begin(torch.ones(size))
    sent = []
    for start in (size, 2 * _CHUNK + 1, 2 * _CHUNK, 2 * _CHUNK, _CHUNK - 1, 0):
        reduction.filled(start)
        sent.append(len(comm.messages))
    assert sent == [0, 0, 1, 1, 2, 3]
    reduction.finish()
    assert len(comm.messages) == 3


def test_a_learner_that_is_late_is_waited_for_politely() -> None:
    """The first look of the waiter's watch lets the sum end: before it nobody is asked to look after the others."""
    looked: list[bool] = []

    class Late(Request):
        def Test(self) -> bool:  # noqa: N802
            return bool(looked) and super().Test()

    comm, size = Alike(np.random.default_rng(1)), 2 * _CHUNK
    comm.Iallreduce = lambda _in_place, array: Late(array, 2, 1)  # type: ignore[method-assign]
    vector = torch.ones(size)
    HostReduction(comm, _waiter(lambda: looked.append(True))).sum(vector)  # type: ignore[arg-type]
    assert looked and bool((vector == 2).all())


def test_one_learner_sends_nothing() -> None:
    comm = Alike(np.random.default_rng(1), size=1)
    vector = torch.ones(_CHUNK * 2)
    HostReduction(comm, _waiter()).sum(vector)  # type: ignore[arg-type]
    StagedReduction(comm, _waiter(), LateCopies(np.random.default_rng(1))).sum(vector)  # type: ignore[arg-type]
    assert not comm.messages and bool((vector == 1).all())


def test_a_sum_that_waits_in_vain_is_ended_by_the_watch() -> None:
    def stuck() -> None:
        raise RankError("rank 1 gave no sign of life")

    comm = Alike(np.random.default_rng(1))
    comm.Iallreduce = lambda _in_place, array: Request(array, 2, 10**9)  # type: ignore[method-assign]
    copies = LateCopies(np.random.default_rng(1))
    group = GroupReduction(comm, _waiter(stuck), Group(Work(done=False)), _CPU)  # type: ignore[arg-type]
    for reduction in (StagedReduction(comm, _waiter(stuck), copies), group):  # type: ignore[arg-type]
        with pytest.raises(RankError, match="rank 1 gave no sign of life"):
            reduction.sum(torch.ones(10))


# Hooks


def test_a_vector_is_filled_from_its_end_whatever_the_order_of_the_hooks() -> None:
    layers = [nn.Parameter(torch.ones(size)) for size in (3, 4, 5, 6)]
    layers[2].requires_grad_(False)
    recorder = Recorder()
    filling = Filling(layers, recorder)
    for order, news in (((3, 1, 0), [7, 3, 0]), ((0, 1, 3), [0]), ((1, 3), [3]), ((0, 1), []), ((), [])):
        recorder.news = []
        with filling.summing(torch.zeros(18)):
            for place in order:
                (layers[place] * 2).sum().backward()
        # The last is from `finish`.
        assert recorder.news == [*news, 0], order
    assert recorder.finished == 5


def test_hooks_are_silent_outside_of_a_sum_and_once_closed() -> None:
    layer, recorder = nn.Parameter(torch.ones(3)), Recorder()
    filling = Filling([layer], recorder)
    layer.sum().backward()
    with pytest.raises(ValueError), filling.summing(torch.zeros(3)):
        raise ValueError
    layer.sum().backward()
    assert recorder.news == [] and recorder.finished == 0
    filling.close()
    with filling.summing(torch.zeros(3)):
        layer.sum().backward()
    assert recorder.news == [0]


def test_two_backwards_in_one_sum_are_refused() -> None:
    layer = nn.Parameter(torch.ones(3))
    filling = Filling([layer], Recorder())
    with pytest.raises(ShapeError, match="parameter 0 of 1 got a gradient twice"), filling.summing(torch.zeros(3)):
        layer.sum().backward()
        layer.sum().backward()


def test_nothing_is_hooked_where_overlapping_does_not_pay() -> None:
    layer = nn.Parameter(torch.ones(3))
    filling = Filling([layer], HostReduction(Alike(np.random.default_rng(0)), _waiter()))  # type: ignore[arg-type]
    assert not layer._post_accumulate_grad_hooks  # type: ignore[attr-defined]
    vector = torch.ones(4)
    with filling.summing(vector):
        pass
    assert vector.tolist() == [2, 2, 2, 2]


def _network(device: str = "cpu") -> tuple[nn.Module, FlatParameters]:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(30, 700), nn.Tanh(), nn.Linear(700, 700), nn.Tanh(), nn.Linear(700, 2))
    return network.to(device), FlatParameters(network.to(device), num_extra=2)


def test_gradients_that_are_summed_under_way_are_the_gradients() -> None:
    rng = np.random.default_rng(3)
    rows = torch.rand(5, 30)
    network, flat = _network()
    network(rows).sum().backward()
    flat.tail[:] = 7
    expected = flat.reduced * 2

    comm = Alike(rng)
    staged = StagedReduction(comm, _waiter(), LateCopies(rng))  # type: ignore[arg-type]
    filling = Filling(list(network.parameters()), staged)
    for _ in range(3):
        flat.reduced.zero_()
        flat.tail[:] = 7
        with filling.summing(flat.reduced):
            network(rows).sum().backward()
        assert torch.equal(flat.reduced, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gradients_on_a_gpu_are_summed_under_way() -> None:
    device = torch.device("cuda", 0)
    rows = torch.rand(5, 30, device=device)
    network, flat = _network("cuda")
    assert flat.reduced.device.type == "cuda"
    network(rows).sum().backward()
    expected = (flat.reduced * 2).clone()

    comm = Alike(np.random.default_rng(3))
    staged = StagedReduction(comm, _waiter(), CudaCopies(device))  # type: ignore[arg-type]
    filling = Filling(list(network.parameters()), staged)
    for _ in range(20):
        flat.reduced.zero_()
        with filling.summing(flat.reduced):
            network(rows).sum().backward()
        assert torch.equal(flat.reduced, expected)
    assert len(comm.messages) == 20 * len(chunks(flat.reduced.numel()))


# Process groups


def test_a_group_that_fails_says_so_in_one_sentence() -> None:
    text = "[/somewhere/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:5. This is typically\nmany\nlines"
    group = Group(Work(error=RuntimeError(text)))
    reduction = GroupReduction(Alike(np.random.default_rng(0)), _waiter(), group, _CPU)  # type: ignore[arg-type]
    with pytest.raises(
        SumError, match=r"^a sum through NCCL failed on learner 0 of 2: Connection closed by peer \[127"
    ):
        reduction.sum(torch.ones(3))
    group.work = Work()
    reduction.sum(torch.ones(2**22 + 1))
    assert group.sums[0] == 3 and sum(group.sums[1:]) == 2**22 + 1 and len(group.sums) == 4


def test_a_group_that_can_not_be_left_does_not_keep_the_learner() -> None:
    may_end = threading.Event()
    group = Group(Work(), may_end)
    reduction = GroupReduction(Alike(np.random.default_rng(0)), _waiter(), group, _CPU)  # type: ignore[arg-type]
    begin = time.monotonic()
    reduction.close()
    reduction.close()
    assert not group.aborted and time.monotonic() - begin < 15
    may_end.set()
    with pytest.raises(SumError, match="after its process group was closed"):
        reduction.sum(torch.ones(3))


def test_a_group_is_dropped_by_no_thread_that_others_wait_for() -> None:
    """The destructor of one whose peer is stuck blocks."""
    by_main: list[bool] = []

    class Dropped(Group):
        def __del__(self) -> None:
            by_main.append(threading.current_thread() is threading.main_thread())

    comm: Any = Alike(np.random.default_rng(0))
    reduction = GroupReduction(comm, _waiter(), Dropped(Work()), _CPU)
    reduction.sum(torch.ones(3))
    reduction.close()
    assert by_main == [False]


# Attempts


def test_an_attempt_gives_a_value_or_says_what_was_in_its_way() -> None:
    looks: list[int] = []
    waiter = _waiter(lambda: looks.append(1))
    assert attempt(lambda: time.sleep(0.05) or 5, waiter, 20.0) == (5, "")  # type: ignore[func-returns-value]
    assert looks
    assert attempt(lambda: [][0], waiter, 20.0) == (None, "list index out of range")
    assert attempt(threading.Event().wait, waiter, 0.05) == (None, "no answer within 0.05 s")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[file.cpp:12] It broke. Details follow.\nmore", "It broke"),
        ("plain", "plain"),
        ("", "ValueError"),
        ("[127.0.0.1] is not a place in the source", "[127.0.0.1] is not a place in the source"),
    ],
)
def test_one_sentence_is_made_of_many(text: str, sentence: str) -> None:
    assert in_one_sentence(ValueError(text)) == sentence


def test_a_time_limit_ends_a_wait_and_leaves_the_waiter_as_it_was() -> None:
    looks: list[int] = []
    waiter = _waiter(lambda: looks.append(1))
    watch = waiter.watch
    waiter.activity.enter(Phase.STARTING)
    with pytest.raises(SumError, match="late"), time_limit(waiter, 0.05, SumError("late")):
        waiter.until(lambda: False)
    assert looks and waiter.watch is watch and waiter.activity.phase is Phase.STARTING


# The store


def test_learners_that_share_a_loopback_use_it_and_others_try_the_name_first() -> None:
    here = Place("left", "a", "b")
    assert addresses_of_first([here, here]) == ["127.0.0.1"]
    # Another host under the same name, one that is known, and one that is not.
    found = addresses_of_first(
        [here, Place("left", "x", "y"), Place("127.0.0.1", "x", "z"), Place("?.invalid", "", "")]
    )
    assert found == ["left", "127.0.0.1"]


def test_a_store_that_nobody_serves_is_refused_in_one_sentence() -> None:
    refused = r"^the first learner's store can't be reached at port 1 \(127\.0\.0\.1: .*; no\.invalid: .*\)$"
    with pytest.raises(ConnectionError, match=refused):
        join(["127.0.0.1", "no.invalid"], 1, 5.0)


# The choice


@pytest.mark.parametrize(
    ("devices", "why"),
    [
        ([("cuda", "a", True)], "there is one learner"),
        ([("cuda", "a", True), ("cpu", "", True)], "learner 1 computes on cpu"),
        ([("cuda", "a", False), ("cuda", "b", True)], "the torch of learner 0 has no NCCL"),
        ([("cuda", "a", True), ("cuda", "b", True), ("cuda", "a", True)], "learners 0 and 2 share a GPU"),
        ([("cuda", "a", True), ("cuda", "b", True), ("cuda", "c", True)], ""),
    ],
)
def test_nccl_needs_a_gpu_for_every_learner(devices: list[tuple[str, str, bool]], why: str) -> None:
    assert why_not_nccl([LearnerDevice(*device) for device in devices]) == why


def test_a_cpu_is_no_gpu() -> None:
    assert look_at_device(_CPU)[:2] == ("cpu", "")
