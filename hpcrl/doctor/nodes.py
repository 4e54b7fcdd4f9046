"""What must hold of the nodes together: a file of one is seen by all, room in shared memory, clocks, versions."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hpcrl.doctor.facts import RankFacts, by_node
from hpcrl.doctor.finding import Finding, Level, Verdict, merge, name_hosts
from hpcrl.words import plural

_MB = 1 << 20
_LEAST_SHARED = 64 * _MB
_SHARED_PER_RANK = 16 * _MB
_PATIENCE_S = 3.0
_MOST_SKEW_S = 1.0


def see_file(path: Path, content: str) -> str:
    """Empty where a file that another node made is seen within some seconds (caches of NFS); else why not. Local."""
    end = time.monotonic() + _PATIENCE_S
    while True:
        try:
            if path.read_text() == content:
                return ""
            complaint = "it reads something else there"
        except OSError as error:
            complaint = error.strerror or str(error)
        if time.monotonic() > end:
            return complaint
        time.sleep(0.1)


def judge_visibility(path: str, complaints: Mapping[str, str]) -> Finding | None:
    """What the first ranks of the other nodes say of a file that rank 0 made, by host; None with one node."""
    if not complaints:
        return None
    blind = [host for host, complaint in complaints.items() if complaint]
    if not blind:
        return Finding(Level.OK, "shared", f"a file in {path} is seen by all {len(complaints) + 1} nodes")
    says = f"a file that rank 0 made in {path} is not seen on {name_hosts(blind)}: {complaints[blind[0]]}"
    return Finding(Level.WRONG, "shared", says, "Give a folder on a file system that all nodes share with --run-dir.")


def shared_memory_space(folder: Path = Path("/dev/shm")) -> tuple[int, int] | None:
    """Free and total bytes of the shared memory of this machine; None without any. Local."""
    try:
        space = os.statvfs(folder)
    except OSError:
        return None
    return space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize


def judge_shared_memory(facts: Sequence[RankFacts], spaces: Mapping[int, tuple[int, int] | None]) -> Finding:
    """Room in /dev/shm, by node, against what its ranks need."""
    nodes = by_node(facts)
    verdicts = [
        (_judge_space(spaces.get(node[0].node), len(node)), [rank.rank for rank in node], node[0].host)
        for node in nodes
    ]
    return merge("/dev/shm", verdicts, len(nodes))


def _judge_space(space: tuple[int, int] | None, ranks: int) -> Verdict:
    larger = "Give the container more with docker run --shm-size=1g (or --ipc=host), or ask the administrators."
    if space is None:
        return Verdict(Level.WRONG, "there is no /dev/shm", larger)
    free, total = space
    # MPI has taken some of it already.
    if free < _LEAST_SHARED or total <= _LEAST_SHARED:
        return Verdict(
            Level.WRONG, f"{_size(free)} free of {_size(total)}, expected more than {_size(_LEAST_SHARED)}", larger
        )
    if free < ranks * _SHARED_PER_RANK:
        says = f"{_size(free)} free of {_size(total)}, little for {plural(ranks, 'rank')} a node"
        return Verdict(Level.NOTE, says, larger)
    return Verdict(Level.OK, f"{_size(free)} free")


def _size(number: int) -> str:
    """Rounded, so that nodes alike look alike."""
    return f"{number / (1 << 30):,.0f} GB" if number >= 2 << 30 else f"{number // _MB:,} MB"


def judge_clocks(skews: Mapping[str, tuple[float, float]]) -> Finding:
    """Seconds that the clocks of the other nodes' hosts are behind rank 0's, and how wrong that may be."""
    if not skews:
        return Finding(Level.OK, "clocks", "one node has one clock")
    host, (skew, error) = max(skews.items(), key=lambda item: abs(item[1][0]))
    says = f"{plural(len(skews) + 1, 'node')}, at most {abs(skew) + error:.3g} s apart ({host}, known to {error:.1g} s)"
    if abs(skew) - error <= _MOST_SKEW_S:
        return Finding(Level.OK, "clocks", says)
    return Finding(Level.NOTE, "clocks", says, "Times in logs and traces will not agree: ask for NTP on that node.")


def judge_versions(facts: Sequence[RankFacts]) -> Finding:
    """The same Python and packages everywhere."""
    name = "versions"
    broken = [rank for rank in facts if rank.torch is not None and rank.torch.trouble]
    if broken and broken[0].torch is not None:
        says = f"torch can't be loaded on {name_hosts(rank.host for rank in broken)}: {broken[0].torch.trouble}"
        return Finding(Level.WRONG, name, says, "Type pip install torch for that Python.")
    for package in facts[0].versions:
        holders: dict[str, list[str]] = {}
        for rank in facts:
            holders.setdefault(rank.versions.get(package, "missing"), []).append(rank.host)
        if len(holders) > 1:
            pieces = (f"{version} on {name_hosts(hosts)}" for version, hosts in holders.items())
            do = "Start every rank with the same Python, of one environment on a file system that all nodes share."
            return Finding(Level.WRONG, name, f"{package} differs: {', '.join(pieces)}", do)
    says = ", ".join(f"{package} {version}" for package, version in facts[0].versions.items())
    missing = [package for package, version in facts[0].versions.items() if version == "missing"]
    if missing:
        return Finding(Level.WRONG, name, says, f"Type pip install {' '.join(missing)}.")
    return Finding(Level.OK, name, says)
