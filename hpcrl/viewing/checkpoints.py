"""The checkpoints that a run's manifest lists; no checkpoint is opened."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcrl.viewing.words import as_list, as_mapping, as_number, plain

_MANIFEST = "manifest.json"
_MOST_BYTES = 1 << 24


@dataclass(frozen=True)
class ListedCheckpoint:
    """One line of the manifest; numbers that it does not have are NaN.

    Attributes:
        bytes: as listed.
        written: Unix time of the file; None where it is missing.
        size: bytes of the file; NaN where it is missing.
    """

    name: str
    env_steps: float
    learner_updates: float
    score: float
    bytes: float
    milestone: bool
    is_best: bool
    written: float | None
    size: float

    @property
    def is_damaged(self) -> bool:
        """Whether the file has not as many bytes as are listed, as far as both are known."""
        return math.isfinite(self.bytes) and math.isfinite(self.size) and self.bytes != self.size


def read_checkpoints(folder: Path) -> tuple[tuple[ListedCheckpoint, ...], str]:
    """What the manifest lists, oldest first, and "damaged" where it can't be read."""
    try:
        with (folder / _MANIFEST).open("rb") as file:
            manifest = as_mapping(json.loads(file.read(_MOST_BYTES)))
    except FileNotFoundError:
        return (), ""
    except (OSError, ValueError, RecursionError):
        return (), "damaged"
    entries = [as_mapping(entry) for entry in as_list(manifest.get("checkpoints"))]
    if not isinstance(manifest.get("checkpoints"), list) or not all(entries):
        return (), "damaged"
    best = manifest.get("best")
    return tuple(_listed(folder, entry, best) for entry in entries), ""


def _listed(folder: Path, entry: Mapping[str, Any], best: object) -> ListedCheckpoint:
    name = entry.get("name")
    written, size = _file(folder, name)
    return ListedCheckpoint(
        name=plain(name),
        env_steps=as_number(entry.get("env_steps")),
        learner_updates=as_number(entry.get("learner_updates")),
        score=as_number(entry.get("score")),
        bytes=as_number(entry.get("bytes")),
        milestone=entry.get("milestone") is True,
        is_best=name == best,
        written=written,
        size=size,
    )


def _file(folder: Path, name: object) -> tuple[float | None, float]:
    """When a checkpoint was written, and its bytes."""
    # A manifest of strangers may name what lies elsewhere.
    if not isinstance(name, str) or Path(name).name != name:
        return None, math.nan
    try:
        found = (folder / f"{name}.h5").stat()
    except (OSError, ValueError):
        return None, math.nan
    return found.st_mtime, float(found.st_size)
