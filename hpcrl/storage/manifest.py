"""The manifest beside checkpoints: what they are called, their sha256, and which is the newest and the best."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from hpcrl.errors import CheckpointError

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 1 << 24

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """One line of the manifest."""

    name: str
    sha256: str
    bytes: int
    score: float | None = None
    env_steps: int | None = None
    learner_updates: int | None = None
    milestone: bool = False

    @classmethod
    def parse(cls, line: Any) -> Self:
        entry = cls(**line)
        _require(is_plain_name(entry.name), f"{entry.name!r} is no plain file name")
        _require(bool(_SHA256.fullmatch(entry.sha256)), f"{entry.name} has no sha256")
        _require(type(entry.bytes) is int, f"{entry.name} has no size")
        counters = (entry.env_steps, entry.learner_updates)
        whole = all(type(counter) in (int, type(None)) for counter in counters)
        _require(whole, f"{entry.name} has a bad counter")
        _require(type(entry.milestone) is bool, f"{entry.name} has a bad milestone")
        score = 0 if entry.score is None else entry.score
        _require(type(score) in (int, float) and math.isfinite(score), f"{entry.name} has a bad score")
        return entry

    def as_json(self) -> dict[str, Any]:
        absent = {"env_steps": None, "learner_updates": None, "milestone": False}
        return {key: value for key, value in asdict(self).items() if key not in absent or value is not absent[key]}


def read_manifest(directory: Path) -> list[Entry]:
    """Returns the listed checkpoints, oldest first; none where there is no manifest.

    Raises:
        CheckpointError: It can't be read, or is no manifest.
    """
    path = directory / MANIFEST_NAME
    try:
        if not path.exists():
            return []
        _require(path.is_file(), "it is no regular file")
        _require(path.stat().st_size <= MAX_MANIFEST_BYTES, f"it is over {MAX_MANIFEST_BYTES} bytes")
        return _parse_manifest(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path} can't be read as a manifest of checkpoints: {error}.") from error


def _parse_manifest(data: Any) -> list[Entry]:
    _require(isinstance(data, dict) and isinstance(data.get("checkpoints"), list), "it lists no checkpoints")
    version = data.get("format_version")
    _require(version == FORMAT_VERSION, f"it has format version {version!r}, expected {FORMAT_VERSION}")
    entries = [Entry.parse(line) for line in data["checkpoints"]]
    expected = manifest_of(entries)
    _require(len({entry.name for entry in entries}) == len(entries), "it lists a checkpoint twice")
    _require(data["latest"] == expected["latest"], "its latest is not the last one listed")
    _require(data["best"] == expected["best"], "its best is not the one of the highest score")
    return entries


def manifest_of(entries: list[Entry]) -> dict[str, Any]:
    """Returns what the file says of the listed checkpoints, oldest first."""
    newest_first, best_first = entries[::-1], by_score(entries)
    return {
        "format_version": FORMAT_VERSION,
        "latest": newest_first[0].name if newest_first else None,
        "best": best_first[0].name if best_first else None,
        "checkpoints": [entry.as_json() for entry in entries],
    }


def by_score(entries: list[Entry]) -> list[Entry]:
    """Returns the entries that have a score, the best first; of equals the newer one."""
    scored = [entry for entry in reversed(entries) if entry.score is not None]
    return sorted(scored, key=lambda entry: entry.score or 0.0, reverse=True)


def unused_name(name: str, entries: list[Entry]) -> str:
    """Returns `name`, with `-2` (or `-3` and so on) where a listed checkpoint has it."""
    taken = {entry.name for entry in entries}
    candidates = [name, *(f"{name}-{number}" for number in range(2, len(taken) + 2))]
    return next(candidate for candidate in candidates if candidate not in taken)


def is_plain_name(name: Any) -> bool:
    """Returns whether it names a file without a folder."""
    return isinstance(name, str) and bool(_PLAIN_NAME.fullmatch(name))


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)
