"""The file of a scaling benchmark: a JSON line for each repeat that was measured."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from hpcrl.errors import ConfigError, HpcrlError

MODES = ("strong", "weak")


class Series(NamedTuple):
    """What the layouts of one curve share.

    Attributes:
        options: of `hpcrl train`, as they were given.
        num_envs, env_steps, batch_envs: in total where the mode is strong, for each rank that acts where it is weak.
    """

    mode: str
    algorithm: str
    env: str
    options: tuple[str, ...]
    num_envs: int
    env_steps: int
    batch_envs: int | None


@dataclass(frozen=True)
class Repeat:
    """One run on one layout.

    Attributes:
        ranks, nodes, learners, actors: of the world; a rank that does both counts as a learner and as an actor.
        num_envs, env_steps, batch_envs: what the run was told, in total; the last is None where the algorithm has none.
        repeat: number, from 1; the seed of the run.
        env_steps_per_s, updates_per_s: over the iterations after the first.
        measured_s: wall time of those iterations.
        time_split: share of that time by role and phase, a mean over the ranks with the role.
        machine, versions, git_commit: of rank 0.
        hosts: names of the nodes.
        slurm: numbers of the job, the array, the task in it and the restarts, where there are any.
        started: UTC.
    """

    mode: str
    algorithm: str
    env: str
    placement: str
    options: list[str]
    ranks: int
    nodes: int
    learners: int
    actors: int
    num_envs: int
    env_steps: int
    batch_envs: int | None
    repeat: int
    env_steps_per_s: float
    updates_per_s: float
    measured_s: float
    time_split: dict[str, float]
    machine: dict[str, Any]
    versions: dict[str, Any]
    git_commit: str | None
    hosts: list[str]
    slurm: dict[str, int]
    started: str
    command: list[str]

    @property
    def series(self) -> Series:
        """The curve that it belongs to."""
        share = self.actors if self.mode == "weak" else 1
        batch_envs = None if self.batch_envs is None else self.batch_envs // share
        work = (self.num_envs // share, self.env_steps // share, batch_envs)
        return Series(self.mode, self.algorithm, self.env, tuple(self.options), *work)


def read(path: Path) -> list[Repeat]:
    """All repeats of a file.

    Raises:
        ConfigError: the file can't be read, or a line of it is incomplete or something else; names file and line.
    """
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
    repeats = []
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        try:
            repeats.append(_parse(line))
        except ValueError as error:
            raise ConfigError(f"{path}, line {number}: {error}") from error
    return repeats


def append(path: Path, repeat: Repeat) -> None:
    """Add a line, in one call and down to the disk, so that whoever reads finds the whole of it or nothing.

    Several processes may share a file on a disk that appends in one step, which network file systems need not do.

    Raises:
        HpcrlError: the file can't be written.
    """
    line = json.dumps(asdict(repeat), allow_nan=False).encode() + b"\n"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            written = os.write(descriptor, line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise HpcrlError(f"{path} can't be written: {error}") from error
    if written != len(line):
        raise HpcrlError(f"{path} can't be written: it took {written} of {len(line)} bytes")


def missing(present: Iterable[Repeat], series: Series, ranks: int, nodes: int, repeats: int) -> list[int]:
    """The numbers of 1 to `repeats` that have not been measured on this layout."""
    measured = {
        repeat.repeat for repeat in present if (repeat.series, repeat.ranks, repeat.nodes) == (series, ranks, nodes)
    }
    return [number for number in range(1, repeats + 1) if number not in measured]


def _parse(line: str) -> Repeat:
    if not line.endswith("\n"):
        raise ValueError("the line has no end, so it was not written as a whole")
    try:
        data = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(data, dict):
        raise ValueError(f"expected a JSON object, got {type(data).__name__}")
    expected = {field.name: str(field.type) for field in fields(Repeat)}
    if data.keys() != expected.keys():
        differing = sorted(data.keys() ^ expected.keys())
        raise ValueError(f"not a repeat of benchmarks.scaling, which differs in: {', '.join(differing)}")
    for name, kind in expected.items():
        if not _fits(data[name], kind):
            raise ValueError(f"{name} must be of type {kind}, got {data[name]!r}")
    if data["mode"] not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {data['mode']!r}")
    for name in ("ranks", "nodes", "learners", "actors", "repeat", "env_steps_per_s"):
        if not 0 < data[name] < math.inf:
            raise ValueError(f"{name} must be a finite number above 0, got {data[name]!r}")
    return Repeat(**data)


#: What JSON has for the annotation of a field.
_KINDS: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "str | None": (str, type(None)),
    "int": int,
    "int | None": (int, type(None)),
    "float": (int, float),
    "list[str]": list,
    "dict[str, float]": dict,
    "dict[str, int]": dict,
    "dict[str, Any]": dict,
}


def _fits(value: object, kind: str) -> bool:
    if kind == "list[str]" and isinstance(value, list):
        return all(isinstance(word, str) for word in value)
    return isinstance(value, _KINDS[kind]) and not isinstance(value, bool)
