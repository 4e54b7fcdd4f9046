"""What a person sees of a run: a progress bar on a terminal, plain lines elsewhere, and a table at the end."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from hpcrl.cluster.launch import inside_mpi
from hpcrl.metrics import Row

#: Set by the process that starts the ranks, whose terminal they don't see: its width in columns.
TERMINAL_VARIABLE = "HPCRL_TERMINAL_COLUMNS"
_MAX_TABLE_ROWS = 20
_ROWS_OF_RATE = 5


def terminal_environment() -> dict[str, str]:
    """What tells ranks of the terminal that their output ends on."""
    if not sys.stdout.isatty():
        return {}
    return {TERMINAL_VARIABLE: str(os.get_terminal_size().columns)}


class Display:
    """Shows the rows of a run as they come; on rank 0 only."""

    def __init__(self, total_env_steps: int, num_iterations: int, environment: Mapping[str, str]) -> None:
        self._console = _console(environment)
        self._num_iterations = num_iterations
        self._rows: list[Row] = []
        self._progress: Progress | None = None
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.fields[line]}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(elapsed_when_finished=False),
                console=self._console,
            )
            self._task = self._progress.add_task("train", total=total_env_steps, line="starting")
            self._progress.start()
        self._total = total_env_steps

    def say(self, line: str) -> None:
        """A line for people."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def add(self, row: Row) -> None:
        """Show a row."""
        self._rows.append(row)
        line = (
            f"iteration {row['iteration']:.0f}/{self._num_iterations}  env steps {row['env_steps']:,.0f}  "
            f"{_success(row)}  {_number(row['time/env_steps_per_s'], ',.0f')} steps/s"
        )
        if self._progress is not None:
            self._progress.update(self._task, completed=row["env_steps"], line=line)
        else:
            self.say(f"{line}  ETA {self._eta(row)}")

    def _eta(self, row: Row) -> str:
        """By the rate of the last rows: a single one may be slow for once."""
        before = self._rows[-_ROWS_OF_RATE - 1 : -1]
        steps, seconds_taken = row["time/env_steps_per_s"], 1.0
        if before:
            steps = row["env_steps"] - before[0]["env_steps"]
            seconds_taken = row["time/elapsed_s"] - before[0]["time/elapsed_s"]
        if not (steps > 0 and seconds_taken > 0):
            return "-"
        seconds = round((self._total - row["env_steps"]) * seconds_taken / steps)
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"

    def finish(self) -> None:
        """Leave the progress bar and show the table of iterations."""
        if self._progress is not None:
            self._progress.stop()
        if not self._rows:
            return
        # Where no episode ended, as under bc, the loss is all there is.
        shows_loss = all(math.isnan(_mean_return(row)) for row in self._rows)
        table = Table(title=f"{'policy loss' if shows_loss else 'mean return'} by iteration")
        measures = ("policy loss",) if shows_loss else ("episodes", "mean return", "last 100")
        for heading in ("iteration", "env steps", *measures, "seconds"):
            table.add_column(heading, justify="right")
        for row in self._chosen():
            episodes = "untrained" if row["iteration"] == 0 else _number(row["rollout/episodes"], ".0f")
            measured = (episodes, _number(_mean_return(row)), _number(row["rollout/return_last_100"]))
            table.add_row(
                f"{row['iteration']:.0f}",
                f"{row['env_steps']:,.0f}",
                *((_number(row["train/policy_loss"], ".4f"),) if shows_loss else measured),
                _number(row["time/elapsed_s"]),
            )
        self._console.print(table)

    def _chosen(self) -> list[Row]:
        """All rows, or some at equal distances and the last."""
        step = -(-len(self._rows) // _MAX_TABLE_ROWS)
        return self._rows[::-step][::-1]


def _console(environment: Mapping[str, str]) -> Console:
    if columns := environment.get(TERMINAL_VARIABLE):
        return Console(force_terminal=True, width=int(columns))
    # Launchers may give their ranks a terminal of their own, whatever their output goes to.
    return Console(force_terminal=False) if inside_mpi(environment) else Console()


def _success(row: Row) -> str:
    """The mean return; where no episode has ended since the last row (bc acts none) the policy's loss."""
    mean, loss = _mean_return(row), row["train/policy_loss"]
    return f"policy loss {loss:.4f}" if math.isnan(mean) and not math.isnan(loss) else f"return {_number(mean)}"


def _mean_return(row: Row) -> float:
    """The training episodes' mean return; of the untrained policy its evaluation's."""
    mean = row["rollout/episode_return_mean"]
    return row["eval/episode_return_mean"] if math.isnan(mean) else mean


def _number(value: float, form: str = ".1f") -> str:
    return "-" if math.isnan(value) else format(value, form)
