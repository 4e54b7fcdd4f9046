"""Numbers in sentences."""

from __future__ import annotations


def plural(count: float, word: str, more: str = "") -> str:
    """`1 rank`, `1,000 ranks`; of an odd word its plural is `more`."""
    return f"{count:,.0f} {word if count == 1 else more or word + 's'}"
