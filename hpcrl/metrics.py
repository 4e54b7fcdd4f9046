"""What is reported of a run: reducers over updates and episodes, and the files that rows go to."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: A row of metrics by column name; a value that doesn't exist yet is NaN, and an empty cell in the file.
Row = dict[str, float]

EPISODE = np.dtype([("env_step", "i8"), ("env_index", "i8"), ("number", "i8"), ("length", "i8"), ("return", "f8")])
WINDOW = 100

#: Numbers of one update, whose means are reported.
UPDATE_METRICS = (
    "train/policy_loss",
    "train/value_loss",
    "train/entropy",
    "train/explained_variance",
    "train/grad_norm",
    "train/clipped_grad_fraction",
    "train/approx_kl",
    "train/rho_mean",
    "train/rho_clipped_fraction",
    "train/learning_rate",
)

#: What learners do for an update, on whatever they compute on.
UPDATE_PARTS = ("copy", "forward", "backward", "reduce", "step")

COLUMNS = (
    "iteration",
    "env_steps",
    "learner_updates",
    "time/elapsed_s",
    "time/env_steps_per_s",
    "time/actor_acting_s",
    "time/actor_inference_s",
    "time/actor_learning_s",
    "time/actor_transport_s",
    "time/actor_waiting_s",
    "time/learner_learning_s",
    "time/learner_reducing_s",
    "time/learner_publishing_s",
    "time/learner_inference_s",
    "time/learner_transport_s",
    "time/learner_waiting_s",
    *(f"time/update_{part}_s" for part in UPDATE_PARTS),
    "time/checkpoint_pause_s",
    "time/checkpoint_write_s",
    "rollout/episodes",
    "rollout/episode_return_mean",
    "rollout/return_last_100",
    "rollout/episode_length_mean",
    "rollout/unrolls_cut",
    "rollout/env_restarts",
    "eval/episode_return_mean",
    "eval/episode_return_std",
    *UPDATE_METRICS,
    "comm/gradient_bytes",
    "comm/unroll_bytes",
    "comm/weights_bytes",
    "comm/upload_bytes",
    *(f"gpu/{what}_{how}" for what in ("busy_percent", "used_bytes") for how in ("min", "mean", "max")),
    "lag/min",
    "lag/mean",
    "lag/max",
    "lag/shard_spread_min",
    "lag/shard_spread_mean",
    "lag/shard_spread_max",
    "lag/dropped_unrolls",
    "lag/dropped_steps",
    "wait/actor_for_slot",
    "wait/actor_for_weights",
    "wait/learner_for_unrolls",
)


#: Columns that a run of several tasks has for each of them, with a slash and its name behind.
_TASK_COLUMNS = ("rollout/episode_return_mean", "rollout/return_last_100", "eval/episode_return_mean")


def columns_of(tasks: Iterable[str]) -> tuple[str, ...]:
    """The columns of a run of several tasks; of one that has a single task, none of which is named."""
    return (*COLUMNS, *(f"{column}/{task}" for column in _TASK_COLUMNS for task in tasks))


class EpisodeReducer:
    """Episode statistics of the running iteration, and of the last 100 episodes in the order (env step, env index).

    Args:
        tasks: names of a run's tasks, and global indices of the environments of each; none where there is only one.
    """

    def __init__(self, tasks: Mapping[str, range] | None = None) -> None:
        self._tasks = dict(tasks or {})
        self._iteration = np.empty(0, EPISODE)
        self._windows = [np.empty(0, EPISODE)] * max(1, len(self._tasks))

    def add(self, episodes: NDArray) -> None:
        """Episodes (dtype EPISODE) that ended since the last call, in any order."""
        ordered = np.sort(episodes, order=("env_step", "env_index"))
        self._iteration = np.concatenate([self._iteration, ordered])
        parts = zip(self._windows, self._by_task(ordered), strict=True)
        self._windows = [np.concatenate(both)[-WINDOW:] for both in parts]

    def _by_task(self, episodes: NDArray) -> list[NDArray]:
        """The episodes of each task."""
        if not self._tasks:
            return [episodes]
        indices = episodes["env_index"]
        return [episodes[(indices >= envs.start) & (indices < envs.stop)] for envs in self._tasks.values()]

    @property
    def return_last_100(self) -> float:
        """Mean return of the last 100 episodes; NaN before there are 100.

        Of several tasks: the mean of each one's, NaN before each has 100.
        """
        return float(np.mean(self._returns_last_100()))

    def _returns_last_100(self) -> list[float]:
        """Of each task."""
        return [_mean(window["return"]) if len(window) == WINDOW else math.nan for window in self._windows]

    def take(self) -> Row:
        """Columns of the iteration that ends here."""
        episodes, self._iteration = self._iteration, np.empty(0, EPISODE)
        return self._task_columns(episodes) | {
            "rollout/episodes": len(episodes),
            "rollout/episode_return_mean": _mean(episodes["return"]),
            "rollout/episode_length_mean": _mean(episodes["length"]),
            "rollout/return_last_100": self.return_last_100,
        }

    def _task_columns(self, episodes: NDArray) -> Row:
        """Columns of each task; none where there is only one."""
        means = [_mean(part["return"]) for part in self._by_task(episodes)]
        row: Row = {}
        for number, task in enumerate(self._tasks):
            row[f"rollout/episode_return_mean/{task}"] = means[number]
            row[f"rollout/return_last_100/{task}"] = self._returns_last_100()[number]
        return row

    def state(self) -> dict[str, NDArray]:
        """Arrays for a checkpoint; an episode's `env_index` says whose it is."""
        return {
            f"{part}_{name}": episodes[name].copy()
            for part, episodes in (("iteration", self._iteration), ("window", np.concatenate(self._windows)))
            for name in EPISODE.names or ()
        }

    def restore(self, state: Mapping[str, NDArray]) -> None:
        """Go back to what `state` returned."""
        self._iteration = _episodes(state, "iteration")
        self._windows = self._by_task(_episodes(state, "window"))


