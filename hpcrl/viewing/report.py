"""All of a run on one page."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from hpcrl.metrics import UPDATE_METRICS, UPDATE_PARTS
from hpcrl.viewing.actors import actor_steps, describe, env_blocks, read_episodes, spread_of
from hpcrl.viewing.defaults import defaults, differing
from hpcrl.viewing.elements import charts, folded, heading, page, pairs, paragraph, section, shares, table, tiles
from hpcrl.viewing.measures import OTHER, PHASES, RETURNS, best, env_steps_per_s, return_column, time_split
from hpcrl.viewing.run import Run
from hpcrl.viewing.svg import Line, Merging, histogram, line_chart
from hpcrl.viewing.tables import Table
from hpcrl.viewing.trace import busy_shares
from hpcrl.viewing.words import age, as_list, as_mapping, as_number, duration, number, plain, size
from hpcrl.words import plural

#: Of episodes.csv: some million episodes.
_NEWEST_BYTES = 1 << 25
_MOST_HOSTS = 8
_MOST_RESUMES = 100
_LONGEST_VALUE = 1000
#: Columns of which a mean of neighbours would hide what they are there for.
_MERGINGS: dict[str, Merging] = {
    **{f"{prefix}min": "min" for prefix in ("lag/", "lag/shard_spread_", "gpu/busy_percent_")},
    **{f"{prefix}max": "max" for prefix in ("lag/", "lag/shard_spread_", "gpu/busy_percent_")},
    "lag/dropped_unrolls": "max",
}


def report_page(run: Run, now: float) -> str:
    """The page as HTML, which needs nothing beside it.

    Args:
        run: with all columns.
        now: Unix time.
    """
    episodes = read_episodes(run, ("length", "return"), _NEWEST_BYTES)
    busy, trace_word = busy_shares(run.path / "trace.json")
    warnings = [*_warnings(run, episodes), *([f"trace.json: {trace_word}"] if trace_word else [])]
    return page(
        f"{run.name}: {run.algorithm} on {run.env}",
        [
            _head(run, now),
            section("Warnings", *(paragraph(warning, "warn") for warning in warnings)),
            section("Learning", _learning(run.metrics), _updates(run.metrics)),
            section("Configuration", *_configuration(run)),
            section("Time", *_time(run, busy, episodes)),
            section("Lag", _lag(run.metrics)),
            section("Episodes", *_episodes(episodes)),
            section("Checkpoints", _checkpoints(run, now)),
            section("Resumes", _resumes(run)),
            section("Layout", pairs(_layout(run))),
            section("Machine and versions", pairs(_machine(run))),
        ],
    )


def _head(run: Run, now: float) -> str:
    column = return_column(run.metrics)
    facts = {
        "state": run.state,
        "env steps": f"{run.env_steps:,.0f} of {number(run.total_env_steps, ',.0f')}",
        "trained": duration(run.metrics.last("time/elapsed_s")),
        "last return": number(run.metrics.last(column)),
        "best return": number(best(run.metrics.column(column))),
        "env steps/s": number(env_steps_per_s(run.metrics), ",.0f"),
        "restarts": f"{len(run.resumes)}",
    }
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now))
    returns = f"Returns: {RETURNS[column]}." if len(run.metrics) else "No report yet."
    what = f"{returns} Made {made}, {age(now - run.written)} after the run last wrote."
    subject = paragraph(f"{run.algorithm} on {run.env}, seed {run.seed}")
    return "\n".join([heading(run.name), subject, tiles(facts), paragraph(what, "faint")])


# Warnings


def _warnings(run: Run, episodes: Table) -> Iterator[str]:
    yield from run.notes
    # A run without a log of episodes was asked for none.
    if episodes.word and not (episodes.word == "missing" and run.config.get("episode_log") is False):
        yield f"episodes.csv: {episodes.word}"
    if run.state == "died":
        yield "The run died: it neither finished nor was stopped; --resume goes on from its last checkpoint."
    for resume in run.resumes:
        if as_number(resume.get("begun_anew")) > 0:
            where = number(as_number(resume.get("env_steps")), ",.0f")
            yield f"At env step {where} environments began new episodes: not bit for bit an uninterrupted run."
    for column, what in (
        ("rollout/unrolls_cut", "unrolls were cut short"),
        ("rollout/env_restarts", "environments broke"),
    ):
        if (count := best(run.metrics.column(column))) > 0:
            yield f"{what.capitalize()}: {count:,.0f}."
    if (dropped := float(np.nansum(run.metrics.column("lag/dropped_unrolls")))) > 0:
        yield f"Dropped as too old: {dropped:,.0f} unrolls or gradients."
    if damaged := [checkpoint.name for checkpoint in run.checkpoints if checkpoint.is_damaged]:
        yield f"Checkpoints whose files are damaged, of other sizes than listed: {', '.join(damaged)}."
    if missing := [checkpoint.name for checkpoint in run.checkpoints if checkpoint.written is None]:
        yield f"Checkpoints whose files are missing: {', '.join(missing)}."
    if str(run.facts.get("git_commit")).endswith("-dirty"):
        yield "The code had changes that its commit does not have."


# Curves


def _learning(metrics: Table) -> str:
    steps, seconds = metrics.column("env_steps"), metrics.column("time/elapsed_s")
    figures = []
    for x, label in ((steps, "env steps"), (seconds, "wall time, s")):
        lines = [Line(name, x, metrics.column(column)) for column, name in RETURNS.items()]
        figures.append(line_chart(f"returns against {label}", lines, label))
    figures += [_tasks(metrics), _over_steps(metrics, {"env steps/s": "time/env_steps_per_s"}, "env steps/s")]
    busy = {name: f"gpu/busy_percent_{name}" for name in ("mean", "min", "max")}
    return charts([*figures, _over_steps(metrics, busy, "GPUs busy, %")])


def _tasks(metrics: Table) -> str:
    """Returns of each task; nothing where there is only one."""
    prefix = f"{next(iter(RETURNS))}/"
    names = {plain(column.removeprefix(prefix)): column for column in metrics.columns if column.startswith(prefix)}
    return _over_steps(metrics, names, "return of the last 100 episodes by task")


def _updates(metrics: Table) -> str:
    figures = [_over_steps(metrics, {name: name}, name.removeprefix("train/")) for name in UPDATE_METRICS]
    return folded("Numbers of updates", charts(figures))


def _over_steps(metrics: Table, columns: Mapping[str, str], title: str) -> str:
    steps = metrics.column("env_steps")
    lines = [
        Line(name, steps, metrics.column(column), _MERGINGS.get(column, "mean")) for name, column in columns.items()
    ]
    return line_chart(title, lines, "env steps")


def _lag(metrics: Table) -> str:
    names = ("mean", "min", "max")
    lag = _over_steps(metrics, {name: f"lag/{name}" for name in names}, "updates between acting and learning")
    spread = {name: f"lag/shard_spread_{name}" for name in names}
    dropped = {"unrolls": "lag/dropped_unrolls"} if np.nansum(metrics.column("lag/dropped_unrolls")) else {}
    figures = [
        lag,
        _over_steps(metrics, spread, "updates between the parts of the weights that acted"),
        _over_steps(metrics, dropped, "unrolls dropped as too old"),
    ]
    return charts(figures)


# Tables


def _configuration(run: Run) -> Iterator[str]:
    changed = differing(run.config)
    rows = [(_option(name), _value(value), _value(default)) for name, (value, default) in changed.items()]
    known = bool(defaults(run.algorithm))
    yield paragraph("What differs from the defaults:" if known else "No defaults are known of this algorithm.")
    yield table(rows, ("option", "value", "default"), "texts") or paragraph("nothing")
    rest = {_option(name): _value(value) for name, value in run.config.items() if name not in changed}
    yield folded("All other options, at their defaults", pairs(rest))


def _time(run: Run, busy: Mapping[int, float], episodes: Table) -> Iterator[str]:
    splits = time_split(run)
    yield shares(splits, (*PHASES, OTHER))
    if splits:
        yield paragraph("Of the whole run, means over the ranks with the role. Other: what no phase has.", "faint")
    parts = {part: f"time/update_{part}_s" for part in UPDATE_PARTS}
    seconds = {part: float(np.nansum(run.metrics.column(column))) for part, column in parts.items()}
    if (total := sum(seconds.values())) > 0:
        yield shares({"of an update": {part: part_s / total for part, part_s in seconds.items()}}, UPDATE_PARTS)
    # A rank that never waits is the one that others wait for.
    if (spread := spread_of(busy, run, slowest_has_most=True)) is not None:
        yield paragraph(f"Busy by trace.json, of {spread.ranks:,} ranks: {describe(spread, '.0%')}.")
    if (spread := spread_of(actor_steps(run, episodes), run)) is not None:
        what = f"Env steps of one environment of each of {spread.ranks:,} actors, by their newest episodes"
        yield paragraph(f"{what}: {describe(spread, ',.0f')}.")


def _episodes(episodes: Table) -> Iterator[str]:
    rows = []
    for name in ("return", "length"):
        values = episodes.column(name)
        if len(values := values[np.isfinite(values)]):
            quantiles = np.percentile(values, (0, 25, 50, 75, 100)).tolist()
            rows.append((name, *(number(value) for value in (float(values.mean()), *quantiles))))
    if not rows:
        return
    yield charts([histogram(f"episodes by {name}", episodes.column(name), name) for name in ("return", "length")])
    yield table(rows, ("", "mean", "min", "25 %", "median", "75 %", "max"))
    newest = "" if episodes.is_whole else ", the newest ones"
    yield paragraph(f"{plural(len(episodes), 'episode')}{newest}.", "faint")


def _checkpoints(run: Run, now: float) -> str:
    rows = []
    for checkpoint in reversed(run.checkpoints):
        words = {
            "newest": checkpoint is run.checkpoints[-1],
            "best": checkpoint.is_best,
            "milestone": checkpoint.milestone,
            "damaged": checkpoint.is_damaged,
        }
        rows.append(
            (
                checkpoint.name,
                number(checkpoint.env_steps, ",.0f"),
                number(checkpoint.learner_updates, ",.0f"),
                number(checkpoint.score),
                size(checkpoint.bytes),
                "missing" if checkpoint.written is None else f"{age(now - checkpoint.written)} ago",
                ", ".join(word for word, holds in words.items() if holds),
            )
        )
    headings = ("name", "env steps", "updates", "score", "size", "written", "")
    return table(rows, headings) or paragraph("none yet")


def _resumes(run: Run) -> str:
    keys = ("env_steps", "by_state", "by_replay", "begun_anew")
    rows = [[number(as_number(resume.get(key)), ",.0f") for key in keys] for resume in run.resumes[-_MOST_RESUMES:]]
    headings = ("at env step", "by state", "by replay", "begun anew")
    jobs = f"Batch jobs: {', '.join(run.jobs[-_MOST_RESUMES:])}." if run.jobs else ""
    shown = table(rows, headings) or paragraph("none")
    what = "Of environments: how many went on by their state, by replay, or began new episodes."
    return shown + (paragraph(what, "faint") if rows else "") + (paragraph(jobs) if jobs else "")


def _layout(run: Run) -> dict[str, str]:
    layout = run.layout
    envs = sorted({stop - start for _, start, stop in env_blocks(run)})
    facts = {
        "ranks": number(as_number(layout.get("ranks")), ",.0f"),
        "learners": f"{len(as_list(layout.get('learners'))):,}",
        "actors": f"{len(as_mapping(layout.get('actors'))):,}",
        "environments per actor": " to ".join(f"{count:,}" for count in dict.fromkeys([*envs[:1], *envs[-1:]])) or "-",
        "nodes": _hosts(as_list(layout.get("hosts"))),
        "results independent of the layout": _value(run.facts.get("layout_invariant")),
    }
    return facts if layout else {}


def _hosts(hosts: list[Any]) -> str:
    counts = Counter(map(plain, hosts))
    shown = [f"{host} ({plural(ranks, 'rank')})" for host, ranks in counts.most_common(_MOST_HOSTS)]
    more = f" and {len(counts) - _MOST_HOSTS:,} more" if len(counts) > _MOST_HOSTS else ""
    return f"{len(counts):,}: {', '.join(shown)}{more}" if counts else "-"


def _machine(run: Run) -> dict[str, str]:
    machine, versions = as_mapping(run.facts.get("machine")), as_mapping(run.facts.get("versions"))
    gpus = Counter(map(plain, as_mapping(machine.get("gpus")).values()))
    facts = {plain(name): _value(value) for name, value in machine.items() if name != "gpus"}
    if gpus:
        facts["gpus"] = ", ".join(f"{count} x {name}" for name, count in gpus.items())
    facts |= {plain(name): _value(version) for name, version in versions.items()}
    if run.facts:
        facts["git commit"] = _value(run.facts.get("git_commit"))
        facts["command"] = plain(" ".join(map(str, as_list(run.facts.get("command")))))
    return facts


def _option(name: str) -> str:
    return plain("--" + name.replace("_", "-"))


def _value(value: object) -> str:
    if isinstance(value, str):
        return plain(value)
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    return plain(json.dumps(value))[:_LONGEST_VALUE]
