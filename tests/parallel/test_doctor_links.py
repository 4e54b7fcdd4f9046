"""The doctor's collectives on two ranks: links, sums, files and clocks of a world, and a hang in it."""

from __future__ import annotations

import pytest

from hpcrl.activity import Activity
from hpcrl.cluster.waiting import Waiter


@pytest.mark.mpi(ranks=[2])
def test_links_of_one_node_and_of_two_are_measured() -> None:
    from hpcrl.cluster.mpi import world
    from hpcrl.doctor.links import judge_links, measure_links

    comm, waiter = world(), Waiter(Activity())
    near = measure_links(comm, [0, 0], ["a", "a"], waiter)
    far = measure_links(comm, [0, 1], ["a", "b"], waiter)
    if comm.rank == 0:
        assert [link.name for link in near] == ["allreduce", "node link"]
        assert [link.name for link in far] == ["allreduce", "net link"]
        assert "ranks 0-1 (a - b)" in judge_links(far)[1].says
        assert all(link.small_s > 0 and link.large_s > 0 for link in near + far)
    else:
        assert near == far == []


@pytest.mark.mpi(ranks=[2])
def test_sums_that_are_wrong_on_one_rank_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcrl.cluster.mpi import world
    from hpcrl.doctor import links
    from hpcrl.errors import RankError

    comm, waiter = world(), Waiter(Activity())
    right = links.check_sums(comm, waiter)

    def wrong(other: object) -> None:
        if comm.rank == 1:
            raise RankError("the sum is wrong")

    monkeypatch.setattr(links, "self_test", wrong)
    found = links.check_sums(comm, waiter)
    if comm.rank == 0:
        assert right.level == "ok"
        assert (found.level, "rank 1: the sum is wrong" in found.says) == ("WRONG", True)


@pytest.mark.mpi(ranks=[2])
def test_what_mpi_tells_of_itself() -> None:
    from hpcrl.cluster.library import cuda_aware, library, library_path
    from hpcrl.cluster.mpi import thread_level
    from hpcrl.doctor.library import look_at_library

    path = library_path()
    assert path is not None
    assert path.is_file()
    assert path.name.startswith("libmp")
    assert cuda_aware() in (True, False, None)
    assert thread_level() in ("FUNNELED", "SERIALIZED", "MULTIPLE")
    assert look_at_library(library(), path, thread_level()).path == str(path)
