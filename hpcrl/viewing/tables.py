"""CSV files that a run may write to meanwhile, as columns of numbers."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

#: From here on what stands in a file is damage, and differences could overflow.
_NO_NUMBER = 1e100


@dataclass(frozen=True, eq=False)
class Table:
    """What could be read of a CSV file.

    Attributes:
        columns: finite float64 [rows] by name; NaN for an empty cell.
        header: names of all columns, also of those that were not wanted.
        word: what is wrong with the file in one word: missing, empty (of 0 bytes) or damaged; else nothing.
        left_out: damaged lines.
        is_torn: whether the last line has no end.
        is_whole: whether rows older than these were not read.
    """

    columns: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    header: Sequence[str] = ()
    word: str = ""
    left_out: int = 0
    is_torn: bool = False
    is_whole: bool = True

    def __len__(self) -> int:
        """Rows."""
        return len(next(iter(self.columns.values()), ()))

    def column(self, name: str) -> NDArray[np.float64]:
        """One column [rows]; all NaN where the file does not have it."""
        found = self.columns.get(name)
        return np.full(len(self), math.nan) if found is None else found

    def has(self, name: str) -> bool:
        """Whether a column has any number."""
        return bool(np.isfinite(self.column(name)).any())

    def last(self, name: str) -> float:
        """The newest number of a column; NaN where there is none."""
        values = self.column(name)
        known = values[np.isfinite(values)]
        return float(known[-1]) if len(known) else math.nan


def read_table(path: Path, key: str, wanted: Collection[str] = (), newest_bytes: int | None = None) -> Table:
    """Read a CSV file of numbers, but a last line without its end, which is half-written.

    Args:
        path: the file.
        key: a column without whose number a line is damaged.
        wanted: columns to keep beside it; all where none is named.
        newest_bytes: read no more than these from the end; None: everything.
    """
    try:
        with path.open("rb") as file:
            header = file.readline()
            begin, size = len(header), path.stat().st_size
            skips = newest_bytes is not None and size - begin > newest_bytes
            if skips and newest_bytes is not None:
                file.seek(size - newest_bytes)
                file.readline()
            body = file.read()
    except FileNotFoundError:
        return Table(word="missing")
    except OSError:
        return Table(word="damaged")
    if not header.endswith(b"\n"):
        return Table(word="empty" if not header else "damaged")
    names = _cells(header)[0]
    if key not in names:
        return Table(word="damaged")
    places = [place for place, name in enumerate(names) if not wanted or name in wanted or name == key]
    rows, left_out = _rows(_cells(body[: body.rfind(b"\n") + 1]), len(names), places, names.index(key))
    numbers = np.array(rows, np.float64).reshape(len(rows), len(places))
    numbers[~(np.abs(numbers) < _NO_NUMBER)] = math.nan
    columns = {names[place]: numbers[:, number] for number, place in enumerate(places)}
    is_torn = bool(body) and not body.endswith(b"\n")
    return Table(columns, names, "damaged" if left_out else "", left_out, is_torn, not skips)


def _cells(text: bytes) -> list[list[str]]:
    """The cells of every line, each of which stands for itself: a quote in a damaged file must not swallow the rest."""
    lines = text.decode(errors="replace").removesuffix("\n").split("\n") if text else []
    return [_cells_of(line) if '"' in line else line.split(",") for line in lines]


def _cells_of(line: str) -> list[str]:
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []


def _rows(lines: list[list[str]], width: int, places: list[int], key: int) -> tuple[list[list[float]], int]:
    """The numbers at `places` of each whole line, and how many lines are none."""
    rows = []
    for cells in lines:
        if len(cells) != width:
            continue
        try:
            row = [float(cells[place] or "nan") for place in places]
            if abs(float(cells[key] or "nan")) < _NO_NUMBER:
                rows.append(row)
        except ValueError:
            continue
    return rows, len(lines) - len(rows)
