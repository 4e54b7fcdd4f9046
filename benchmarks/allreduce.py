"""Sums of gradients over learners: each of our ways against plain MPI and memcpy, and what overlapping gains.

    python -m benchmarks.allreduce [--ranks 2 3 4] [--rounds 60] [--sizes BYTES...] [--parts sums overlap] [--json FILE]

Ranks of this machine sum one float32 vector, in place:

- MPI: one blocking Allreduce of the whole vector;
- host: `cluster.reductions.HostReduction`, what learners on CPUs use: chunks that never block;
- staged: `cluster.staging.StagedReduction`, where the device is host memory;
- gloo: `cluster.process_group.GroupReduction` over torch's gloo, in the place of NCCL;
- memcpy: no sum, each rank copies as many bytes.

Each rank keeps to one core. All ways take turns within one world, forwards and backwards. Seconds are those of the rank
that needs most; latency is their median, bus bandwidth 2 (n - 1) / n times the bytes over it (memcpy: the bytes), and
the ratio to MPI a median of those within a round.

Then backward of a network and the sum of its gradients: each alone, and together as learners do it, where the end of
the vector is summed while its start is still being computed. "host in hooks" does that for sums through MPI, which
learners do not. The gain is the time of both alone over that of both together.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.children import CommandFailed
from benchmarks.worlds import (
    Measurement,
    facts,
    heading,
    in_turn,
    measure_on_ranks,
    pin,
    report,
    rows_of,
    size_name,
    start,
    summary,
    table,
    timed,
)
from hpcrl.activity import Activity
from hpcrl.cluster.affinity import usable_cpus
from hpcrl.cluster.launch import inside_mpi
from hpcrl.models.flat import FlatParameters
from hpcrl.models.images import NatureCNN

if TYPE_CHECKING or inside_mpi(os.environ):
    from hpcrl.cluster.filling import Filling
    from hpcrl.cluster.mpi import MPI, Comm
    from hpcrl.cluster.process_group import open_group
    from hpcrl.cluster.reductions import HostReduction, Reduction
    from hpcrl.cluster.staging import StagedReduction
    from hpcrl.cluster.waiting import Waiter

_SIZES = (4 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 100 << 20)
_PARTS = ("sums", "overlap")
_PLAIN = "MPI"
#: Bytes that all rounds of one size may add up to, which makes fewer rounds of large vectors.
_MOST_BYTES = 1 << 30
_FEWEST_ROUNDS = 9
_GROUP_S = 30.0


class _HostCopies:
    """`hpcrl.cluster.staging.Copies` where the device is host memory."""

    device_type = "cpu"

    def host_memory(self, size: int) -> Tensor:
        return torch.empty(size)

    def to_host(self, source: Tensor, target: Tensor) -> Callable[[], bool]:
        target.copy_(source)
        return lambda: True

    def to_device(self, source: Tensor, target: Tensor) -> None:
        target.copy_(source)

    def join(self) -> None:
        """Everything is there."""


def _reductions(comm: Comm, waiter: Waiter) -> dict[str, Reduction]:
    """Our ways by name. Collective over `comm`."""
    from tests.parallel.test_reductions_parallel import gloo_group

    ways: dict[str, Reduction] = {
        "host": HostReduction(comm, waiter),
        "staged": StagedReduction(comm, waiter, _HostCopies()),
    }
    group, trouble = open_group(comm, torch.device("cpu"), waiter, _GROUP_S, gloo_group, "gloo")
    if group is None:
        raise RuntimeError(f"no gloo: {trouble}")
    return ways | {"gloo": group}


def _measure(arguments: argparse.Namespace) -> None:
    """On every rank; the first prints. Collective over the world."""
    comm, waiter = MPI.COMM_WORLD, Waiter(Activity())
    torch.set_num_threads(1)
    here = facts(comm)
    waiter.is_crowded = comm.size > len(usable_cpus())
    pin(comm)
    ways = _reductions(comm, waiter)
    if "sums" in arguments.parts:
        for nbytes in arguments.sizes:
            _measure_sums(comm, ways, nbytes, arguments.rounds, here)
    if "overlap" in arguments.parts:
        for name, (network, images) in _networks(arguments.small).items():
            _measure_overlap(comm, waiter, ways, name, network, images, arguments.rounds, here)
    for way in ways.values():
        way.close()


def _measure_sums(comm: Comm, ways: Mapping[str, Reduction], nbytes: int, rounds: int, here: Measurement) -> None:
    vector = torch.zeros(nbytes // 4)
    array, copy = vector.numpy(), np.zeros(nbytes // 4, np.float32)
    measured = {_PLAIN: timed(lambda: comm.Allreduce(MPI.IN_PLACE, array))}
    measured |= {name: timed(lambda way=way: way.sum(vector)) for name, way in ways.items()}  # type: ignore[misc]
    measured["memcpy"] = timed(lambda: np.copyto(copy, array))
    # Whoever wrote the vector last has it in its cache: the same for all ways.
    rounds = max(min(rounds, _MOST_BYTES // nbytes), min(rounds, _FEWEST_ROUNDS))
    found = in_turn(measured, comm, rounds, lambda: vector.fill_(comm.rank + 1))
    expected = comm.size * (comm.size + 1) // 2
    for name, way in ways.items():
        vector.fill_(comm.rank + 1)
        way.sum(vector)
        if not bool((vector == expected).all()):
            raise RuntimeError(f"{name} sums wrongly")
    for name, seconds in (found or {}).items():
        bus = nbytes * (1 if name == "memcpy" else 2 * (comm.size - 1) / comm.size)
        line = {"part": "sums", "ranks": comm.size, "way": name, "bytes": nbytes, **summary(seconds)}
        line["gb_per_s"] = bus / float(np.median(seconds)) / 1e9
        line["of_mpi"] = float(np.median(found[_PLAIN] / seconds)) if found else 0.0
        report(here, line)


def _networks(small: bool) -> dict[str, tuple[nn.Module, Tensor]]:
    """Networks by name, and what they see."""
    torch.manual_seed(1)
    if small:
        return {"small": (nn.Sequential(nn.Linear(8, 700), nn.Tanh(), nn.Linear(700, 700)), torch.rand(4, 8))}
    wide = nn.Sequential(nn.Linear(64, 3136), nn.Tanh(), nn.Linear(3136, 3136), nn.Tanh(), nn.Linear(3136, 6))
    return {
        "Nature CNN, 1.7 M weights, 32 images": (
            nn.Sequential(NatureCNN((4, 84, 84)), nn.Linear(512, 7)),
            torch.randint(0, 255, (32, 4, 84, 84), dtype=torch.uint8),
        ),
        "perceptron, 10 M weights, 64 rows": (wide, torch.rand(64, 64)),
    }


def _measure_overlap(
    comm: Comm,
    waiter: Waiter,
    ways: Mapping[str, Reduction],
    name: str,
    network: nn.Module,
    seen: Tensor,
    rounds: int,
    here: Measurement,
) -> None:
    flat = FlatParameters(network)
    in_hooks = HostReduction(comm, waiter)
    in_hooks.overlaps = True
    tried = {**ways, "host in hooks": in_hooks}
    parameters = list(network.parameters())
    fillings = {way: Filling(parameters, reduction) for way, reduction in tried.items()}

    def backward() -> float:
        total = network(seen).square().mean()
        comm.Barrier()
        return timed(total.backward)()

    def together(way: str) -> float:
        total = network(seen).square().mean()
        comm.Barrier()
        begin = time.perf_counter()
        with fillings[way].summing(flat.reduced):
            total.backward()
        return time.perf_counter() - begin

    measured: dict[str, Callable[[], float]] = {"backward": backward}
    for way, reduction in tried.items():
        if way != "host in hooks":
            measured[f"sum, {way}"] = timed(lambda reduction=reduction: reduction.sum(flat.reduced))  # type: ignore[misc]
        measured[f"both, {way}"] = lambda way=way: together(way)  # type: ignore[misc]
    found = in_turn(measured, comm, min(rounds, 30), lambda: flat.reduced.zero_())
    for filling in fillings.values():
        filling.close()
    for way in tried if found else ():
        alone = found["backward"] + found[f"sum, {'host' if way == 'host in hooks' else way}"]
        both = found[f"both, {way}"]
        line = {"part": "overlap", "ranks": comm.size, "way": way, "network": name, **summary(both)}
        line |= {"weights": len(flat), "backward_us": summary(found["backward"])["median_us"]}
        line |= {"alone_us": summary(alone)["median_us"], "gain": float(np.median(alone / both))}
        report(here, line)


def sums_table(found: Sequence[Measurement], ranks: int) -> str:
    """Markdown: a row for each size, latency, bandwidth and ratio of each way."""
    lines = rows_of(found, part="sums", ranks=ranks)
    names = list(dict.fromkeys(line["way"] for line in lines))
    ours = [name for name in names if name not in (_PLAIN, "memcpy")]
    heads = [*(f"{name}, us" for name in names), *(f"{name}, GB/s" for name in names)]
    rows = [["vector", *heads, *(f"{name} / {_PLAIN}" for name in ours), "rounds"]]
    for nbytes in sorted({line["bytes"] for line in lines}):
        of = {line["way"]: line for line in lines if line["bytes"] == nbytes}
        row = [size_name(nbytes), *(f"{of[name]['median_us']:,.0f}" for name in names)]
        row += [f"{of[name]['gb_per_s']:.2f}" for name in names]
        rows.append([*row, *(f"{of[name]['of_mpi']:.2f}" for name in ours), str(of[_PLAIN]["rounds"])])
    return table(rows)


def overlap_table(found: Sequence[Measurement], ranks: int) -> str:
    """Markdown: a row for each network and way."""
    rows = [["network", "way", "backward, ms", "both alone, ms", "together, ms", "gain", "rounds"]]
    for line in rows_of(found, part="overlap", ranks=ranks):
        times = [f"{line[key] / 1e3:,.2f}" for key in ("backward_us", "alone_us", "median_us")]
        rows.append([line["network"], line["way"], *times, f"{line['gain']:.2f}", str(line["rounds"])])
    return table(rows)


def markdown(found: Sequence[Measurement]) -> str:
    """All tables."""
    parts = [heading(found), ""]
    for ranks in sorted({line["ranks"] for line in found}):
        if rows_of(found, part="sums", ranks=ranks):
            parts += [f"### Sums over {ranks} ranks", "", sums_table(found, ranks), ""]
        if rows_of(found, part="overlap", ranks=ranks):
            parts += [f"### Backward and sum over {ranks} ranks", "", overlap_table(found, ranks), ""]
    return "\n".join(parts)


def main(words: Sequence[str] | None = None) -> int:
    """Run, print, and say by the status whether a world failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 3, 4], help="a world for each")
    parser.add_argument("--rounds", type=int, default=60, help="of every way; fewer of large vectors")
    parser.add_argument("--sizes", type=int, nargs="+", default=_SIZES, metavar="BYTES", help="of the vector")
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=_PARTS, help="what to measure")
    parser.add_argument("--small", action="store_true", help="a tiny network, to try the benchmark itself")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement there as a line")
    arguments = parser.parse_args(words)
    if inside_mpi(os.environ):
        return measure_on_ranks(lambda: _measure(arguments))
    # Leaving by an exception ends the ranks too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    options = ["--rounds", arguments.rounds, "--sizes", *arguments.sizes, "--parts", *arguments.parts]
    options += ["--small"] * arguments.small
    found: list[Measurement] = []
    failures = 0
    for ranks in arguments.ranks:
        try:
            found += start("allreduce", options, ranks)
        except CommandFailed as failure:
            failures += 1
            print(failure, file=sys.stderr, flush=True)
    if arguments.json is not None:
        arguments.json.write_text("".join(json.dumps(line) + "\n" for line in found))
    if found:
        print(markdown(found))
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
