"""Cores of its own for every rank: who gets which, when that is safe, and the masks of a process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import tests.no_mpi  # noqa: F401

# isort: split
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcrl.cluster.affinity import Affinity, _plan_node, shared_cpus, usable_cpus
from hpcrl.cluster.cores import Core, Need, describe_cores, plan_cores, ranges, read_cores

Plan = list[frozenset[int]]


def machine(sockets: int, cores: int, threads: int = 1, caches: int = 1) -> list[Core]:
    """As Linux numbers most: a first thread of every core, socket by socket, then all second ones."""
    total = sockets * cores
    return [
        Core(
            (core // cores, core // cores, core * caches // cores),
            frozenset(core + thread * total for thread in range(threads)),
        )
        for core in range(total)
    ]


def all_cpus(cores: Iterable[Core]) -> frozenset[int]:
    return frozenset().union(*(core.cpus for core in cores))


def plan(cores: Sequence[Core], needed: Sequence[int], cells: Sequence[int] | None = None) -> Plan:
    """Of ranks that may use the whole machine; all of one cell unless told otherwise."""
    found = plan_of(cores, all_cpus(cores), needed, cells)
    assert not isinstance(found, str), found
    return found


def plan_of(
    cores: Sequence[Core], allowed: Iterable[int], needed: Sequence[int], cells: Sequence[int] | None = None
) -> Plan | str:
    cells = cells or [0] * len(needed)
    return plan_cores([Need(frozenset(allowed), *pair) for pair in zip(needed, cells, strict=True)], cores)


def sets(*groups: Iterable[int]) -> Plan:
    return [frozenset(group) for group in groups]


def test_a_learner_has_several_cores_and_each_actor_one() -> None:
    found = plan(machine(1, 16), [4, *[1] * 12])
    assert found == sets(range(4), *([cpu] for cpu in range(4, 16)))


def test_a_core_comes_with_all_its_hardware_threads() -> None:
    found = plan(machine(1, 16, threads=2), [4, *[1] * 12])
    assert found == sets([0, 1, 2, 3, 16, 17, 18, 19], *([cpu, cpu + 16] for cpu in range(4, 16)))


def test_cores_beyond_what_the_ranks_compute_on_stay_free() -> None:
    assert plan(machine(2, 8), [1, 1]) == sets([0], [1])


def test_the_largest_rank_of_a_cell_chooses_first() -> None:
    assert plan(machine(1, 8), [1, 4, 1]) == sets([4], [0, 1, 2, 3], [5])


@pytest.mark.parametrize("cells", [[0, 0, 0, 0, 4, 4, 4, 4], [0, 1, 0, 1, 0, 1, 0, 1]])
def test_actors_are_on_their_learners_socket(cells: list[int]) -> None:
    cores = machine(2, 6)
    found = plan(cores, [3, 1, 1, 1, 3, 1, 1, 1] if cells[1] == 0 else [3, 3, 1, 1, 1, 1, 1, 1], cells)
    for cell in set(cells):
        of_cell = frozenset().union(*(cpus for cpus, other in zip(found, cells, strict=True) if other == cell))
        assert of_cell in (frozenset(range(6)), frozenset(range(6, 12)))


def test_the_cores_of_a_rank_are_on_one_socket_where_cpus_alternate() -> None:
    cores = [Core((cpu % 2, cpu % 2, cpu % 2), frozenset({cpu})) for cpu in range(16)]
    found = plan(cores, [4, 1, 1, 1])
    assert found == sets([0, 2, 4, 6], [8], [10], [12])


def test_no_rank_is_cut_by_the_end_of_a_socket_where_it_fits_on_one() -> None:
    # Two cells: 6 of the first socket's 8 cores are taken.
    assert plan(machine(2, 8), [3, *[1] * 3, 3, 1], [0] * 4 + [4] * 2)[4] == frozenset({8, 9, 10})
    # One cell that is larger than a socket.
    assert plan(machine(2, 3), [2, 2, 2]) == sets([0, 1], [3, 4], [2, 5])


def test_a_large_cell_chooses_before_a_small_one() -> None:
    found = plan(machine(2, 6), [1, 1, 3, 3], [0, 0, 2, 2])
    assert found == sets([6], [7], [0, 1, 2], [3, 4, 5])


def test_a_cell_shares_a_cache_where_it_can() -> None:
    found = plan(machine(1, 8, caches=2), [2, 1, 2, 1], [0, 0, 2, 2])
    assert found == sets([0, 1], [2], [4, 5], [6])


def test_hardware_threads_are_dealt_out_where_there_are_too_few_cores() -> None:
    cores = machine(1, 8, threads=2)
    full = plan(cores, [4, *[1] * 12])
    assert full[0] == frozenset({0, 8, 1, 9})
    assert [len(cpus) for cpus in full] == [4, *[1] * 12] and len(all_cpus_of(full)) == 16
    # One rank more than cores: no core stays empty, and one is shared.
    nine = all_cpus_of(plan(cores, [1] * 9))
    assert nine == frozenset(range(9))


def all_cpus_of(found: Plan) -> frozenset[int]:
    return frozenset().union(*found)


def test_too_few_cpus_give_a_reason() -> None:
    assert plan_of(machine(1, 8, 2), range(16), [4, *[1] * 13]) == "the ranks need 17 cores and may use 16 CPUs"
    assert plan_of(machine(1, 8, 2), [5], [1, 1]) == "the ranks need 2 cores and may use 1 CPUs"


def test_ranks_that_are_bound_already_are_left_alone() -> None:
    needs = [Need(frozenset(allowed), 1, 0) for allowed in ({0, 1}, {0, 1}, {1, 2})]
    assert plan_cores(needs, machine(1, 8)) == "the launcher has bound the ranks already"


def test_only_cpus_of_the_job_are_used() -> None:
    cores = machine(1, 8, threads=2)
    # Of core 0 only the second thread, of core 1 both, of 3 and 5 the first.
    job = (1, 3, 5, 8, 9)
    assert plan_of(cores, job, [1, 1, 1, 1]) == sets([1, 9], [3], [5], [8])
    assert plan_of(cores, job, [2, 2, 1]) == sets([1, 9], [3, 5], [8])


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[Core], frozenset[int], list[int], list[int]]:
    cores = machine(draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 3)), draw(st.integers(1, 2)))
    allowed = frozenset(draw(st.sets(st.sampled_from(sorted(all_cpus(cores))), min_size=1)))
    needed = draw(st.lists(st.integers(1, 4), min_size=1, max_size=8))
    return cores, allowed, needed, draw(st.lists(st.integers(0, 2), min_size=len(needed), max_size=len(needed)))


@settings(max_examples=300, deadline=None)
@given(worlds())
def test_properties_of_every_plan(world: tuple[list[Core], frozenset[int], list[int], list[int]]) -> None:
    cores, allowed, needed, cells = world
    found = plan_of(cores, allowed, needed, cells)
    assert isinstance(found, str) == (sum(needed) > len(allowed))
    if isinstance(found, str):
        return
    assert all_cpus_of(found) <= allowed and sum(map(len, found)) == len(all_cpus_of(found))
    usable = [core.cpus & allowed for core in cores if core.cpus & allowed]
    for cpus, number in zip(found, needed, strict=True):
        touched = [threads for threads in usable if threads & cpus]
        if sum(needed) <= len(usable):
            assert len(touched) == number and all_cpus_of(touched) == cpus
        else:
            assert len(cpus) == number
    if sum(needed) >= len(usable):
        assert all(threads & all_cpus_of(found) for threads in usable)


def describe_machine(folder: Path, texts: dict[str, str]) -> Path:
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return folder


def test_cores_are_read_as_the_kernel_describes_them(tmp_path: Path) -> None:
    texts = {}
    for cpu, (threads, socket, cache) in {
        0: ("0,4", "0", "0-1,4-5"),
        1: ("1,5", "0", "0-1,4-5"),
        2: ("2-2,6", "1", "2-3,6-7"),
        4: ("0,4", "0", "0-1,4-5"),
    }.items():
        texts[f"cpu{cpu}/topology/thread_siblings_list"] = threads
        texts[f"cpu{cpu}/topology/physical_package_id"] = socket
        texts[f"cpu{cpu}/cache/index3/shared_cpu_list"] = cache
        texts[f"cpu{cpu}/node{socket}/cpulist"] = cache
    found = read_cores([4, 2, 1, 0], describe_machine(tmp_path, texts))
    assert found == [
        Core((0, 0, 0), frozenset({0, 4})),
        Core((0, 0, 0), frozenset({1, 5})),
        Core((1, 1, 2), frozenset({2, 6})),
    ]


def test_a_cpu_of_which_nothing_is_known_is_a_core(tmp_path: Path) -> None:
    texts = {"cpu3/topology/thread_siblings_list": "2-3", "cpu5/topology/thread_siblings_list": "five"}
    found = read_cores([2, 3, 5], describe_machine(tmp_path, texts))
    assert [core.cpus for core in found] == sets([2], [3], [5]) or [core.cpus for core in found] == sets([2], [3, 2])
    assert sum(len(core.cpus) for core in found) == len(all_cpus(found)) == 3


def test_this_machine_can_be_planned() -> None:
    allowed = usable_cpus()
    assert all_cpus(read_cores(allowed)) >= allowed
    found = plan_cores([Need(allowed, 1, 0)] * len(allowed), read_cores(allowed))
    assert not isinstance(found, str) and all_cpus_of(found) == allowed


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([], ""),
        ([3], "3"),
        ([4, 3], "3-4"),
        ([0, 4], "0,4"),
        ([0, 1, 2, 3, 64, 65, 66, 67], "0-3,64-67"),
        ([0, 2, 4, 6], "0-6:2"),
        ([0, 2, 3, 4, 5], "0,2-5"),
        ([0, 1, 3, 5, 7], "0-1,3-7:2"),
    ],
)
def test_numbers_are_short(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text


@given(st.sets(st.integers(0, 300)))
def test_short_numbers_are_the_numbers(numbers: set[int]) -> None:
    again: list[int] = []
    for piece in filter(None, ranges(numbers).split(",")):
        bounds, _, stride = piece.partition(":")
        first, _, last = bounds.partition("-")
        again += range(int(first), int(last or first) + 1, int(stride or 1))
    assert again == sorted(numbers)


def test_a_hundred_ranks_are_one_line() -> None:
    found = plan(machine(2, 64, threads=2), [4, *[1] * 99])
    assert describe_cores(dict(enumerate(found))) == (
        "rank 0 has CPUs 0-3,128-131; ranks 1-99 have 2 each of CPUs 4-102,132-230"
    )
    assert describe_cores({4: frozenset({7})}) == "rank 4 has CPU 7"


STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "13"}
HETEROGENEOUS = STEP | {"SLURM_HET_SIZE": "2", "SLURM_NTASKS_HET_GROUP_0": "1", "SLURM_NTASKS_HET_GROUP_1": "12"}
NO_STEP = "others may use the same CPUs, since the ranks are no step of srun"


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        (STEP | {"SLURM_CPUS_ON_NODE": "16"}, None),
        (STEP | {"SLURM_CPUS_ON_NODE": "17"}, None),
        (HETEROGENEOUS | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_CPUS_ON_NODE": "16"}, None),
        # A launcher's own count does not make its ranks a step.
        (STEP | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_CPUS_ON_NODE": "16", "OMPI_COMM_WORLD_SIZE": "13"}, NO_STEP),
        ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_CPUS_ON_NODE": "16"}, NO_STEP),
        ({"OMPI_COMM_WORLD_SIZE": "13"}, NO_STEP),
        ({}, NO_STEP),
        (STEP, "others may use the same CPUs, since Slurm does not say how many the step got"),
        (
            STEP | {"SLURM_CPUS_ON_NODE": "15"},
            "others may use the same CPUs, since the ranks may use 16 and Slurm gave the step 15",
        ),
    ],
)
def test_cpus_are_ours_alone_in_a_step_that_is_confined(environment: dict[str, str], reason: str | None) -> None:
    assert shared_cpus(environment, 13, 16) == reason


def test_on_asks_nobody_whose_the_cpus_are() -> None:
    needs = [Need(usable_cpus(), 1, 0)]
    assert _plan_node(needs, "auto", 13, {}) == NO_STEP
    assert not isinstance(_plan_node(needs, "on", 13, {}), str)
    confined = STEP | {"SLURM_CPUS_ON_NODE": str(len(usable_cpus()))}
    assert _plan_node(needs, "auto", 13, confined) == _plan_node(needs, "on", 13, {})


def test_a_system_without_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = [Need(usable_cpus(), 1, 0)]
    monkeypatch.delattr(os, "sched_setaffinity")
    monkeypatch.delattr(os, "sched_getaffinity")
    assert _plan_node(needs, "on", 13, {}) == "the system knows no CPU masks"
    assert usable_cpus() == frozenset(range(os.cpu_count() or 1))


class Idle:
    """A thread that does nothing."""

    def __init__(self) -> None:
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._end.wait)
        self._thread.start()

    @property
    def mask(self) -> set[int]:
        return os.sched_getaffinity(self._thread.native_id or 0)

    def bind(self, mask: set[int]) -> None:
        os.sched_setaffinity(self._thread.native_id or 0, mask)

    def end(self) -> None:
        self._end.set()
        self._thread.join()


@pytest.fixture
def idle() -> Iterator[Callable[[], Idle]]:
    """Makes threads; whatever a test does, this process has its CPUs back in the end."""
    threads: list[Idle] = []
    before = os.sched_getaffinity(0)

    def make() -> Idle:
        threads.append(Idle())
        return threads[-1]

    yield make
    for entry in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(entry.name), before)
    for thread in threads:
        thread.end()


def test_all_threads_are_pinned_and_released(idle: Callable[[], Idle]) -> None:
    whole = os.sched_getaffinity(0)
    if len(whole) < 2:
        pytest.skip("one CPU is all that there is")
    one, other = ({cpu} for cpu in sorted(whole)[-2:])
    early, bound, affinity = idle(), idle(), Affinity()
    bound.bind(one)
    assert affinity.started_with == whole and affinity.note is None
    assert affinity.pin(frozenset(other)) is None
    late = idle()
    assert os.sched_getaffinity(0) == early.mask == bound.mask == late.mask == other
    assert affinity.started_with == whole
    affinity.release()
    assert os.sched_getaffinity(0) == early.mask == late.mask == whole
    assert bound.mask == one
    bound.bind(other)
    affinity.release()
    assert bound.mask == other, "what is released stays so"


def test_a_mask_that_the_system_refuses_changes_nothing(idle: Callable[[], Idle]) -> None:
    before, thread = os.sched_getaffinity(0), idle()
    assert Affinity().pin(frozenset({1023})) == "the system refuses a CPU mask (Invalid argument)"
    assert os.sched_getaffinity(0) == thread.mask == before


def test_who_was_never_pinned_is_not_released(idle: Callable[[], Idle]) -> None:
    thread, affinity = idle(), Affinity()
    mask = {min(affinity.started_with)}
    thread.bind(mask)
    affinity.release()
    assert thread.mask == mask
