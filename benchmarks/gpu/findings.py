"""What a check of a GPU finds: numbers, what was wanted of them, and a table of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


class Skip(Exception):
    """A section can't be run here; says why."""


@dataclass(frozen=True)
class Finding:
    """One number.

    Attributes:
        section: where it comes from.
        what: was measured.
        value: None where the section was skipped or failed.
        unit: of the value.
        wanted: least or most of it, in words; empty where nothing is wanted.
        holds: whether that is so; None where nothing is wanted, or there is no value.
        note: why there is no value, or what else is to be said.
    """

    section: str
    what: str
    value: float | None
    unit: str = ""
    wanted: str = ""
    holds: bool | None = None
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


def at_most(section: str, what: str, value: float, limit: float, unit: str = "", note: str = "") -> Finding:
    """A number with an upper limit; one that is no number exceeds it."""
    return Finding(section, what, value, unit, f"<= {limit:g}", value <= limit, note)


def at_least(section: str, what: str, value: float, limit: float, unit: str = "", note: str = "") -> Finding:
    """A number with a lower limit."""
    return Finding(section, what, value, unit, f">= {limit:g}", value >= limit, note)


def markdown(findings: Sequence[Finding]) -> str:
    """The table, a row for each finding."""
    rows = [("section", "what", "value", "unit", "wanted", "", "note"), ("---", "---", "---:", *["---"] * 4)]
    for finding in findings:
        value = "" if finding.value is None else f"{finding.value:.4g}"
        verdict = {None: "", True: "ok", False: "MISSED"}[finding.holds]
        note = finding.note.replace("|", "/")
        rows.append((finding.section, finding.what, value, finding.unit, finding.wanted, verdict, note))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
