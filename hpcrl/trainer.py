"""The Python API: builds the roles from a configuration and a communicator, and runs them iteration by iteration."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import threadpoolctl
import torch

from hpcrl.activity import Activity, Phase
from hpcrl.algorithms.a2c import STATISTICS
from hpcrl.cluster.collectives import broadcast, gather, on_root
from hpcrl.cluster.heartbeats import Heartbeats
from hpcrl.cluster.layout import Layout, plan_layout
from hpcrl.cluster.links import Links
from hpcrl.cluster.mpi import Comm, check_world, self_test, world
from hpcrl.cluster.ranks import Ranks, split_nodes
from hpcrl.cluster.transport import UnrollReceiver
from hpcrl.cluster.waiting import Waiter
from hpcrl.cluster.weights import Control
from hpcrl.config import A2CConfig, TrainConfig, from_facts, from_json, to_json
from hpcrl.envs.episodes import EpisodeEnvs
from hpcrl.envs.factory import describe_task
from hpcrl.envs.restore import Restored
from hpcrl.errors import CheckpointError, ConfigError
from hpcrl.metrics import COLUMNS, Row
from hpcrl.models.flat import FlatParameters
from hpcrl.models.policy import Policy
from hpcrl.roles.actor import Actor, ActorRank
from hpcrl.roles.boundary import Boundary, iteration_of
from hpcrl.roles.evaluation import play_episodes
from hpcrl.roles.learner import HostedReceiver, Learner
from hpcrl.roles.recorder import FORMAT_VERSION, Recorder, changes_since, run_facts
from hpcrl.roles.snapshot import (
    environments_of,
    load_optimizer,
    load_weights,
    merge_environments,
    optimizer_arrays,
    weight_arrays,
)
from hpcrl.signals import Requests
from hpcrl.spaces import Task
from hpcrl.storage.checkpoints import Checkpoint, CheckpointStore, load_checkpoint, require_matching, save_checkpoint
from hpcrl.storage.run_directory import RunDirectory
from hpcrl.unroll import UnrollSpec, num_finals


class Trainer:
    """Trains one policy. Every method is collective over `comm` unless it says "Local."

    Args:
        config: what to train; rank 0's counts.
        comm: an mpi4py communicator; MPI_COMM_WORLD by default.
        requests: signals that the run obeys; none by default.
        start_from: a checkpoint to begin with (see `restore`); by default the run directory's own under `resume`.

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
        comm = world() if comm is None else comm
        self._requests = requests or Requests()
        self._activity = Activity()
        self._waiter = Waiter(self._activity)
        config = broadcast(comm, config, self._waiter)
        assert isinstance(config, A2CConfig), "a2c is the only algorithm so far"
        self._check(comm, config)
        opened = self._open(comm, config, start_from)
        self.config, self.run_dir, self._task, checkpoint = opened
        node, nodes = split_nodes(comm)
        layout = on_root(
            comm, lambda: plan_layout(nodes, config.learners, config.placement, config.num_envs), self._waiter
        )
        self._ranks = Ranks(comm, layout, node)
        self._heartbeats = Heartbeats(self._ranks, self._activity, config.hang_timeout)
        self._waiter.watch = self._heartbeats.watch

        self._build_model()
        self._build_role(checkpoint)
        self._begin(checkpoint)
        self.stopped: str | None = None
        self._last_evaluation = (math.nan, math.nan)
        self._control = self._role.start()
        self._pending: Row | None = self._act_on(self._control)

    # Making

    def _check(self, comm: Comm, config: TrainConfig) -> None:
        check_world(comm, config.ranks, os.environ)
        self_test(comm)

    def _open(
        self, comm: Comm, config: A2CConfig, start_from: Checkpoint | None
    ) -> tuple[A2CConfig, Path, Task, Checkpoint | None]:
        """On rank 0: claim the run directory, read the checkpoint, look at the environment."""
        self._directory: RunDirectory | None = None

        def claim() -> tuple[A2CConfig, Path, Task, Checkpoint | None]:
            task = describe_task(config.env, config.vector)
            path = config.run_dir or _default_run_dir(config)
            directory = RunDirectory(path)
            directory.open(config.resume)
            checkpoint = start_from
            try:
                if config.resume and checkpoint is None:
                    checkpoint = CheckpointStore(directory.checkpoints, config.checkpoint_keep).newest()
                if checkpoint is not None:
                    _check_fits(checkpoint, config, task)
            except CheckpointError:
                directory.close()
                raise
            self._directory = directory
            return config, path, task, checkpoint

        return on_root(comm, claim, self._waiter)

    def _build_model(self) -> None:
        """The policy, the same everywhere: made from the seed, then rank 0's weights."""
        config = self.config
        # One thread first: the factorisation in the initial weights rounds differently on several.
        _limit_threads(1)
        self.policy = Policy(self._task, config.hidden_sizes, config.activation, config.shared_encoder)
        self.policy.initialise(config.seed)
        self._flat = FlatParameters(self.policy, len(STATISTICS) if self._ranks.is_learner else 0)

    def _build_role(self, checkpoint: Checkpoint | None) -> None:
        """The loop of this rank, and its ends of the transports."""
        ranks, config, layout = self._ranks, self.config, self._ranks.layout
        _limit_threads(config.learner_cores if ranks.is_learner else 1)
        specs = {actor: _unroll_spec(self._task, config, block) for actor, block in layout.env_blocks.items()}
        self._links = Links(ranks, specs, len(self._flat))
        self._actor: Actor | None = None
        if ranks.is_actor:
            block = layout.env_blocks[ranks.rank]
            envs = EpisodeEnvs(config.env, config.vector, self._task, len(block), block.start, config.seed)
            self._actor = Actor(ranks.rank, envs, self.policy, config.seed, self._requests, self._waiter)
        self._learner: Learner | None = None
        self._role: Learner | ActorRank
        if ranks.is_learner:
            self._learner = self._role = self._build_learner(specs)
        else:
            assert self._actor is not None
            self._role = ActorRank(
                self._actor, self._flat.weights, self._links.subscriber(), self._links.sender(), self._waiter
            )

    def _build_learner(self, specs: dict[int, UnrollSpec]) -> Learner:
        ranks = self._ranks
        assert ranks.learners is not None
        own = ranks.layout.actors_of(ranks.rank)
        receivers: list[UnrollReceiver] = []
        for actor in own:
            if actor == ranks.rank and self._actor is not None:
                receivers.append(HostedReceiver(self._actor, actor, specs[actor]))
            else:
                receivers.append(self._links.receiver(actor))
        return Learner(
            self.config,
            ranks.learners,
            self.policy,
            self._flat,
            receivers,
            [specs[actor] for actor in own],
            self._links.publisher(),
            self._requests,
            self._waiter,
        )

    def _begin(self, checkpoint: Checkpoint | None) -> None:
        """Go to where `checkpoint` stands, or to the start, and open the files."""
        ranks = self._ranks
        arrays, attributes = ({}, {}) if checkpoint is None else (checkpoint.arrays, checkpoint.attributes)
        weights = broadcast(ranks.world, self._flat.weights.detach().numpy(), self._waiter)
        self._flat.weights.detach().copy_(torch.from_numpy(weights))
        self._iteration = iteration_of(self.config, int(attributes.get("env_steps", 0)))
        if checkpoint is not None:
            load_weights(self._flat, arrays)
            if self._learner is not None:
                self._resume_learner(self._learner, checkpoint)
        self._recorder: Recorder | None = None
        if ranks.rank == 0:
            self._recorder = self._open_recorder(checkpoint)
        restored = Restored()
        if checkpoint is not None and self._actor is not None:
            block = ranks.layout.env_blocks[ranks.rank]
            restored = self._actor.envs.restore(environments_of(arrays, block, self.config.num_envs))
        parts = gather(ranks.world, restored, self._waiter)
        hosts = gather(ranks.world, os.uname().nodename, self._waiter)
        self.layout_description = ranks.layout.describe()
        if self._recorder is not None:
            self._write_config(hosts, checkpoint, sum(parts, Restored()))

    def _resume_learner(self, learner: Learner, checkpoint: Checkpoint) -> None:
        load_optimizer(self._flat, learner.optimizer, checkpoint.arrays)
        learner.env_steps = int(checkpoint.attributes["env_steps"])
        learner.learner_updates = int(checkpoint.attributes["learner_updates"])
        learner.reducer.restore(checkpoint.group("progress/updates"))
        self._activity.beat(update=learner.learner_updates)

    def _open_recorder(self, checkpoint: Checkpoint | None) -> Recorder:
        assert self._directory is not None
        recorder = Recorder(self._directory, self.config)
        recorder.begin(0 if checkpoint is None else int(checkpoint.attributes["env_steps"]), checkpoint)
        if checkpoint is not None:
            recorder.episodes.restore(checkpoint.group("progress/episodes"))
        return recorder

    def _write_config(self, hosts: list[str], checkpoint: Checkpoint | None, restored: Restored) -> None:
        """Write `config.json`; under resume say what differs from before, and what could not be restored. Local."""
        assert self._directory is not None
        facts = run_facts(self.config, self._task, self._ranks.layout, hosts)
        facts["resumes"] = []
        if checkpoint is not None and self._directory.config_file.exists():
            before = self._directory.read_config()
            facts["resumes"] = before.get("resumes", [])
            if changed := changes_since(before, facts):
                warnings.warn(
                    f"resumed where {', '.join(changed)} differ: not bit for bit what an uninterrupted run gives",
                    stacklevel=2,
                )
        if checkpoint is not None:
            steps = int(checkpoint.attributes["env_steps"])
            facts["resumes"] = [*facts["resumes"], {"env_steps": steps, **dataclasses.asdict(restored)}]
            if restored.begun_anew:
                warnings.warn(
                    f"{restored.begun_anew} environments could not be restored and begin new episodes", stacklevel=2
                )
        self._directory.write_config(facts)

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
        if self._pending is not None:
            row, self._pending = self._pending, None
            return row
        while self.stopped is None:
            self._control = self._role.advance()
            if row := self._act_on(self._control):
                return row
        return None

    def _act_on(self, control: Control) -> Row | None:
        """What all ranks do together before the next unroll; the row where it ends an iteration."""
        flags = Boundary(control.flags)
        row: Row | None = None
        if flags & Boundary.EVALUATE:
            flags |= self._evaluate()
        if flags & Boundary.REPORT or control.round == 0 and flags & Boundary.EVALUATE:
            row, reached = self._report()
            if reached and not flags & Boundary.STOP:
                self.stopped = "--stop-return reached"
                flags |= Boundary.SAVE
        if flags & Boundary.STOP:
            self.stopped = "finished" if control.env_steps >= self.config.total_env_steps else "asked to stop"
        if flags & Boundary.SAVE:
            with self._activity.during(Phase.SAVING):
                self._save_checkpoint()
        return row

    def _evaluate(self) -> Boundary:
        """Play the evaluation's episodes, dealt out over the actors; SAVE where the policy is the best so far."""
        ranks, config = self._ranks, self.config
        results = np.empty((0, 2))
        if self._actor is not None:
            share = np.array_split(np.arange(config.eval_episodes), len(ranks.layout.actors))[
                ranks.layout.actors.index(ranks.rank)
            ]
            with self._activity.during(Phase.EVALUATING):
                episodes = range(int(share[0]), int(share[-1]) + 1) if len(share) else range(0)
                results = play_episodes(
                    self.policy, config.env, self._task, episodes, config.seed, config.eval_deterministic, self._waiter.tick
                )
        parts = gather(ranks.world, results, self._waiter)
        improved = False
        if self._recorder is not None:
            returns = np.concatenate(parts)[:, 0]
            self._last_evaluation = (float(returns.mean()), float(returns.std()))
            improved = self._last_evaluation[0] > self._recorder.best_score and self.env_steps > 0
        return Boundary.SAVE if broadcast(ranks.world, improved, self._waiter) else Boundary.NONE

    def _report(self) -> tuple[Row, bool]:
        """Gather an iteration's numbers into a row on every rank, and whether --stop-return is reached."""
        ranks = self._ranks
        with self._activity.during(Phase.REPORTING):
            self._collect_episodes()
            seconds = gather(ranks.world, self._activity.take_seconds(), self._waiter)
            traffic = gather(ranks.world, self._take_traffic(), self._waiter)
            row: Row = {}
            reached = False
            if self._recorder is not None:
                row = self._recorder.report(self._compose(np.array(seconds), np.sum(traffic, axis=0)))
                target = self.config.stop_return
                reached = target is not None and self._recorder.episodes.return_last_100 >= target
            return broadcast(ranks.world, (row, reached), self._waiter)

    def _collect_episodes(self) -> None:
        """Bring the learners' episodes to rank 0's record."""
        mine = None if self._learner is None else self._learner.take_episodes()
        parts = gather(self._ranks.world, mine, self._waiter)
        if self._recorder is not None:
            self._recorder.add_episodes(np.concatenate([part for part in parts if part is not None]))

    def _take_traffic(self) -> np.ndarray:
        """Bytes of (gradients, unrolls, weights) that this rank's links carried since the last call. Local."""
        if self._learner is None:
            return np.zeros(3)
        return np.array(self._learner.take_traffic(), np.float64)

    def _compose(self, seconds: np.ndarray, traffic: np.ndarray) -> Row:
        """The row of the iteration that ends here, but for its times. Local, on rank 0."""
        assert self._recorder is not None and self._learner is not None
        actors, learners = list(self._ranks.layout.actors), list(self._ranks.layout.learners)
        row: Row = dict.fromkeys(COLUMNS, math.nan)
        self._iteration = iteration_of(self.config, self.env_steps)
        row |= {"iteration": self._iteration, "env_steps": self.env_steps, "learner_updates": self.learner_updates}
        row |= self._recorder.episodes.take() | self._learner.reducer.take()
        for role, members in (("actor", actors), ("learner", learners)):
            for phase in (Phase.ACTING, Phase.WAITING, Phase.COMMUNICATING, Phase.LEARNING):
                name = f"time/{role}_{phase.name.lower()}_s"
                if name in row:
                    row[name] = float(seconds[members, phase].mean())
        row |= dict(zip(("comm/gradient_bytes", "comm/unroll_bytes", "comm/weights_bytes"), traffic.tolist(), strict=True))
        row["eval/episode_return_mean"], row["eval/episode_return_std"] = self._last_evaluation
        row |= {"rollout/unrolls_cut": self._learner.unrolls_cut, "lag/mean": 0.0, "lag/max": 0.0}
        self._last_evaluation = (math.nan, math.nan)
        return row

    # Saving

    def save(self, path: str | Path) -> None:
        """Write the whole state of the run to one file, whatever the run directory keeps.

        Raises:
            CheckpointError: the file can't be written; on every rank.
        """
        arrays, attributes = self._snapshot()
        on_root(self._ranks.world, lambda: save_checkpoint(Path(path), arrays, attributes), self._waiter)

    @classmethod
    def restore(cls, path: str | Path, comm: Comm | None = None, run_dir: str | Path | None = None) -> Trainer:
        """A trainer that goes on from a file that `save` wrote, or from the newest good checkpoint of a run directory.

        A file's run goes on in `run_dir`, a new one by default; a run directory's in itself.

        Raises:
            CheckpointError: no good checkpoint is there.
        """
        comm = world() if comm is None else comm
        source = Path(path)
        waiter = Waiter(Activity())
        if source.is_dir():
            config = on_root(comm, lambda: from_facts(RunDirectory(source).read_config()), waiter)
            return cls(dataclasses.replace(config, run_dir=source, resume=True, ranks=None), comm)
        checkpoint = on_root(comm, lambda: load_checkpoint(source), waiter)
        config = checkpoint_config(checkpoint)
        folder = None if run_dir is None else Path(run_dir)
        return cls(dataclasses.replace(config, run_dir=folder, resume=False, ranks=None), comm, start_from=checkpoint)

    def _save_checkpoint(self) -> None:
        arrays, attributes = self._snapshot()
        if self._recorder is not None:
            self._recorder.save(arrays, attributes, self._score())

    def _score(self) -> float:
        """What makes a checkpoint the best: its evaluation, else the return of the last 100 episodes. Local, rank 0."""
        assert self._recorder is not None
        score = self._last_evaluation[0] if self.config.eval_every else self._recorder.episodes.return_last_100
        if score > self._recorder.best_score:
            self._recorder.best_score = score
        return score

    def _snapshot(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The state of the run, on rank 0: arrays by name and attributes."""
        self._collect_episodes()
        state = None if self._actor is None else self._actor.envs.state()
        states = gather(self._ranks.world, state, self._waiter)
        if self._recorder is None or self._learner is None:
            return {}, {}
        self._score()
        arrays = weight_arrays(self._flat) | optimizer_arrays(self._flat, self._learner.optimizer)
        arrays |= merge_environments([part for part in states if part is not None])
        arrays["rng/seed"] = np.array([self.config.seed])
        arrays["rng/action_counter"] = arrays["environments/rows"]
        arrays |= {f"progress/updates/{name}": array for name, array in self._learner.reducer.state().items()}
        arrays |= {f"progress/episodes/{name}": array for name, array in self._recorder.episodes.state().items()}
        attributes = {
            "format_version": FORMAT_VERSION,
            "config": json.dumps(to_json(self.config)),
            "env_steps": self.env_steps,
            "learner_updates": self.learner_updates,
            "elapsed_s": self._recorder.elapsed_s,
            "best_score": self._recorder.best_score,
        }
        return arrays, attributes

    # Leaving

    def weights_sha256(self) -> str:
        """Checksum of the weights, the same on every rank of a lockstep run. Local."""
        return hashlib.sha256(self._flat.weights.detach().numpy().tobytes()).hexdigest()

    @property
    def notes(self) -> list[str]:
        """What a person should know before the first step, one line each. Local."""
        notes = []
        if not self._task.layout_invariant:
            notes.append("layout_invariant: false; another number of ranks gives another run (--vector sync does not)")
        idle = sum(not len(block) for block in self._ranks.layout.env_blocks.values())
        if idle:
            notes.append(f"{idle} actors have no environment: --num-envs {self.config.num_envs} is below their number")
        return notes

    @property
    def checkpoint_failures(self) -> int:
        """Checkpoints that could not be written. Local, on rank 0; 0 elsewhere."""
        return 0 if self._recorder is None else self._recorder.failures

    def close(self) -> None:
        """Close environments, files and links."""
        self._activity.enter(Phase.LEAVING)
        if self._actor is not None:
            self._actor.envs.close()
        if self._recorder is not None:
            self._recorder.close()
        self._links.close(self._waiter)
        self._heartbeats.close(self._waiter)

    def __enter__(self) -> Trainer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # After an error the others may be anywhere: closing is collective and would wait for them.
        if kind is None:
            self.close()


def checkpoint_config(checkpoint: Checkpoint) -> TrainConfig:
    """The configuration that a checkpoint was made with; CheckpointError where it holds none."""
    try:
        return from_json(json.loads(str(checkpoint.attributes.get("config"))))
    except (ValueError, ConfigError) as error:
        raise CheckpointError(f"{checkpoint.path} holds no configuration that can be read: {error}") from error


def _check_fits(checkpoint: Checkpoint, config: TrainConfig, task: Task) -> None:
    """CheckpointError where the checkpoint is of another format, environment or model."""
    version = checkpoint.attributes.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{checkpoint.path} has format version {version}, expected {FORMAT_VERSION}")
    before = checkpoint_config(checkpoint)
    for name in ("env", "num_envs", "seed", "vector"):
        old, new = getattr(before, name), getattr(config, name)
        if old != new:
            raise CheckpointError(f"{checkpoint.path} was made with {name} {old!r}, expected {new!r}")
    policy = Policy(task, config.hidden_sizes, config.activation, config.shared_encoder)
    expected = {name: (tuple(value.shape), "float32") for name, value in policy.named_parameters()}
    require_matching(checkpoint, "weights", expected)


def _unroll_spec(task: Task, config: A2CConfig, block: range) -> UnrollSpec:
    finals = num_finals(task, config.unroll_length, len(block))
    return UnrollSpec(task, config.unroll_length, len(block), block.start, finals)


def _limit_threads(cores: int) -> None:
    """A rank computes on its own cores only: torch's, OpenMP's and BLAS's pools must not grow to the machine's."""
    available = len(os.sched_getaffinity(0))
    if cores > available:
        raise ConfigError(f"--learner-cores {cores} is more than the {available} cores that this rank may use")
    torch.set_num_threads(cores)
    threadpoolctl.threadpool_limits(cores)


def _default_run_dir(config: TrainConfig) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{config.algorithm}-{config.env.replace('/', '_')}-seed{config.seed}-{stamp}"
