"""The store in which the members of a process group find each other: the first learner serves it, MPI says where."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hpcrl.cluster.attempts import Attempt, attempt, everyones, first_trouble
from hpcrl.cluster.collectives import broadcast
from hpcrl.cluster.mpi import MPI, Comm
from hpcrl.cluster.waiting import Waiter

if TYPE_CHECKING:
    from torch.distributed import TCPStore

_LOOPBACK = "127.0.0.1"
_PROBE_PORT = 9


class Place(NamedTuple):
    """Where a process is; the loopback addresses of equal places are the same.

    Attributes:
        host: its name, as MPI tells it.
        kernel, network: what Linux calls this start of the machine, and the network that the process sees; else empty.
    """

    host: str
    kernel: str
    network: str


def open_store(comm: Comm, waiter: Waiter, limit_s: float) -> Attempt[TCPStore]:
    """Open a store on a free port of the first learner and connect all others. Collective over `comm`.

    It listens on the loopback address where all learners share one, else on all addresses. Each learner takes the
    first that it can reach: the host's name as it is known there, then the addresses from which the first learner's
    packets to the others leave.

    Args:
        comm: the learners.
        limit_s: seconds that each step may take, and later each look into the store.

    Returns:
        The store of this learner; or trouble, the same on all.
    """
    places = everyones(comm, own_place(), waiter)
    served: Attempt[TCPStore] = Attempt(None)
    if comm.rank == 0:
        served = attempt(partial(_serve, places, limit_s), waiter, limit_s)
    port = broadcast(comm, served.value.port if served.value else 0, waiter)
    addresses: Attempt[list[str]] = Attempt([])
    if comm.rank == 0:
        addresses = attempt(partial(addresses_of_first, places), waiter, limit_s)
    known = broadcast(comm, addresses.value, waiter) or [places[0].host]
    joined = served if comm.rank == 0 else attempt(partial(join, known, port, limit_s), waiter, limit_s)
    if trouble := first_trouble(comm, joined.trouble, waiter):
        return Attempt(None, trouble)
    return joined


def own_place() -> Place:
    """Where this process is. Local."""
    kernel, network = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/net")
    # Only Linux has them, and not in every container.
    with suppress(OSError):
        return Place(MPI.Get_processor_name(), kernel.read_text().strip(), str(network.readlink()))
    return Place(MPI.Get_processor_name(), "", "")


def _serve(places: Sequence[Place], limit_s: float) -> TCPStore:
    from torch.distributed import TCPStore

    limit = timedelta(seconds=limit_s)
    if len(set(places)) > 1:
        return TCPStore(_LOOPBACK, 0, None, True, limit, wait_for_workers=False)
    listening = socket.create_server((_LOOPBACK, 0))
    port = listening.getsockname()[1]
    return TCPStore(
        _LOOPBACK, port, None, True, limit, wait_for_workers=False, master_listen_fd=listening.detach(), use_libuv=True
    )


def addresses_of_first(places: Sequence[Place]) -> list[str]:
    """Under what names and addresses the others may reach the first learner, the likeliest first. Local, there."""
    first = places[0]
    if len(set(places)) == 1:
        return [_LOOPBACK]
    found = [first.host]
    for host in dict.fromkeys(place.host for place in places if place.host != first.host):
        # A name that is unknown here, or a host without a route: others may be found.
        with suppress(OSError):
            for family, kind, protocol, _, address in socket.getaddrinfo(host, _PROBE_PORT, type=socket.SOCK_DGRAM):
                # Connecting a datagram socket sends nothing, and chooses the address that packets leave from.
                with socket.socket(family, kind, protocol) as probe:
                    probe.connect(address)
                    found.append(probe.getsockname()[0])
    return list(dict.fromkeys(found))


def join(addresses: Sequence[str], port: int, limit_s: float) -> TCPStore:
    """A connection to the store behind the first of these addresses that answers; blocks. Local.

    Raises:
        ConnectionError: none of them does within `limit_s`.
    """
    from torch.distributed import TCPStore

    troubles = []
    for address in addresses:
        try:
            # Half of the time is left for the store itself. Its own attempts print many lines where they fail.
            with socket.create_connection((address, port), timeout=limit_s / 2 / len(addresses)) as probe:
                reached = probe.getpeername()[0]
        except OSError as error:
            troubles.append(f"{address}: {error.strerror or error}")
        else:
            return TCPStore(reached, port, None, False, timedelta(seconds=limit_s), wait_for_workers=False)
    raise ConnectionError(f"the first learner's store can't be reached at port {port} ({'; '.join(troubles)})")
