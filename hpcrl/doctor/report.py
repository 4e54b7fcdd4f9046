"""What a person sees of the findings, and the file for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpcrl.doctor.facts import RankFacts
from hpcrl.doctor.finding import Finding, Level, worst
from hpcrl.storage.durable import write_json_durably
from hpcrl.words import plural

_WIDTH = 11


def line(finding: Finding) -> str:
    """A finding as a line, and what to do as a second one."""
    text = f"{finding.level:6} {finding.name:{_WIDTH}} {finding.says}"
    return f"{text}\n{'':{_WIDTH + 7}} {finding.do}" if finding.do else text


def last_line(findings: Sequence[Finding]) -> str:
    """How many are wrong."""
    wrong, notes = (sum(finding.level == level for finding in findings) for level in (Level.WRONG, Level.NOTE))
    noted = f", {plural(notes, 'note')}" if notes else ""
    if not wrong:
        return f"nothing is wrong{noted}"
    return f"{plural(wrong, 'thing is', 'things are')} wrong{noted}"


def exit_status(findings: Sequence[Finding]) -> int:
    """1 where something is wrong."""
    return int(worst(finding.level for finding in findings) == Level.WRONG)


def write_json(
    path: Path, findings: Sequence[Finding], ranks: Sequence[RankFacts], other: Mapping[str, Any]
) -> Finding | None:
    """Writes all facts and findings; a finding where the file can't be written. Local."""
    data = {
        "findings": [finding._asdict() for finding in findings],
        "wrong": exit_status(findings) == 1,
        "ranks": [asdict(rank) for rank in ranks],
        **{name: value._asdict() if hasattr(value, "_asdict") else value for name, value in other.items()},
    }
    try:
        write_json_durably(path, data)
    except OSError as error:
        says = f"{path} can't be written: {error.strerror or error}"
        return Finding(Level.WRONG, "json", says, "Give another file with --json.")
    return None
