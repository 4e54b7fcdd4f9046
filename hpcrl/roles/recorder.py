"""What rank 0 writes of a run: config, metrics, episodes, TensorBoard events, checkpoints."""

from __future__ import annotations

import math
import platform
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpcrl.cluster.library import library
from hpcrl.config import TrainConfig, to_json
from hpcrl.envs.tasks import divide
from hpcrl.errors import CheckpointError
from hpcrl.metrics import CsvFile, EpisodeReducer, Row, TensorBoardFile, columns_of, cut_csv
from hpcrl.noise import Purpose, seeds
from hpcrl.provenance import cpu_model, git_commit, package_versions
from hpcrl.roles.boundary import is_milestone
from hpcrl.roles.computing import Plan
from hpcrl.spaces import Task
from hpcrl.storage.background import Background
from hpcrl.storage.checkpoints import Checkpoint, CheckpointStore
from hpcrl.storage.run_directory import RunDirectory

FORMAT_VERSION = 1
_EPISODE_COLUMNS = ("env_step", "env_index", "episode", "seed", "length", "return")
#: Of a run of several tasks.
_TASK_COLUMN = "task"


class Recorder:
    """The files of one run; made on rank 0 only.

    Attributes:
        columns: of a row.
        episodes: reducer over the episodes of all actors.
        best_score: highest score of a checkpoint so far.
        failures: checkpoints that could not be written.
        pause_s: seconds that training stood still for checkpoints since the last report; the saver adds them up.
    """

    def __init__(self, directory: RunDirectory, config: TrainConfig, checkpoint: Checkpoint | None) -> None:
        self.directory, self._config = directory, config
        self._store = CheckpointStore(directory.checkpoints, config.checkpoint_keep, config.checkpoint_local)
        self._writer = Background()
        tasks = divide(range(config.num_envs), len(config.env_ids))
        self._tasks = dict(zip(config.env_ids, tasks, strict=True)) if len(tasks) > 1 else {}
        self.columns = columns_of(self._tasks)
        self.episodes = EpisodeReducer(self._tasks)
        self.best_score = -math.inf
        self.failures = 0
        self.pause_s = self._write_s = 0.0
        self._saved_steps = 0
        self._elapsed_before_s = 0.0
        self._steps_reported = 0
        # Of every environment; none before a start, so that no row stays.
        self._rows_before = np.zeros(0, np.int64)
        if checkpoint is not None:
            self._go_on_from(checkpoint)
        # Rows past the checkpoint are of a future that did not happen.
        cut_csv(directory.metrics_file, "env_steps", self._steps_reported)
        cut_csv(directory.episodes_file, "env_step", self._rows_before.tolist(), by="env_index")
        self._metrics = CsvFile(directory.metrics_file, self.columns)
        columns = (*_EPISODE_COLUMNS, *([_TASK_COLUMN] if self._tasks else []))
        self._episode_log = CsvFile(directory.episodes_file, columns) if config.episode_log else None
        self._tensorboard = TensorBoardFile(directory.path, self._steps_reported) if config.tensorboard else None
        self._started = self._reported = time.monotonic()
        directory.write_outcome("running")

    def _go_on_from(self, checkpoint: Checkpoint) -> None:
        self._elapsed_before_s = float(checkpoint.attributes["elapsed_s"])
        self.best_score = float(checkpoint.attributes["best_score"])
        self._steps_reported = self._saved_steps = int(checkpoint.attributes["env_steps"])
        # Not env_steps / num_envs: an environment also counts the rows in which it only reset itself.
        self._rows_before = checkpoint.arrays["rng/action_counter"]
        self.episodes.restore(checkpoint.group("progress/episodes"))

    def add_episodes(self, episodes: np.ndarray) -> None:
        """Episodes of all actors since the last call, dtype `hpcrl.metrics.EPISODE`."""
        self.episodes.add(episodes)
        if self._episode_log is None or not len(episodes):
            return
        ordered = np.sort(episodes, order=("env_step", "env_index"))
        episode_seeds = seeds(self._config.seed, ordered["env_index"], ordered["number"], Purpose.EPISODE_SEED)
        names = ("env_step", "env_index", "number", "length", "return")
        columns = [ordered[name].tolist() for name in names]
        lines = zip(*columns[:3], episode_seeds.tolist(), *columns[3:], strict=True)
        rows: list[dict[str, Any]] = [dict(zip(_EPISODE_COLUMNS, line, strict=True)) for line in lines]
        for task, envs in self._tasks.items():
            for row in rows:
                if row["env_index"] in envs:
                    row[_TASK_COLUMN] = task
        self._episode_log.write(rows)

    def report(self, row: Row) -> Row:
        """Complete a row with times and write it everywhere."""
        now, env_steps = time.monotonic(), int(row["env_steps"])
        row["time/elapsed_s"] = self.elapsed_s
        made = env_steps - self._steps_reported
        row["time/env_steps_per_s"] = made / max(now - self._reported, 1e-9) if made else math.nan
        self._reported, self._steps_reported = now, env_steps
        if self._writer.is_over:
            self.finish_save()
        row |= {"time/checkpoint_pause_s": self.pause_s, "time/checkpoint_write_s": self._write_s}
        self.pause_s = self._write_s = 0.0
        self._metrics.write([row])
        if self._tensorboard is not None:
            self._tensorboard.write(row)
        return row

    @property
    def elapsed_s(self) -> float:
        """Seconds of training, over all restarts."""
        return self._elapsed_before_s + time.monotonic() - self._started

    def note_score(self, evaluation: float) -> float:
        """The best score so far: of evaluations where the run has any, else of the last 100 episodes."""
        self._score = evaluation if self._config.eval_every else self.episodes.return_last_100
        self.best_score = max(self.best_score, self._score) if not math.isnan(self._score) else self.best_score
        return self.best_score

    def save(self, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> None:
        """Begin to write a checkpoint of the moment that was scored, in the background; the last one must be finished.

        Args:
            arrays: nobody changes them any more.
            attributes: of the checkpoint.
        """
        env_steps = int(attributes["env_steps"])
        score = None if math.isnan(self._score) else self._score
        milestone = is_milestone(self._config, self._saved_steps, env_steps)

        def write() -> None:
            self._store.save(f"step_{env_steps:012d}", arrays, attributes, score, milestone)
            self._saved_steps = env_steps

        self._writer.begin(write)

    def finish_save(self) -> None:
        """Wait for the checkpoint under way; a disk that refused it is a loud warning, the run goes on."""
        try:
            self._write_s += self._writer.wait()
        except CheckpointError as error:
            self.failures += 1
            warnings.warn(f"CHECKPOINT NOT WRITTEN, training goes on without it: {error}", RuntimeWarning, stacklevel=2)

    def conclude(self, is_finished: bool) -> None:
        """Wait for the last checkpoint, then note that the run left in order, for scripts; not where one is missing."""
        self.finish_save()
        if not self.failures:
            self.directory.write_outcome("finished" if is_finished else "stopped")

    def abandon(self) -> None:
        """Give up the run directory once nothing is written there any more, where the run did not leave in order."""
        self._writer.close()
        self.directory.close()

    def close(self) -> None:
        """Wait for the checkpoint under way, close the files and give up the run directory."""
        self.finish_save()
        self._writer.close()
        self._metrics.close()
        if self._episode_log is not None:
            self._episode_log.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        self.directory.close()


def run_facts(config: TrainConfig, task: Task, plan: Plan, hosts: list[str], num_cpus: int) -> dict[str, Any]:
    """What `config.json` says of a run: configuration, versions, machine and layout; never environment variables.

    Args:
        num_cpus: that rank 0 was started with; what it keeps to says nothing of the machine.
    """
    layout = plan.layout
    return {
        "config": to_json(config),
        "layout_invariant": task.layout_invariant,
        "layout": {
            "ranks": len(hosts),
            "hosts": hosts,
            "learners": list(layout.learners),
            "actors": {str(actor): [block.start, block.stop] for actor, block in layout.env_blocks.items()},
            "learner_of": {str(actor): learner for actor, learner in layout.learner_of.items()},
        },
        "versions": {
            "python": platform.python_version(),
            "mpi": library(),
            **package_versions(),
        },
        "machine": {
            "cpu": cpu_model(),
            "cores": num_cpus,
            "threads": torch.get_num_threads(),
            "gpus": {str(rank): device.name for rank, device in plan.devices.items() if device is not None},
        },
        "git_commit": git_commit(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


#: Parts of `config.json` whose change breaks the promise of a bit-for-bit resume.
_REPRODUCIBILITY = ("layout", "versions", "machine")


def changes_since(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two runs' facts and lets their numbers differ in the last bits."""
    changed = []
    for part in _REPRODUCIBILITY:
        old, new = before.get(part, {}), now[part]
        changed += [f"{part} {key}" for key in new if old.get(key) != new[key] and key != "hosts"]
    return changed
