"""What the rows of a run's `metrics.csv` say of its steady state."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Steady(NamedTuple):
    """The iterations after the first.

    Attributes:
        env_steps_per_s, updates_per_s: over all of them.
        seconds: wall time.
        time_split: share of that time by role and phase ("actor_acting"), a mean over the ranks with the role.
    """

    env_steps_per_s: float
    updates_per_s: float
    seconds: float
    time_split: dict[str, float]


def read_rows(path: Path) -> list[dict[str, float]]:
    """The whole rows of a file, numbers that exist; none where there is no file."""
    if not path.exists():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(whole.splitlines())]


def steady(rows: Sequence[Mapping[str, float]]) -> Steady:
    """What at least two rows say."""
    first, last = rows[0], rows[-1]
    seconds = last["time/elapsed_s"] - first["time/elapsed_s"]
    phases = [name for name in last if name.startswith(("time/actor_", "time/learner_"))]
    shares = {name: sum(row.get(name, 0.0) for row in rows[1:]) / seconds for name in phases}
    return Steady(
        (last["env_steps"] - first["env_steps"]) / seconds,
        (last["learner_updates"] - first["learner_updates"]) / seconds,
        seconds,
        {name[len("time/") : -len("_s")]: round(share, 4) for name, share in shares.items()},
    )
