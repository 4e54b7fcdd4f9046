"""`hpcrl eval RUN_DIR`: plays the newest good checkpoint of a run, on one process or several, and films it."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro

from hpcrl.cluster.launch import inside_mpi, start_ranks
from hpcrl.commands.counting import Progress
from hpcrl.commands.filming import Film
from hpcrl.envs.world import World, evaluation_worlds
from hpcrl.errors import ConfigError
from hpcrl.provenance import package_versions
from hpcrl.roles.evaluation import Played, interval_of_mean, joined, play
from hpcrl.roles.loading import Loaded, checkpoint_config, load
from hpcrl.signals import INTERRUPTED, Requests
from hpcrl.storage.checkpoints import Checkpoint, find_checkpoint
from hpcrl.storage.durable import write_json_durably
from hpcrl.storage.video import SUFFIXES
from hpcrl.words import plural

#: Episodes that are played side by side, by one process: the same ones whatever the number of processes, since a
#: network may round differently for another number of rows.
_BLOCK = 10


@dataclass(frozen=True)
class EvalOptions:
    """Play whole episodes with the policy of a checkpoint and print the mean and spread of their returns."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(help="Run directory, or one checkpoint file.")]
    episodes: Annotated[int, tyro.conf.arg(help="Episodes to play, of every task.")] = 100
    ranks: Annotated[
        int, tyro.conf.arg(help="Processes of this machine that play them; what comes out is the same.")
    ] = 1
    deterministic: Annotated[bool, tyro.conf.arg(help="Take the most likely action instead of sampling.")] = False
    seed: Annotated[int, tyro.conf.arg(help="Seed of environments and actions.")] = 0
    best: Annotated[bool, tyro.conf.arg(help="The best checkpoint instead of the newest.")] = False
    json: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help="Write returns, lengths, seeds and what was played here.")
    ] = None
    video: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="FILE", help="Film the first episodes, .mp4 or .gif (of several tasks each: FILE-0, FILE-1, ...)."
        ),
    ] = None
    video_episodes: Annotated[int, tyro.conf.arg(help="Of --video: how many.")] = 1


def evaluate(arguments: Sequence[str]) -> int:
    """Play and print; the exit status."""
    options = tyro.cli(EvalOptions, prog="hpcrl eval", args=list(arguments), config=(tyro.conf.FlagCreatePairsOff,))
    _require_sense(options)
    if options.ranks > 1 and not inside_mpi(os.environ):
        return start_ranks(options.ranks, ["eval", *arguments], os.environ)
    requests = Requests()
    requests.install()
    return _play_alone(options, requests) if options.ranks == 1 else _play_as_rank(options, requests)


def _require_sense(options: EvalOptions) -> None:
    """ConfigError for options that can't be followed."""
    if options.episodes < 1 or options.seed < 0:
        raise ConfigError(
            f"--episodes must be at least 1 and --seed at least 0, got {options.episodes}, {options.seed}"
        )
    if options.ranks < 1 or options.video_episodes < 1:
        raise ConfigError(
            f"--ranks and --video-episodes must be at least 1, got {options.ranks}, {options.video_episodes}"
        )
    if options.video is not None and options.video.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--video expected a file that ends in {' or '.join(SUFFIXES)}, got {options.video}")
    if options.json is not None and not options.json.parent.is_dir():
        raise ConfigError(f"--json: there is no folder {options.json.parent}")


class _Stopped(Exception):
    """A signal asked this process to leave."""


def _ticking(requests: Requests) -> Callable[[], None]:
    """What raises _Stopped once a signal came."""

    def tick() -> None:
        if requests.stop is not None:
            raise _Stopped

    return tick


def _play_alone(options: EvalOptions, requests: Requests) -> int:
    evaluation, tick = _Evaluation(options), _ticking(requests)
    loaded = load(evaluation.open())
    progress = Progress(options.episodes * len(loaded.worlds), sys.stderr)
    try:
        with progress:
            played = evaluation.play(loaded, 0, 1, tick, progress.add)
        evaluation.finish(loaded, [played], tick)
        return 0
    except _Stopped:
        print(f"stopped by {requests.stop}", flush=True)
        return INTERRUPTED


def _play_as_rank(options: EvalOptions, requests: Requests) -> int:
    """One rank of several: rank 0 finds the checkpoint, prints and films. Collective over the world."""
    from hpcrl.activity import Activity
    from hpcrl.cluster.collectives import gather, on_root
    from hpcrl.cluster.failures import ending_the_job
    from hpcrl.cluster.mpi import check_world, world
    from hpcrl.cluster.waiting import Waiter

    comm, tick = world(), _ticking(requests)
    # MPI may have put handlers of its own over ours.
    requests.install()
    with ending_the_job(comm):
        check_world(comm, options.ranks, os.environ)
        waiter, evaluation = Waiter(Activity()), _Evaluation(options)
        loaded = load(on_root(comm, evaluation.open, waiter))
        try:
            mine = evaluation.play(loaded, comm.rank, comm.size, tick)
        except _Stopped:
            mine = None
        parts = gather(comm, mine, waiter)

        def finish() -> int:
            whole = [part for part in parts if part is not None]
            try:
                if len(whole) == comm.size:
                    evaluation.finish(loaded, whole, tick)
                    return 0
            except _Stopped:
                pass
            print(f"stopped by {requests.stop or 'a signal to another rank'}", flush=True)
            return INTERRUPTED

        status = on_root(comm, finish, waiter)
        requests.ignore()
        return status
    raise AssertionError("unreachable")


