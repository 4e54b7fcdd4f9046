"""Workloads, the tables that they make, and how a table is printed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

#: Numbers of one run, by name; `env_steps_per_s` is the one that is compared.
Measurement = dict[str, float]
#: Measurements by workload and round.
Results = Mapping[str, Mapping[int, Measurement]]

RATE = "env_steps_per_s"


@dataclass(frozen=True)
class Column:
    """One more number of a run: the median over the rounds is shown."""

    key: str
    title: str
    form: str = ",.1f"


@dataclass(frozen=True)
class Table:
    """Workloads that are compared with each other.

    Attributes:
        workloads: what makes a measurement, given the round (from 0).
        against: workloads that the others are set in relation to, round by round.
        columns: beside the rate.
        notes: further lines, from the results.
    """

    name: str
    title: str
    workloads: Mapping[str, Callable[[int], Measurement]]
    against: Sequence[str] = ()
    columns: Sequence[Column] = ()
    notes: Callable[[Results], Iterable[str]] = lambda results: ()


_ALWAYS = (Column("cores", "cores"), Column("peak_mb", "MB", ",.0f"))


def markdown(table: Table, results: Results) -> str:
    """The table, of the workloads that have results; ratios to those that it is `against`; and its notes."""
    shown = {name: list(results[name].values()) for name in table.workloads if results.get(name)}
    columns = [*_ALWAYS, *table.columns]
    rows = [["workload", "env steps/s", "range", *(column.title for column in columns)]]
    for name, runs in shown.items():
        rates = [run[RATE] for run in runs if RATE in run]
        spread = [f"{statistics.median(rates):,.0f}", f"{min(rates):,.0f}-{max(rates):,.0f}"] if rates else ["", ""]
        rows.append([name, *spread, *(_median(runs, column) for column in columns)])
    parts = [f"### {table.title}", "", *_lines(rows), ""]
    against = [name for name in table.against if name in shown]
    if against and (others := [name for name in shown if name not in against]):
        ratios = [[name, *(_ratio(results[name], results[other]) for other in against)] for name in others]
        parts += [*_lines([["ratio to", *against], *ratios]), ""]
    return "\n".join([*parts, *table.notes(results)])


def _lines(rows: Sequence[Sequence[str]]) -> list[str]:
    ruled = [rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]]
    return ["| " + " | ".join(row) + " |" for row in ruled]


def paired_ratios(ours: Mapping[int, Measurement], theirs: Mapping[int, Measurement]) -> list[float]:
    """Ratios of the rates within each round that has both."""
    return [
        ours[number][RATE] / theirs[number][RATE]
        for number in sorted(ours.keys() & theirs.keys())
        if RATE in ours[number] and RATE in theirs[number]
    ]


def median_of(results: Results, name: str, key: str = RATE) -> float | None:
    """The median over the rounds; None without results."""
    values = [run[key] for run in results.get(name, {}).values() if key in run]
    return statistics.median(values) if values else None


def _ratio(ours: Mapping[int, Measurement], theirs: Mapping[int, Measurement]) -> str:
    ratios = paired_ratios(ours, theirs)
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})" if ratios else ""


def _median(runs: Sequence[Measurement], column: Column) -> str:
    values = [run[column.key] for run in runs if column.key in run]
    return f"{statistics.median(values):{column.form}}" if values else ""
