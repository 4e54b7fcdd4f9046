"""`hpcrl inspect PATH`: what checkpoints and recorded trajectories hold, and whether they are whole."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hpcrl.errors import ConfigError, HpcrlError
from hpcrl.storage.confined import Facts, inspect_files

_LONGEST_LINE = 1000
_SUBFOLDERS = ("checkpoints", "trajectories")


@dataclass(frozen=True)
class InspectOptions:
    """Tell what a checkpoint or a shard of trajectories holds, all of which is read; or a line for each of a folder."""

    path: Annotated[
        Path, tyro.conf.Positional, tyro.conf.arg(help="A file, a run directory, or one of the folders in it.")
    ]
    json: Annotated[bool, tyro.conf.arg(help="Print everything as JSON, and nothing else.")] = False


def inspect(arguments: Sequence[str]) -> int:
    """Print what a file or a folder holds; the exit status, 1 where something is damaged."""
    options = tyro.cli(
        InspectOptions, prog="hpcrl inspect", args=list(arguments), config=(tyro.conf.FlagCreatePairsOff,)
    )
    if not options.path.exists():
        raise ConfigError(f"there is no {options.path}")
    if options.path.is_dir():
        return _inspect_folder(options.path, options.json)
    (facts,) = inspect_files([options.path])
    if options.json:
        print(json.dumps(facts, indent=2))
    elif "error" in facts:
        raise HpcrlError(_plain(facts["error"]))
    else:
        _show(facts)
    return int("error" in facts)


# One file


def _show(facts: Facts) -> None:
    console = Console()
    for line in _checkpoint(facts) if facts["kind"] == "checkpoint" else _shard(facts):
        _say(console, line)
    # A line for each, whatever the width of the terminal.
    Console(width=_LONGEST_LINE).print(_arrays(facts))


def _checkpoint(facts: Facts) -> Iterator[str]:
    yield f"{facts['path']}: checkpoint at {_count(facts['env_steps'])} env steps"
    yield f"  {facts['algorithm']} on {facts['env']}, {_count(facts['learner_updates'])} learner updates"
    yield f"  score: {_number(facts['score'])}" + (", a milestone" if facts["milestone"] else "")
    yield f"  sha256: {facts['sha256']}"
    yield f"  manifest: {facts['manifest']}"
    for name, group in facts["groups"].items():
        numbers, nbytes = _count(group["numbers"]), _bytes(group["bytes"])
        yield f"  {name}: {_plural(group['arrays'], 'array')}, {numbers} numbers, {nbytes}"


def _shard(facts: Facts) -> Iterator[str]:
    yield f"{facts['path']}: {facts['kind']}, actor {facts['actor']}, number {facts['number']}"
    steps = _count(facts["run_env_steps"])
    yield f"  {facts['algorithm']} on {facts['env']}, begun when the run had learned from {steps} env steps"
    yield (
        f"  {_count(facts['rows'])} rows of {_plural(facts['environments'], 'environment')}, "
        f"{_count(facts['env_steps'])} env steps, {_plural(facts['unrolls'], 'unroll')} of {facts['unroll_length']}"
    )
    if (versions := facts["policy_versions"]) is not None:
        first, last = _count(versions["first"]), _count(versions["last"])
        yield f"  policy versions: {first} to {last}, {_count(versions['lag'])} updates apart"
    yield f"  episodes: {_episodes(facts)}"
    if (returns := facts["returns"]) is not None:
        mean, least, most = (_number(returns[name]) for name in ("mean", "min", "max"))
        yield f"  returns: mean {mean}, min {least}, max {most}"
    yield "  versions: " + ", ".join(f"{name} {version or '-'}" for name, version in facts["versions"].items())
    yield f"  checksums: all {facts['checksums']}"


def _episodes(facts: Facts) -> str:
    parts = facts["episodes"]
    said = f"{parts['whole']:,} whole, {parts['begun']:,} that only begin here, {parts['ended']:,} that only end here"
    return said + (f", {parts['neither']:,} that do neither" if parts["neither"] else "")


def _arrays(facts: Facts) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("name", "shape", "dtype", "bytes", "stored", "ratio", "filters"):
        is_number = heading in ("bytes", "stored", "ratio")
        table.add_column(heading, justify="right" if is_number else "left", no_wrap=True)
    for array in facts["arrays"]:
        sizes = (_bytes(array["bytes"]), _bytes(array["stored_bytes"]), _number(array["ratio"]))
        cells = (array["name"], array["shape"], array["dtype"], *sizes, " ".join(array["filters"]))
        table.add_row(*(escape(_plain(str(cell))) for cell in cells))
    return table


# A folder


def _inspect_folder(folder: Path, as_json: bool) -> int:
    places = [folder / name for name in _SUBFOLDERS if (folder / name).is_dir()] or [folder]
    paths = [path for place in places for path in sorted(place.glob("*.h5"))]
    discarded = [path for place in places for path in sorted(place.glob("*.h5.discarded"))]
    unfinished = [path for place in places for path in sorted(place.glob(".*.tmp-*"))]
    if not (paths or discarded or unfinished):
        raise ConfigError(f"{folder} holds no checkpoint and no recorded trajectories")
    files: list[Facts] = []
    console = Console()
    for facts in inspect_files(paths):
        # A run that goes on removes old checkpoints.
        if "error" in facts and not Path(facts["path"]).exists():
            continue
        files.append(facts)
        if not as_json:
            _say(console, _line(facts, folder))
    totals = _totals(files)
    if as_json:
        left = {"discarded": list(map(str, discarded)), "unfinished": list(map(str, unfinished))}
        print(json.dumps({"path": str(folder), "files": files, **left, "totals": totals}, indent=2))
    else:
        for path in discarded:
            _say(console, f"{path.relative_to(folder)}: discarded by a resume from before it")
        for path in unfinished:
            _say(console, f"{path.relative_to(folder)}: unfinished, being written or left behind by a kill")
        for line in _sums(totals):
            _say(console, line)
    return int(totals["damaged"] > 0)


def _line(facts: Facts, folder: Path) -> str:
    name = Path(facts["path"]).relative_to(folder)
    if "error" in facts:
        return f"{name}: DAMAGED: {facts['error']}"
    if facts["kind"] == "checkpoint":
        score = "" if facts["score"] is None else f", score {_number(facts['score'])}"
        kept = ", a milestone" if facts["milestone"] else ""
        manifest = "" if facts["manifest"] == "agrees" else f", manifest: {facts['manifest']}"
        steps, nbytes = _count(facts["env_steps"]), _bytes(facts["bytes"])
        return f"{name}: checkpoint, {steps} env steps{score}{kept}, {nbytes}{manifest}"
    mean = "" if facts["returns"] is None else f", mean return {_number(facts['returns']['mean'])}"
    steps, ends, nbytes = _count(facts["env_steps"]), _plural(_ends(facts), "end"), _bytes(facts["bytes"])
    return f"{name}: {facts['kind']}, {steps} env steps, {ends} of episodes{mean}, {nbytes}"


def _ends(facts: Facts) -> int:
    return facts["episodes"]["whole"] + facts["episodes"]["ended"]


def _totals(files: Iterable[Facts]) -> dict[str, Any]:
    """Files, bytes, steps and ends of episodes by kind."""
    totals: dict[str, Any] = {kind: Counter() for kind in ("checkpoint", "training", "evaluation")}
    damaged = 0
    for facts in files:
        if "error" in facts:
            damaged += 1
            continue
        total = totals[facts["kind"]]
        total.update(files=1, bytes=facts["bytes"])
        if facts["kind"] != "checkpoint":
            total.update(env_steps=facts["env_steps"], episode_ends=_ends(facts))
    return {**{kind: dict(total) for kind, total in totals.items() if total}, "damaged": damaged}


def _sums(totals: Facts) -> Iterator[str]:
    for kind, total in totals.items():
        if kind == "damaged":
            yield f"total: {'nothing damaged' if not total else _plural(total, 'damaged file')}"
        elif kind == "checkpoint":
            yield f"total: {_plural(total['files'], 'checkpoint')}, {_bytes(total['bytes'])}"
        else:
            steps, ends = _count(total["env_steps"]), _plural(total["episode_ends"], "end")
            files = _plural(total["files"], "shard")
            yield f"total: {files} of {kind}, {steps} env steps, {ends} of episodes, {_bytes(total['bytes'])}"


# Words


def _say(console: Console, line: str) -> None:
    console.print(_plain(line), highlight=False, markup=False, soft_wrap=True)


def _plain(text: str) -> str:
    """Without what a terminal would obey, and not without end: names and texts may be made to harm."""
    text = text if len(text) <= _LONGEST_LINE else f"{text[:_LONGEST_LINE]}..."
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _bytes(number: int) -> str:
    return f"{number / 1e6:,.1f} MB" if number >= 1e6 else f"{number / 1e3:,.1f} kB"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