class _Evaluation:
    """What is played, and what is made of it."""

    def __init__(self, options: EvalOptions) -> None:
        self._options = options
        self._films: list[Film] = []

    def open(self) -> Checkpoint:
        """The checkpoint, without what playing doesn't need; the films are ready to be shot. Local, on rank 0."""
        checkpoint = find_checkpoint(self._options.run_dir, self._options.best)
        worlds = evaluation_worlds(checkpoint_config(checkpoint))
        if self._options.video is not None:
            self._films = [Film(_path_for(self._options.video, world), world) for world in worlds]
        weights = {name: array for name, array in checkpoint.arrays.items() if name.startswith("weights/")}
        return replace(checkpoint, arrays=weights)

    def play(
        self,
        loaded: Loaded,
        place: int,
        count: int,
        tick: Callable[[], None],
        done: Callable[[int], None] = lambda episodes: None,
    ) -> list[list[Played]]:
        """The share of the one at `place` among `count`: of each task every `count`-th block of episodes. Local.

        Args:
            loaded: who plays.
            place: of this process.
            count: of all processes.
            tick: called at every step.
            done: gets the number of episodes after each block.
        """
        options = self._options
        blocks = [range(first, min(first + _BLOCK, options.episodes)) for first in range(0, options.episodes, _BLOCK)]
        how = (options.seed, options.deterministic, tick)

        def play_block(world: World, block: range) -> Played:
            played = play(loaded.policy, world, loaded.task, block, *how)
            done(len(block))
            return played

        with _one_thread():
            return [[play_block(world, block) for block in blocks[place::count]] for world in loaded.worlds]

    def finish(self, loaded: Loaded, parts: Sequence[Sequence[Sequence[Played]]], tick: Callable[[], None]) -> None:
        """Print and write what came of the shares of all, and shoot the films. Local, on rank 0."""
        tasks = [joined(list(_in_turn(shares))) for shares in zip(*parts, strict=True)]
        print(f"{loaded.path} ({loaded.config.algorithm} on {loaded.config.env}, {loaded.env_steps:,} env steps)")
        for world, played in zip(loaded.worlds, tasks, strict=True):
            print(("" if world.task is None else f"{world.env_id}: ") + _describe(played))
        if len(tasks) > 1:
            print(f"mean over {len(tasks)} tasks: return {np.mean([played.returns.mean() for played in tasks]):.2f}")
        if self._options.json is not None:
            _write(self._options.json, _as_json(self._options, loaded, tasks))
        for film in self._films:
            self._shoot(film, loaded, tick)

    def _shoot(self, film: Film, loaded: Loaded, tick: Callable[[], None]) -> None:
        options = self._options
        print(f"filming {plural(options.video_episodes, 'episode')} to {film.path} ...", flush=True)
        with _one_thread():
            returns = film.shoot(loaded, options.video_episodes, options.seed, options.deterministic, tick)
        said = ", ".join(f"{one:.2f}" for one in returns)
        shown = f"{plural(len(returns), 'episode')}, {film.frames:,} frames at {film.fps:g} a second"
        print(f"{film.path}: {shown}, returns {said}")


def _path_for(path: Path, world: World) -> Path:
    """The film of one world: of several tasks each has its own."""
    return path if world.task is None else path.with_name(f"{path.stem}-{world.task}{path.suffix}")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Networks compute on one thread: how many there are must not change what comes out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _in_turn(shares: Sequence[Sequence[Played]]) -> Iterator[Played]:
    """The blocks of one task as they follow each other, from what each of the players has of them."""
    for number in range(max(map(len, shares))):
        yield from (share[number] for share in shares if number < len(share))


def _describe(played: Played) -> str:
    """Returns and lengths of episodes in words."""
    returns = played.returns
    interval = interval_of_mean(returns)
    between = "" if interval is None else "mean {:.2f} to {:.2f} with 95 % confidence, ".format(*interval)
    return (
        f"{plural(len(returns), 'episode')}: return {returns.mean():.2f} +- {returns.std():.2f} "
        f"({between}min {returns.min():.2f}, median {np.median(returns):.2f}, max {returns.max():.2f}), "
        f"length {played.lengths.mean():.1f}"
    )


def _as_json(options: EvalOptions, loaded: Loaded, tasks: Sequence[Played]) -> dict[str, Any]:
    """All that is known of an evaluation; a number that is not finite is null."""
    return {
        "checkpoint": str(loaded.path),
        "algorithm": loaded.config.algorithm,
        "env": loaded.config.env,
        "env_steps": loaded.env_steps,
        "learner_updates": loaded.learner_updates,
        "deterministic": options.deterministic,
        "seed": options.seed,
        "versions": package_versions(),
        "tasks": [
            {
                "env": world.env_id,
                "return_mean": _number(played.returns.mean()),
                "return_std": _number(played.returns.std()),
                "return_mean_interval_95": _numbers(interval_of_mean(played.returns)),
                "returns": _numbers(played.returns),
                "lengths": played.lengths.tolist(),
                "seeds": played.seeds.tolist(),
            }
            for world, played in zip(loaded.worlds, tasks, strict=True)
        ],
    }


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _numbers(values: Any) -> list[float | None] | None:
    return None if values is None else [_number(value) for value in values]


def _write(path: Path, data: dict[str, Any]) -> None:
    try:
        write_json_durably(path, data)
    except OSError as error:
        raise ConfigError(f"--json {path} can't be written: {error.strerror or error}") from error
