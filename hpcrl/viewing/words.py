"""Numbers and names as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def plain(text: object) -> str:
    """One line of printable characters: what is not printable could steer a terminal."""
    return "".join(character if character.isprintable() else "?" for character in str(text))


def duration(seconds: float) -> str:
    """Hours, minutes and seconds; "-" for what is not known."""
    if not math.isfinite(seconds):
        return "-"
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def age(seconds: float) -> str:
    """How long ago something was, in its largest unit; "-" for what is not known."""
    if not math.isfinite(seconds):
        return "-"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if round(seconds) >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def number(value: float, form: str = ",.1f") -> str:
    """A number in a format; "-" for what is not known."""
    return format(value, form) if math.isfinite(value) else "-"


def short(value: float, digits: int = 3) -> str:
    """A number to so many digits, such as 1.2M; "-" for what is not known."""
    if not math.isfinite(value):
        return "-"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= (1 - 0.5 * 10.0**-digits) * size:
            return f"{value / size:.{digits}g}{unit}"
    return f"{value:.{digits}g}"


def size(count: float) -> str:
    """Bytes in their largest unit; "-" for what is not known."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= one:
            return f"{count / one:,.1f} {unit}"
    return f"{count:.0f} B" if math.isfinite(count) else "-"


def as_number(value: object) -> float:
    """A finite number of JSON data; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:
        return math.nan


def as_mapping(value: object) -> Mapping[str, Any]:
    """An object of JSON data; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def as_list(value: object) -> list[Any]:
    """A list of JSON data; an empty one for anything else."""
    return value if isinstance(value, list) else []