def _episodes(state: Mapping[str, NDArray], part: str) -> NDArray:
    episodes = np.empty(len(state[f"{part}_return"]), EPISODE)
    for name in EPISODE.names or ():
        episodes[name] = state[f"{part}_{name}"]
    return episodes


class MeanReducer:
    """Sums of named numbers over the updates of an iteration, float64."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._sums = np.zeros(len(self._names))
        self._count = 0

    def add(self, values: Sequence[float]) -> None:
        """One update's numbers, in the order of the names."""
        self._sums += values
        self._count += 1

    def take(self) -> dict[str, float]:
        """Means since the last call; NaN without any."""
        means = self._sums / self._count if self._count else np.full(len(self._names), math.nan)
        self._sums, self._count = np.zeros(len(self._names)), 0
        return dict(zip(self._names, means.tolist(), strict=True))

    def take_state(self) -> dict[str, NDArray]:
        """What was added since the last call, as `state` gives it."""
        state = self.state()
        self._sums, self._count = np.zeros(len(self._names)), 0
        return state

    @classmethod
    def merged(cls, names: Sequence[str], states: Sequence[Mapping[str, NDArray]]) -> MeanReducer:
        """The reducer to which all was added that is in `states`."""
        reducer = cls(names)
        for state in states:
            reducer._sums += state["sums"]
            reducer._count += int(state["count"][0])
        return reducer

    def state(self) -> dict[str, NDArray]:
        """Arrays for a checkpoint."""
        return {"sums": self._sums.copy(), "count": np.array([self._count])}

    def restore(self, state: Mapping[str, NDArray]) -> None:
        """Go back to what `state` returned."""
        self._sums, self._count = np.array(state["sums"], np.float64), int(state["count"][0])


