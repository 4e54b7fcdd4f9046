"""How busy each rank was, by the trace of a run that was asked for one."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from hpcrl.viewing.words import as_mapping, as_number

_MOST_BYTES = 1 << 26


def busy_shares(path: Path) -> tuple[dict[int, float], str]:
    """Share of its time in which each rank did not wait, and a word for a file that is damaged or too large.

    Nothing where there is no file.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            return {}, "large"
        events = as_mapping(json.loads(path.read_bytes())).get("traceEvents")
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError, RecursionError):
        return {}, "damaged"
    if not isinstance(events, list):
        return {}, "damaged"
    total: dict[int, float] = defaultdict(float)
    waited: dict[int, float] = defaultdict(float)
    for event in map(as_mapping, events):
        rank, length = event.get("pid"), as_number(event.get("dur"))
        if event.get("ph") == "X" and type(rank) is int and length > 0:
            total[rank] += length
            waited[rank] += length if event.get("name") == "waiting" else 0.0
    return {rank: 1 - waited[rank] / total[rank] for rank in sorted(total)}, ""
