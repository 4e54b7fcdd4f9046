"""Rounds in which all take turns; every run is a line of a file, which is gone on with where it ends."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.children import CommandFailed
from benchmarks.settings import CORES
from benchmarks.tables import Measurement
from hpcrl.errors import ConfigError, HpcrlError
from hpcrl.provenance import cpu_model, git_commit, package_versions

#: What a run was and what came out of it; one that failed has `failure` in place of numbers.
Line = dict[str, Any]


@dataclass(frozen=True)
class Turn:
    """A workload of a comparison.

    Attributes:
        measure: makes a run, given the round (from 0).
        length: how long its runs are; runs of other lengths don't belong into the same file.
        facts: more of what its lines say.
        expected_s: of a run, where the file has none.
    """

    table: str
    workload: str
    measure: Callable[[int], Measurement]
    length: Mapping[str, float]
    facts: Mapping[str, Any]
    expected_s: float

    def expected(self, lines: Iterable[Line]) -> float:
        """Seconds of a run, by those that there are."""
        took = [line["took_s"] for line in lines if (line["table"], line["workload"]) == (self.table, self.workload)]
        return statistics.median(took) if took else self.expected_s


def read(path: Path, turns: Iterable[Turn]) -> list[Line]:
    """The lines of a file; none where there is none.

    Raises:
        ConfigError: it is something else, or has runs of another length than `turns`.
    """
    if not path.exists():
        return []
    lengths = {(turn.table, turn.workload): turn.length for turn in turns}
    lines = []
    try:
        for number, text in enumerate(path.read_text().splitlines(), 1):
            line = json.loads(text)
            length = lengths.get((line["table"], line["workload"]), line["length"])
            if line["length"] != length:
                raise ConfigError(
                    f"{path}, line {number}: a run of {line['length']}, expected {dict(length)}: name another file"
                )
            lines.append({"round": int(line["round"]), "took_s": float(line["took_s"]), **line})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} can't be gone on with, line {len(lines) + 1}: {error!r}") from error
    return lines


def missing(turns: Sequence[Turn], rounds: int, lines: Iterable[Line]) -> list[tuple[int, Turn]]:
    """Rounds and turns without a line, in the order in which they are due."""
    present = {(line["round"], line["table"], line["workload"]) for line in lines}
    return [
        (number, turn)
        for number in range(rounds)
        for turn in turns
        if (number, turn.table, turn.workload) not in present
    ]


def take(due: Sequence[tuple[int, Turn]], lines: list[Line], path: Path | None, limit_s: float | None = None) -> bool:
    """Run what is due, and print, keep and write down each; whether there was time for all.

    Args:
        lines: gets the new ones.
        path: file that they are added to.
        limit_s: no run is started that is expected to end after that many seconds.
    """
    begin = time.monotonic()
    for number, turn in due:
        if limit_s is not None and time.monotonic() - begin + turn.expected(lines) > limit_s:
            return False
        line = _run(number, turn)
        print(json.dumps(line), flush=True)
        if "failure" in line:
            print(f"{turn.table}: {turn.workload}, round {number}: {line['failure']}", file=sys.stderr, flush=True)
        lines.append(line)
        if path is not None:
            _append(path, line)
    return True


def _run(number: int, turn: Turn) -> Line:
    line: Line = {
        **{"table": turn.table, "workload": turn.workload, "round": number, "length": dict(turn.length)},
        **{"started": datetime.now(UTC).isoformat(timespec="seconds"), "git_commit": git_commit()},
        "machine": {"cpu": cpu_model(), "cores": CORES, "load": os.getloadavg()[0]},
        "versions": {"python": platform.python_version(), **package_versions()},
        **turn.facts,
    }
    begin = time.monotonic()
    try:
        line |= turn.measure(number)
    except CommandFailed as failure:
        line["failure"] = str(failure)
    except (OSError, ValueError, LookupError) as error:
        # Something was printed or written that says less than it should: the others still take their turns.
        line["failure"] = f"{type(error).__name__}: {error}"
    return line | {"took_s": round(time.monotonic() - begin, 1)}


def _append(path: Path, line: Line) -> None:
    """In one call and down to the disk: what is killed leaves whole lines."""
    try:
        with path.open("ab", buffering=0) as file:
            file.write(json.dumps(line).encode() + b"\n")
            os.fsync(file.fileno())
    except OSError as error:
        raise HpcrlError(f"{path} can't be written: {error}") from error
