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
    """The table, of the workloads that have results."""
    shown = {name: list(results[name].values()) for name in table.workloads if results.get(name)}
    columns = [*_ALWAYS, *table.columns]
    against = [name for name in table.against if name in shown]
    titles = ["workload", "env steps/s", "range", *(f"to {name}" for name in against)]
    rows = [[*titles, *(column.title for column in columns)]]
    rows.append(["---", *["---:"] * (len(rows[0]) - 1)])
    for name, runs in shown.items():
        rates = [run[RATE] for run in runs if RATE in run]
        row = [name, f"{statistics.median(rates):,.0f}", f"{min(rates):,.0f}-{max(rates):,.0f}"] if rates else [name]
        row += [""] * (3 - len(row))
        row += ["" if name == other else _ratio(results[name], results[other]) for other in against]
        rows.append([*row, *(_median(runs, column) for column in columns)])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([f"### {table.title}", "", *lines, "", *table.notes(results)])


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
