"""How far each actor is, by the newest episodes of its environments."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpcrl.viewing.run import Run
from hpcrl.viewing.tables import Table, read_table
from hpcrl.viewing.words import as_list, as_mapping, plain

#: Above any number of an environment.
_MOST = 1 << 32


@dataclass(frozen=True)
class RankSpread:
    """One number of each of many ranks, summarised.

    Attributes:
        slowest: the rank that has the one which tells the slowest.
        host: its node.
        ranks: whose number is known.
    """

    least: float
    median: float
    most: float
    slowest: int
    host: str
    ranks: int


def spread_of(numbers: Mapping[int, float], run: Run, slowest_has_most: bool = False) -> RankSpread | None:
    """Summarise a number of each rank; None where fewer than two are known."""
    if len(numbers) < 2:
        return None
    values = np.array(list(numbers.values()))
    place = int(values.argmax() if slowest_has_most else values.argmin())
    rank, hosts = list(numbers)[place], as_list(run.layout.get("hosts"))
    host = plain(hosts[rank]) if 0 <= rank < len(hosts) else "?"
    return RankSpread(float(values.min()), float(np.median(values)), float(values.max()), rank, host, len(values))


def describe(spread: RankSpread, form: str) -> str:
    """A number of many ranks in words."""
    if spread.least == spread.most:
        return f"{format(spread.least, form)} each"
    least, median, most = (format(value, form) for value in (spread.least, spread.median, spread.most))
    return f"min {least}, median {median}, max {most}; slowest: rank {spread.slowest} on {spread.host}"


def read_episodes(run: Run, wanted: Collection[str], newest_bytes: int) -> Table:
    """The newest episodes, with the columns that `actor_steps` needs and those that are wanted beside them."""
    return read_table(run.path / "episodes.csv", "env_step", ("env_index", *wanted), newest_bytes)


def actor_steps(run: Run, episodes: Table) -> dict[int, float]:
    """Env steps of one environment of each actor, as its newest episode tells; of actors that ended one of these.

    The environments of an actor step together, so the one that ended an episode last tells of all.
    """
    indices, steps = episodes.column("env_index"), episodes.column("env_step")
    known = np.isfinite(indices) & (indices >= 0) & (indices < _MOST)
    return _by_actor(env_blocks(run), indices[known].astype(np.int64), steps[known])


def _by_actor(
    blocks: list[tuple[int, int, int]], indices: NDArray[np.int64], steps: NDArray[np.float64]
) -> dict[int, float]:
    order = np.argsort(indices, kind="stable")
    indices, steps = indices[order], steps[order]
    found = {}
    for rank, start, stop in blocks:
        mine = steps[np.searchsorted(indices, start) : np.searchsorted(indices, stop)]
        if len(mine):
            found[rank] = float(mine.max())
    return found


def env_blocks(run: Run) -> list[tuple[int, int, int]]:
    """Rank, first environment and the one behind the last, of each actor."""
    blocks = []
    for rank, block in as_mapping(run.layout.get("actors")).items():
        whole = (
            isinstance(block, list) and len(block) == 2 and all(type(end) is int and 0 <= end < _MOST for end in block)
        )
        if whole and rank.isdecimal():
            blocks.append((int(rank), block[0], block[1]))
    return blocks
