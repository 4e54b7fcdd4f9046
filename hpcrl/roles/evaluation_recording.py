"""Records the episodes of evaluations: a shard for those that are played side by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpcrl.config import ActorCriticConfig
from hpcrl.envs.episodes import Finals, Step
from hpcrl.roles.recording import Complaints, describe
from hpcrl.spaces import Task
from hpcrl.storage.shard_table import Block
from hpcrl.storage.shards import ShardOptions, ShardWriter
from hpcrl.unroll import Memory


class EvaluationRecorder:
    """Of one rank. Local.

    Args:
        config, task: of the run.
        memory: of the policy.
        rank: of the world.
        directory: of the shards.
        number: of the first one.

    Attributes:
        number: of the next shard.
        env_steps, learner_updates: of the run, at the evaluation to come.
        complaints: what the disk refused.
    """

    def __init__(
        self, config: ActorCriticConfig, task: Task, memory: Memory, rank: int, directory: Path, number: int
    ) -> None:
        self._config, self._task, self._memory = config, task, replace(memory, discounted_returns=False)
        self._rank, self.number = rank, number
        # A shard ends with its wave.
        self._options = ShardOptions(directory, 1 << 62, config.record_compression)
        self.env_steps = self.learner_updates = 0
        self.complaints = Complaints()

    def begin(self, wave: range, task: int) -> WaveRecording:
        """Record the episodes of a task with these numbers, which are the indices of their environments."""
        about = describe(self._config, self._task, self._memory, "evaluation", self._rank, wave.start, self.number)
        about = replace(about, task=task)
        writer = ShardWriter(self._options, about, self._task, self._memory, np.arange(wave.start, wave.stop))
        return WaveRecording(self, writer, self._config.unroll_length)


class WaveRecording:
    """Of some episodes that are played side by side; what an environment does after its episode does not count."""

    def __init__(self, recorder: EvaluationRecorder, writer: ShardWriter, unroll_length: int) -> None:
        self._recorder, self._writer, self._unroll_length = recorder, writer, unroll_length
        self._rows: list[dict[str, NDArray]] = []
        self._finals: list[NDArray] = []
        self._first_row = 0
        self._next_observation: NDArray | None = None
        self._before: tuple[NDArray[np.float32], NDArray] = np.zeros(0, np.float32), np.zeros(0)

    def add(
        self,
        observation: NDArray,
        action: NDArray,
        log_prob: NDArray[np.float32],
        value: NDArray[np.float32],
        step: Step,
        lasts: Finals | None,
        is_done: NDArray[np.bool_],
        before: tuple[NDArray[np.float32], NDArray],
    ) -> None:
        """One step of all environments.

        Args:
            observation, action, log_prob, value: [b, ...] each: seen, done, and said of it.
            step: what came of it.
            lasts: last observations of episodes that ended.
            is_done: bool [b], environments whose episode was over before.
            before: recurrent states float32 [b, S] and frames [num_history, b, ...] before the observation.
        """
        if not self._rows:
            self._before = before
        counts = ~is_done
        self._rows.append(
            {
                "observation": observation.copy(),
                "action": action,
                "reward": step.reward,
                "terminated": step.terminated & counts,
                "truncated": step.truncated & counts,
                "ended": step.ended & counts,
                "valid": step.valid & counts,
                "behaviour_log_prob": log_prob,
                "value": value,
                # Episodes after the first have no steps that count, and so no line in the table.
                "episode_number": step.episode_number,
                "episode_length": np.where(is_done, 0, step.episode_length),
                "episode_return": np.where(is_done, 0.0, step.episode_return),
            }
        )
        self._next_observation = step.observation
        if lasts is not None:
            chosen = counts[lasts.rows]
            self._finals += [last.copy() for last in lasts.observations[chosen]]
        if len(self._rows) == self._unroll_length:
            self._flush()

    def finish(self) -> None:
        """All episodes are over: close the shard."""
        if self._rows:
            self._flush()
        with self._recorder.complaints.catching():
            self._writer.close()
        self._recorder.number = self._writer.next_number

    def _flush(self) -> None:
        assert self._next_observation is not None
        columns = {name: np.stack([row[name] for row in self._rows]) for name in self._rows[0]}
        observation = columns["observation"]
        finals = np.zeros((len(self._finals), *observation.shape[2:]), observation.dtype)
        for place, last in enumerate(self._finals):
            finals[place] = last
        core_state, history = self._before
        counters = {name: columns.pop(name) for name in ("episode_number", "episode_length", "episode_return")}
        header = {"policy_version": self._recorder.learner_updates, "first_env_step": self._first_row}
        block = Block(
            series=columns,
            next_observation=self._next_observation,
            **counters,
            final_observation=finals,
            header=header,
            core_state=core_state,
            history=history,
        )
        with self._recorder.complaints.catching():
            self._writer.append(block, self._recorder.env_steps)
        self._first_row += len(self._rows)
        self._rows, self._finals = [], []
