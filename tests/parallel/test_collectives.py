"""Collectives over real ranks; every assertion holds for any size of the world."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpcrl.activity import Activity
from hpcrl.cluster.waiting import Waiter
from hpcrl.errors import ConfigError, RankError, ShapeError


@pytest.mark.mpi(ranks=(3,))
def test_objects_and_sums_reach_every_rank() -> None:
    from hpcrl.cluster.collectives import broadcast, gather, on_root, sum_over
    from hpcrl.cluster.mpi import world

    comm, waiter = world(), Waiter(Activity())
    assert broadcast(comm, {"rank": comm.rank}, waiter) == {"rank": 0}
    parts = gather(comm, np.full(comm.rank, comm.rank), waiter)
    assert [len(part) for part in parts] == (list(range(comm.size)) if comm.rank == 0 else [])
    total = sum_over(comm, np.array([1, comm.rank]), waiter)
    assert total.tolist() == [comm.size, comm.size * (comm.size - 1) // 2]
    assert on_root(comm, lambda: comm.rank, waiter) == 0

    def fail() -> None:
        raise ConfigError("refused")

    with pytest.raises(ConfigError, match="refused") as caught:
        on_root(comm, fail, waiter)
    assert caught.value.on_all_ranks


@pytest.mark.mpi(ranks=(3,))
def test_gradients_are_summed_and_what_mpi_would_sum_wrongly_is_refused() -> None:
    from hpcrl.cluster.mpi import self_test, world
    from hpcrl.cluster.reductions import HostReduction

    comm, waiter = world(), Waiter(Activity())
    self_test(comm)
    # More than one bucket, and no multiple of its length.
    buffer = torch.arange(7_000_003, dtype=torch.float32).remainder_(1000) * (comm.rank + 1)
    expected = torch.arange(7_000_003, dtype=torch.float32).remainder_(1000) * (comm.size * (comm.size + 1) // 2)
    HostReduction(comm, waiter).sum(buffer)
    assert torch.equal(buffer, expected)
    for wrong in (
        torch.ones(4, dtype=torch.bfloat16),
        torch.ones(4, dtype=torch.float64),
        torch.ones(4, 6).t(),
        torch.ones(8)[::2],
        torch.ones(3, requires_grad=True) * 2,
    ):
        with pytest.raises(ShapeError):
            HostReduction(comm, waiter).sum(wrong)


@pytest.mark.mpi(ranks=(3,))
def test_weights_that_differ_name_the_learner() -> None:
    from hpcrl.cluster.gradients import check_in_sync
    from hpcrl.cluster.mpi import world

    comm, waiter = world(), Waiter(Activity())
    weights = torch.ones(10)
    check_in_sync(comm, weights, 5, waiter)
    if comm.rank == 2:
        weights[3] = torch.nextafter(weights[3], torch.tensor(2.0))
    with pytest.raises(RankError, match="after update 6 the weights of learner 2 differ"):
        check_in_sync(comm, weights, 6, waiter)