class Differences:
    """Turns counts that only grow into what was added since the last report."""

    def __init__(self) -> None:
        self._before: dict[str, float] = {}

    def take(self, totals: Mapping[str, float]) -> dict[str, float]:
        """What was added to each since the last call."""
        added = {name: total - self._before.get(name, 0) for name, total in totals.items()}
        self._before = dict(totals)
        return added


#: Count, sum, least and most of some numbers.
Range = tuple[float, float, float, float]


class RangeReducer:
    """Range and mean of numbers since the last report."""

    _NOTHING = (0, 0, math.inf, -math.inf)

    def __init__(self) -> None:
        self._count: float = 0
        self._sum: float = 0
        _, _, self._least, self._most = self._NOTHING

    def add(self, number: float, count: int = 1) -> None:
        """`count` times a number."""
        self._count += count
        self._sum += number * count
        self._least, self._most = min(self._least, number), max(self._most, number)

    def take(self) -> Range:
        """The range since the last call."""
        taken = (self._count, self._sum, self._least, self._most)
        self._count, self._sum, self._least, self._most = self._NOTHING
        return taken


def range_columns(prefix: str, parts: Sequence[Range]) -> Row:
    """The columns PREFIX + "min", "mean" and "max" that the reducers of all ranks make; NaN where nothing was added."""
    counts, sums, least, most = (list(values) for values in zip(*parts, strict=True))
    numbers = [min(least), sum(sums) / sum(counts), max(most)] if sum(counts) else [math.nan] * 3
    return {prefix + name: number for name, number in zip(("min", "mean", "max"), numbers, strict=True)}


def _mean(values: NDArray) -> float:
    return float(values.mean()) if len(values) else math.nan


class CsvFile:
    """A CSV file of one kind of row, flushed row by row."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._columns = tuple(columns)
        fresh = not path.exists() or path.stat().st_size == 0
        self._file = path.open("a", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")
        if fresh:
            self._writer.writerow(self._columns)
            self._file.flush()

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows; NaN becomes an empty cell."""
        self._writer.writerows([[_cell(row.get(name, "")) for name in self._columns] for row in rows])
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _cell(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    if math.isnan(value):
        return ""
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def cut_csv(path: Path, column: str, last: int | Sequence[int], by: str = "") -> int:
    """Drop the rows whose `column` is above `last`, and a torn last line; how many were dropped.

    The file is replaced as a whole, so that a kill leaves the old or the new one.

    Args:
        path: the file, if there is one.
        column: of whole numbers.
        last: the same for all rows, or one for each value of the column `by`.
        by: of whole numbers, from 0.
    """
    if not path.exists():
        return 0
    with path.open(newline="") as file:
        text = file.read()
    # A line without its end was torn by a kill, even where it looks whole.
    whole = text[: text.rfind("\n") + 1]
    header, *rows = list(csv.reader(whole.splitlines())) or [[]]
    names = [name for name in (column, by) if name]
    if not set(names) <= set(header):
        return 0
    columns = [header.index(name) for name in names]

    def stays(row: list[str]) -> bool:
        if len(row) != len(header) or not all(row[place].isdigit() for place in columns):
            return False
        number, *rest = (int(row[place]) for place in columns)
        return number <= (last if isinstance(last, int) else last[rest[0]] if rest[0] < len(last) else -1)

    kept = [row for row in rows if stays(row)]
    num_dropped = len(rows) - len(kept) + (whole != text)
    if not num_dropped:
        return 0
    replacement = path.with_name(f".{path.name}.cut")
    with replacement.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *kept])
    replacement.replace(path)
    return num_dropped


class TensorBoardFile:
    """TensorBoard events with the names of the columns, over env steps."""

    def __init__(self, folder: Path, first_step: int) -> None:
        # Imported late: it costs a second, and only rank 0 writes.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_step or None, flush_secs=10)

    def write(self, row: Row) -> None:
        """Add a row's numbers."""
        step = int(row["env_steps"])
        for name, value in row.items():
            if "/" in name and not math.isnan(value):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()
