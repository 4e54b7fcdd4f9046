"""Latency and bandwidth of the connections between ranks: as the doctor measured them, as told, or assumed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from hpcrl.errors import ConfigError
from hpcrl.planning.costs import Costs, Link

#: Bytes of the doctor's large message.
_LARGE_BYTES = 4 << 20
#: Of plain Ethernet, for want of better.
ASSUMED_LATENCY_US = 30.0
ASSUMED_BANDWIDTH_GBIT = 10.0
_NAMES = {"node link": "node", "net link": "net"}


def links_in(data: object, source: object) -> dict[str, Link]:
    """The connections in what `hpcrl doctor --json` wrote, by the names of `Costs`: some of `node`, `net`.

    Args:
        source: named in the message.

    Raises:
        ConfigError: it is no such data, or has no connections.
    """
    rows = data.get("links") if isinstance(data, dict) else None
    if not isinstance(rows, list):
        raise ConfigError(f"{source} must be written by hpcrl doctor --json or by hpcrl plan --save, but has no links")
    try:
        found = links_of(rows)
    except (TypeError, KeyError) as error:
        raise ConfigError(f"{source} has links that can't be read: {error}") from error
    if not found:
        raise ConfigError(f"{source} has no links between ranks: let hpcrl doctor run on two ranks or more")
    return found


def links_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Link]:
    """Connections of measurements with `name`, `small_s` and `large_s`, seconds one way."""
    found = {}
    for row in rows:
        if row["name"] in _NAMES:
            small, large = float(row["small_s"]), float(row["large_s"])
            # A latency that is all noise must not make the bandwidth infinite.
            found[_NAMES[row["name"]]] = Link(small, _LARGE_BYTES / max(large - small, large / 10, 1e-9))
    return found


def with_links(costs: Costs, found: Mapping[str, Link], source: str) -> Costs:
    """Costs with connections that were measured; what is not among them stays."""
    named = " and ".join({"node": "within a node", "net": "between nodes"}[name] for name in found)
    text = f"{named}: {source}; {costs.links_from}" if len(found) < 2 else f"{named}: {source}"
    node, net = found.get("node", costs.node), found.get("net", costs.net)
    return dataclasses.replace(costs, links_from=text, node=node, net=net)


def told_link(latency_us: float | None, bandwidth_gbit: float | None) -> Link:
    """The connection between nodes that options name; ConfigError for numbers that make no sense."""
    latency = ASSUMED_LATENCY_US if latency_us is None else latency_us
    bandwidth = ASSUMED_BANDWIDTH_GBIT if bandwidth_gbit is None else bandwidth_gbit
    if not 0 <= latency < 1e9:
        raise ConfigError(f"--latency-us must be a number of at least 0, got {latency:g}")
    if not 0 < bandwidth < 1e9:
        raise ConfigError(f"--bandwidth-gbit must be above 0, got {bandwidth:g}")
    return Link(latency * 1e-6, bandwidth * 1e9 / 8)
