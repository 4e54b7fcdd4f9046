"""Gathers the whole state of a run on rank 0, and has it written while training goes on."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import numpy as np

from hpcrl.cluster.collectives import gather
from hpcrl.cluster.ranks import Ranks
from hpcrl.cluster.waiting import Waiter
from hpcrl.config import TrainConfig, to_json
from hpcrl.roles.recorder import FORMAT_VERSION, Recorder
from hpcrl.roles.reporting import Reporter
from hpcrl.roles.snapshot import Arrays, merge_environments, optimizer_arrays, weight_arrays
from hpcrl.roles.station import Station


class Saver:
    """Every method is collective over the world.

    Args:
        config: of the run.
        ranks, station, waiter, reporter: of this rank.
        recorder: the run's files, on rank 0; None elsewhere.
    """

    def __init__(
        self,
        config: TrainConfig,
        ranks: Ranks,
        station: Station,
        waiter: Waiter,
        reporter: Reporter,
        recorder: Recorder | None,
    ) -> None:
        self._config, self._ranks, self._station, self._waiter = config, ranks, station, waiter
        self._reporter, self._recorder = reporter, recorder
        # Of the last checkpoint: the system takes several times as long to find memory as to copy into it.
        self._room: Arrays = {}

    def save_checkpoint(self, env_steps: int, learner_updates: int, evaluation: float) -> None:
        """Take a checkpoint for the run directory, which rank 0 writes in the background; arguments as of `snapshot`.

        Waits for the one before it: at most one is under way, and in memory.
        """
        begin = time.monotonic()
        if self._recorder is not None:
            self._recorder.finish_save()
        arrays, attributes = self.snapshot(env_steps, learner_updates, evaluation, self._room)
        self._room = {name: array for name, array in arrays.items() if name.startswith(("weights/", "optimizer/"))}
        if self._recorder is not None:
            self._recorder.save(arrays, attributes)
            self._recorder.pause_s += time.monotonic() - begin

    def snapshot(
        self, env_steps: int, learner_updates: int, evaluation: float = math.nan, room: Arrays | None = None
    ) -> tuple[Arrays, dict[str, Any]]:
        """The state of the run on rank 0, arrays by name and attributes; empty elsewhere. All of it is copies.

        Args:
            env_steps, learner_updates: so far.
            evaluation: the score of an evaluation of these weights; NaN where there was none.
            room: arrays that nobody needs any more, to copy into.
        """
        self._reporter.collect_episodes()
        station = self._station
        states = gather(self._ranks.world, None if station.actor is None else station.actor.state(), self._waiter)
        optimizer, updates = station.gather_optimizer(), self._reporter.updates_so_far()
        if self._recorder is None or optimizer is None:
            return {}, {}
        arrays = weight_arrays(station.flat, room) | optimizer_arrays(station.flat, optimizer, room)
        arrays |= merge_environments([state for state in states if state is not None])
        arrays |= {"rng/seed": np.array([self._config.seed]), "rng/action_counter": arrays["environments/rows"]}
        arrays |= {f"normalisers/{name}": array for name, array in station.normaliser_arrays().items()}
        arrays |= {f"progress/updates/{name}": array for name, array in updates.items()}
        arrays |= {f"progress/episodes/{name}": array for name, array in self._recorder.episodes.state().items()}
        attributes = {
            "format_version": FORMAT_VERSION,
            "config": json.dumps(to_json(self._config)),
            "env_steps": env_steps,
            "learner_updates": learner_updates,
            "elapsed_s": self._recorder.elapsed_s,
            "best_score": self._recorder.note_score(evaluation),
        }
        return arrays, attributes
