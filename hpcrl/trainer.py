"""The Python API: a trainer, built from a configuration and a communicator, run iteration by iteration."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import torch

from hpcrl.activity import Activity, Phase
from hpcrl.cluster.affinity import Affinity, settle_cores
from hpcrl.cluster.collectives import broadcast, gather, on_root
from hpcrl.cluster.failures import end_job, ending_the_job
from hpcrl.cluster.heartbeats import Heartbeats
from hpcrl.cluster.library import library
from hpcrl.cluster.mpi import Comm, check_world, self_test, world
from hpcrl.cluster.ranks import Ranks, split_nodes
from hpcrl.cluster.waiting import Waiter
from hpcrl.cluster.weights import Control
from hpcrl.config import A3CConfig, ActorCriticConfig, ImpalaConfig, TrainConfig, from_facts
from hpcrl.envs.factory import describe_task
from hpcrl.envs.restore import Restored
from hpcrl.envs.tasks import common_task
from hpcrl.envs.world import worlds_of
from hpcrl.errors import HpcrlError
from hpcrl.metrics import Row
from hpcrl.roles.account import Account
from hpcrl.roles.asynchronous import AsynchronousStation
from hpcrl.roles.boundary import Boundary, iteration_of
from hpcrl.roles.computing import make_accelerator, plan
from hpcrl.roles.playable import require_playable
from hpcrl.roles.recorder import Recorder, run_facts
from hpcrl.roles.reporting import Reporter
from hpcrl.roles.resume import checkpoint_config, load_into, record_resume, require_fit
from hpcrl.roles.saving import Saver
from hpcrl.roles.scoring import evaluate
from hpcrl.roles.snapshot import environments_of
from hpcrl.roles.station import Station
from hpcrl.roles.synchronous import SynchronousStation
from hpcrl.roles.tracing import Tracing
from hpcrl.signals import Requests
from hpcrl.spaces import Task
from hpcrl.storage.checkpoints import Checkpoint, CheckpointStore, load_checkpoint, save_checkpoint
from hpcrl.storage.run_directory import RunDirectory, default_run_dir
from hpcrl.storage.trajectories import put_aside

_ASKED_TO_STOP = "asked to stop"
#: The column that an evaluation is judged by.
_SCORE = "eval/episode_return_mean"


class Trainer:
    """Trains one policy. Every method is collective over `comm` unless it says "Local."

    Args:
        config: what to train; rank 0's counts.
        comm: an mpi4py communicator; MPI_COMM_WORLD by default.
        requests: signals that the run obeys; none by default.
        start_from: a checkpoint to begin with (see `restore`); by default the run directory's own under `resume`.

    Attributes:
        run_dir: where the run lies.
        stopped: why the run is over, once it is.
        account: what became of all unrolls (of all gradients under a3c), once the run is over.
        recording_failures: how often a disk refused what was recorded, once the run is over; on rank 0, 0 elsewhere.
        plan: who does what, and on what.
        trace_file: the trace that `close` wrote; on rank 0, where the configuration asks for it.

    Raises:
        ConfigError, RankError, CheckpointError: before the first step, on all ranks.
    """

    def __init__(
        self,
        config: TrainConfig,
        comm: Comm | None = None,
        requests: Requests | None = None,
        start_from: Checkpoint | None = None,
    ) -> None:
        self._comm = world() if comm is None else comm
        self._affinity = Affinity()
        self._heartbeats: Heartbeats | None = None
        self._directory: RunDirectory | None = None
        self._recorder: Recorder | None = None
        with ending_the_job(self._comm):
            try:
                self._build(config, requests or Requests(), start_from)
            except BaseException:
                self._let_go()
                raise

    def _build(self, config: TrainConfig, requests: Requests, start_from: Checkpoint | None) -> None:
        comm = self._comm
        self._activity = Activity()
        self._waiter = Waiter(self._activity)
        check_world(comm, config.ranks, os.environ)
        self_test(comm)
        opened = on_root(comm, lambda: self._open(config, start_from), self._waiter)
        self.config, self.run_dir, self._task, checkpoint = opened

        node, nodes = split_nodes(comm)
        settings = self.config
        self.plan = plan(settings, self._task, comm, nodes, self._waiter)
        self._ranks = Ranks(comm, self.plan.layout, node)
        # Before there are models, whose memory lies near the core that first writes it.
        self._affinity = settle_cores(self._ranks, settings.pin_cores, settings.learner_cores, os.environ, self._waiter)
        self._heartbeats = Heartbeats(self._ranks, self._activity, settings.hang_timeout)
        self._waiter.watch = self._heartbeats.watch
        self._tracing = Tracing(self._ranks, self._activity, self._waiter) if settings.profile else None
        self.trace_file: Path | None = None
        parts = (self._task, self._ranks, requests, self._waiter)
        self._station: Station
        if isinstance(settings, A3CConfig):
            self._station = AsynchronousStation(settings, *parts)
        else:
            accelerator = make_accelerator(self.plan.devices.get(comm.rank))
            self._station = SynchronousStation(settings, *parts, accelerator)
        self._begin(checkpoint)

        self.stopped: str | None = None
        self.recording_failures = 0
        self.account: Account | None = None
        self._evaluation: Row = {}
        self._control = self._station.role.start()
        self._row_at_start = self._act_on(self._control)

    def _open(
        self, config: TrainConfig, start_from: Checkpoint | None
    ) -> tuple[ActorCriticConfig, Path, Task, Checkpoint | None]:
        """Look at the environment, claim the run directory, read the checkpoint. Local, on rank 0."""
        assert isinstance(config, ActorCriticConfig), "every algorithm so far is an actor-critic"
        tasks = [describe_task(world, config.hang_timeout) for world in worlds_of(config)]
        task = common_task(config.env_ids, tasks, config.task_id)
        require_playable(config, task, self._comm.size)
        directory = RunDirectory(config.run_dir or default_run_dir(config))
        directory.open(config.resume)
        checkpoint = start_from
        try:
            if config.resume and checkpoint is None:
                checkpoint = CheckpointStore(directory.checkpoints, config.checkpoint_keep).newest()
            if checkpoint is not None:
                require_fit(checkpoint, config, task)
        except HpcrlError:
            directory.close()
            raise
        self._directory = directory
        return config, directory.path, task, checkpoint

    def _begin(self, checkpoint: Checkpoint | None) -> None:
        """Go to where `checkpoint` stands, or to the start, and open the files."""
        ranks, station = self._ranks, self._station
        weights = broadcast(ranks.world, station.flat.weights.detach().numpy(), self._waiter)
        station.flat.weights.detach().copy_(torch.from_numpy(weights))
        restored = Restored()
        if checkpoint is not None:
            load_into(station, checkpoint)
            if station.actor is not None:
                block = ranks.layout.env_blocks[ranks.rank]
                restored = station.actor.restore(environments_of(checkpoint.arrays, block, self.config.num_envs))
        parts = gather(ranks.world, restored, self._waiter)
        hosts = gather(ranks.world, os.uname().nodename, self._waiter)
        if self._directory is not None:
            self._recorder = Recorder(self._directory, self.config, checkpoint)
            num_cpus = len(self._affinity.started_with)
            facts = run_facts(self.config, self._task, self.plan, hosts, num_cpus)
            record_resume(self._directory, facts, checkpoint, sum(parts, Restored()))
        number = on_root(ranks.world, lambda: self._put_aside(checkpoint), self._waiter)
        env_steps = 0 if checkpoint is None else int(checkpoint.attributes["env_steps"])
        station.record(self._trajectories, number, env_steps)
        self._reporter = Reporter(ranks, station, self._waiter, self._activity, self._recorder)
        self._saver = Saver(self.config, ranks, station, self._waiter, self._reporter, self._recorder)

    @property
    def _trajectories(self) -> Path:
        return RunDirectory(self.run_dir).trajectories

    def _put_aside(self, checkpoint: Checkpoint | None) -> int:
        """Put aside what was recorded after `checkpoint`; the number of the next shard. Local, on rank 0."""
        if checkpoint is None:
            return put_aside(self._trajectories, None, 0)
        rows, env_steps = checkpoint.arrays["rng/action_counter"], int(checkpoint.attributes["env_steps"])
        return put_aside(self._trajectories, rows, env_steps)

    # Running

    @property
    def env_steps(self) -> int:
        """Environment steps learned from, over all actors. Local; the same on every rank."""
        return self._control.env_steps

    @property
    def learner_updates(self) -> int:
        """Optimizer steps so far. Local; the same on every rank."""
        return self._control.policy_version

    def __iter__(self) -> Iterator[Row]:
        while (row := self.train()) is not None:
            yield row

    def train(self) -> Row | None:
        """One iteration; its row of metrics on every rank, None once the run is over (or was asked to stop)."""
        row, self._row_at_start = self._row_at_start, None
        with ending_the_job(self._comm):
            while row is None and self.stopped is None:
                self._control = self._station.role.advance()
                row = self._act_on(self._control)
        return row

    def _act_on(self, control: Control) -> Row | None:
        """What all ranks do together before the next unroll; the row where it ends an iteration."""
        flags = Boundary(control.flags)
        row: Row | None = None
        evaluation = math.nan
        if flags & Boundary.EVALUATE:
            with self._activity.during(Phase.EVALUATING):
                flags |= self._evaluate()
            evaluation = self._evaluation.get(_SCORE, math.nan)
        if flags & Boundary.REPORT:
            with self._activity.during(Phase.REPORTING):
                row, reached = self._report()
            if reached and not flags & Boundary.STOP:
                self.stopped = "--stop-return reached"
                flags |= Boundary.SAVE
        if flags & Boundary.STOP:
            self.stopped = "finished" if control.env_steps >= self.config.total_env_steps else _ASKED_TO_STOP
        if self.stopped is not None:
            self.account = self._reporter.account()
        if flags & Boundary.SAVE:
            self._close_shards()
            with self._activity.during(Phase.SAVING):
                self._saver.save_checkpoint(self.env_steps, self.learner_updates, evaluation)
        if self.stopped is not None:
            self._count_recording_failures()
        if self.stopped is not None and self._recorder is not None:
            with self._activity.during(Phase.SAVING):
                self._recorder.conclude(is_finished=self.stopped != _ASKED_TO_STOP)
        return row

    def _close_shards(self) -> None:
        """What a checkpoint counts is on disk before it. Local."""
        actor = self._station.actor
        if actor is not None and actor.recording is not None:
            with self._activity.during(Phase.SAVING):
                actor.recording.close_shard(self.env_steps)

    def _count_recording_failures(self) -> None:
        self.recording_failures = sum(gather(self._ranks.world, self._station.recording_failures(), self._waiter))

    def _evaluate(self) -> Boundary:
        """Play the evaluation's episodes; SAVE where the policy is the best so far."""
        if (recorder := self._station.evaluation_recorder) is not None:
            recorder.env_steps, recorder.learner_updates = self.env_steps, self.learner_updates
        self._evaluation = evaluate(self.config, self._task, self._ranks, self._station, self._waiter)
        improved = False
        if self._recorder is not None:
            improved = self.env_steps > 0 and self._evaluation[_SCORE] > self._recorder.best_score
        return Boundary.SAVE if broadcast(self._ranks.world, improved, self._waiter) else Boundary.NONE

    def _report(self) -> tuple[Row, bool]:
        progress: Row = {
            "iteration": iteration_of(self.config, self.env_steps),
            "env_steps": self.env_steps,
            "learner_updates": self.learner_updates,
            **self._evaluation,
        }
        self._evaluation = {}
        return self._reporter.report(progress, self.config.stop_return)

    # Saving

    def save(self, path: str | Path) -> None:
        """Write the whole state of the run to one file, whatever the run directory keeps; it is there on return.

        Raises:
            CheckpointError: the file can't be written; on every rank.
        """
        arrays, attributes = self._saver.snapshot(self.env_steps, self.learner_updates)
        on_root(self._ranks.world, lambda: save_checkpoint(Path(path), arrays, attributes), self._waiter)

    @classmethod
    def restore(cls, path: str | Path, comm: Comm | None = None, run_dir: str | Path | None = None) -> Trainer:
        """A trainer that goes on from a file that `save` wrote, or from the newest good checkpoint of a run directory.

        A file's run goes on in `run_dir`, a new one by default; a run directory's in itself.

        Raises:
            CheckpointError: no good checkpoint is there.
        """
        comm = world() if comm is None else comm
        source, waiter = Path(path), Waiter(Activity())
        if on_root(comm, source.is_dir, waiter):
            config = on_root(comm, lambda: from_facts(RunDirectory(source).read_config()), waiter)
            return cls(dataclasses.replace(config, run_dir=source, resume=True, ranks=None), comm)
        checkpoint = on_root(comm, lambda: load_checkpoint(source), waiter)
        folder = None if run_dir is None else Path(run_dir)
        config = dataclasses.replace(checkpoint_config(checkpoint), run_dir=folder, resume=False, ranks=None)
        return cls(config, comm, start_from=checkpoint)

    # Leaving

    @property
    def layout_description(self) -> str:
        """Who does what, one line. Local."""
        return self.plan.layout.describe()

    @property
    def notes(self) -> list[str]:
        """What a person should know before the first step, one line each. Local."""
        notes = [f"MPI: {library()}"]
        if self.config.source is not None:
            notes.append(f"nothing is acted: unrolls are read from {self.config.source}")
        if (learning := self.plan.describe()) is not None:
            notes.append(learning)
            if isinstance(self._station, SynchronousStation) and self._station.why_reduction:
                notes.append(self._station.why_reduction)
        if not self._task.layout_invariant:
            notes.append("layout_invariant: false; another number of ranks gives another run (--vector sync does not)")
        if isinstance(self.config, ImpalaConfig) and self._ranks.layout.is_colocated and not self.config.in_lockstep:
            notes.append("ranks that act and learn take turns with themselves: no actor runs ahead")
        if self._ranks.layout.is_asynchronous and self._comm.size > 1:
            notes.append("asynchronous: gradients are applied as they arrive, so no run is repeated exactly")
        if idle := sum(not block for block in self._ranks.layout.env_blocks.values()):
            notes.append(f"{idle} actors have no environment: --num-envs {self.config.num_envs} is below their number")
        if self._affinity.note is not None:
            notes.append(self._affinity.note)
        return notes

    def weights_sha256(self) -> str:
        """Checksum of the weights. Local; the same on every rank once the run is over."""
        return hashlib.sha256(self._station.flat.weights.detach().numpy().tobytes()).hexdigest()

    @property
    def checkpoint_failures(self) -> int:
        """Checkpoints that could not be written. Local, on rank 0; 0 elsewhere."""
        return 0 if self._recorder is None else self._recorder.failures

    def close(self) -> None:
        """Write the trace where one was asked for; close environments, files and links; give back all CPUs."""
        self._close_shards()
        if self._tracing is not None:
            self.trace_file = self._write_trace(self._tracing)
        if self._recorder is not None:
            self._recorder.close()
        self._station.close()
        if self._heartbeats is not None:
            self._heartbeats.close(self._waiter)
        self._affinity.release()

    def _write_trace(self, tracing: Tracing) -> Path | None:
        config = self.config
        about = {
            "algorithm": config.algorithm,
            "env": config.env,
            "layout": self.layout_description,
            "env_steps": self.env_steps,
            "learner_updates": self.learner_updates,
        }
        return tracing.write(RunDirectory(self.run_dir).trace_file, about)

    def _let_go(self) -> None:
        """Leave this process as it was, where the others can't be told: it may go on without the trainer. Local."""
        if self._heartbeats is not None:
            self._heartbeats.abandon()
        self._affinity.release()
        if self._recorder is not None:
            self._recorder.abandon()
        elif self._directory is not None:
            self._directory.close()

    def __enter__(self) -> Trainer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        self._let_go()
        # The others may be anywhere: closing is collective, and they would wait for this rank.
        if self._comm.size > 1 and isinstance(error, Exception) and not getattr(error, "on_all_ranks", False):
            end_job(self._comm, error)
