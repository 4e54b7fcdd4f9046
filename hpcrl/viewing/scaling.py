"""Curves of what `benchmarks.scaling` measured: env steps/s by ranks."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcrl.errors import ConfigError
from hpcrl.viewing.words import as_list, as_mapping, as_number, plain
from hpcrl.words import plural


@dataclass(frozen=True)
class ScalingCurve:
    """One mode, algorithm, environment, work and options.

    Attributes:
        ranks: ascending.
        rates: env steps/s of all repeats on each number of ranks.
    """

    name: str
    ranks: tuple[int, ...]
    rates: tuple[tuple[float, ...], ...]

    @property
    def medians(self) -> list[float]:
        """Env steps/s by ranks."""
        return [statistics.median(rates) for rates in self.rates]

    @property
    def efficiency(self) -> list[float]:
        """Medians over what so many ranks would make that are as fast as those of the smallest number."""
        base = self.medians[0] / self.ranks[0]
        return [median / (base * ranks) for median, ranks in zip(self.medians, self.ranks, strict=True)]


def read_scaling(paths: Iterable[Path]) -> tuple[list[ScalingCurve], list[str]]:
    """The curves of files of JSON lines, and a note for each file with damaged lines, which are left out.

    Raises:
        ConfigError: a file can't be read, or has no such line.
    """
    found: dict[str, dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    notes = []
    for path in paths:
        try:
            lines = path.read_bytes().decode(errors="replace").splitlines()
        except OSError as error:
            raise ConfigError(f"{path} can't be read: {error}") from error
        whole = [(line, repeat) for line in lines if (repeat := _parse(line))]
        if not whole:
            raise ConfigError(f"{path} holds neither a run nor lines of benchmarks.scaling")
        if len(whole) < len(lines):
            notes.append(f"{path.name}: damaged ({plural(len(lines) - len(whole), 'line')} left out)")
        for line, repeat in whole:
            # A file that is named twice counts once.
            found[_series(repeat)][repeat["ranks"]][line] = as_number(repeat["env_steps_per_s"])
    return [_curve(name, by_ranks) for name, by_ranks in sorted(found.items())], notes


def _curve(name: str, by_ranks: dict[int, dict[str, float]]) -> ScalingCurve:
    ranks = sorted(by_ranks)
    return ScalingCurve(name, tuple(ranks), tuple(tuple(by_ranks[count].values()) for count in ranks))


def _parse(line: str) -> dict[str, Any]:
    """A repeat; an empty one where the line is none."""
    try:
        repeat = dict(as_mapping(json.loads(line)))
    except (ValueError, RecursionError):
        return {}
    is_repeat = type(repeat.get("ranks")) is int and 0 < repeat["ranks"] < 1 << 32
    return repeat if is_repeat and as_number(repeat.get("env_steps_per_s")) > 0 and "mode" in repeat else {}


def _series(repeat: dict[str, Any]) -> str:
    actors = as_number(repeat.get("actors"))
    share, each = (actors, " per actor") if repeat["mode"] == "weak" and actors > 0 else (1.0, "")
    envs, steps, batch = (as_number(repeat.get(name)) / share for name in ("num_envs", "env_steps", "batch_envs"))
    batches = f" in batches of {batch:,.0f}" if math.isfinite(batch) and batch != envs else ""
    work = f"{envs:,.0f} envs{batches}, {steps:,.0f} steps"
    options = " ".join(map(str, as_list(repeat.get("options"))))
    words = [repeat["mode"], repeat.get("algorithm"), repeat.get("env"), work + each, options]
    return ", ".join(plain(word) for word in words if word)
