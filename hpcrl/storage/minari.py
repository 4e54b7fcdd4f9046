"""Whole episodes as a Minari dataset, by copying or linking a run's shards; the package minari is not needed."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t
from numpy.typing import NDArray

from hpcrl.envs.codec import leaf_views
from hpcrl.errors import ConfigError, TrajectoryError
from hpcrl.spaces import Space
from hpcrl.storage.chunk_cache import ChunkCache
from hpcrl.storage.durable import make_durable, write_durably, write_json_durably
from hpcrl.storage.image import Image
from hpcrl.storage.minari_metadata import (
    default_dataset_id,
    env_spec_text,
    leaf_places,
    require_dataset_id,
    space_as_text,
)
from hpcrl.storage.run_directory import RunDirectory
from hpcrl.storage.shard_reader import Shard
from hpcrl.storage.shard_table import Kind
from hpcrl.storage.stitching import Episode, WholeEpisodes
from hpcrl.storage.trajectories import open_shards

Form = Literal["copy", "link"]

#: Of Minari, whose layout this is.
_MINARI_VERSION = "0.5.4"
_CHUNK_BYTES = 1 << 20
_CACHE_BYTES = 256 << 20
#: What the policy said of each observation; nothing of the last one, on which nobody acted.
_INFOS = ("behaviour_log_prob", "value")


class Exported(NamedTuple):
    """What became of a run's episodes.

    Attributes:
        path: folder of the dataset.
        dataset_id: its name for Minari, which finds it below the folder that was given.
        has_env_spec: whether it says which environment it is of.
        num_episodes, num_steps: in it.
        num_unfinished, num_gaps: episodes left out, as in `WholeEpisodes`.
    """

    path: Path
    dataset_id: str
    has_env_spec: bool
    num_episodes: int
    num_steps: int
    num_unfinished: int
    num_gaps: int


def export_minari(
    run_dir: Path, directory: Path, form: Form = "copy", dataset_id: str | None = None, kind: Kind = "training"
) -> Exported:
    """Make a dataset of the whole episodes in a run's closed shards, in the order of `WholeEpisodes`.

    Observations and actions have their stored form (choices count from 0, floats are float32); actions are those that
    were sampled, which an environment clips to its Box. Terminations and truncations are those of episodes, a lost
    life is none.

    Args:
        run_dir: of the run.
        directory: of Minari's datasets.
        form: "copy" makes a dataset that stands alone. "link" makes HDF5's virtual datasets over the shards, which it
            finds by a path relative to its own: the two may move together. Where a shard is gone, whoever reads
            gets NaN for floats, and zeros.
        dataset_id: as NAMESPACE/NAME-v0; by default hpcrl/ENV-ALGORITHM-v0.
        kind: of the episodes.

    Raises:
        ConfigError: a wrong id, a dataset that exists, or a folder that can't be written.
        TrajectoryError: no whole episode, damaged shards, or shards that can't be linked.
    """
    shards = open_shards(RunDirectory(run_dir).trajectories, kind)
    config, space = shards[0].about.config, shards[0].about
    env_ids = str(config["env"]).split()
    dataset_id = dataset_id or default_dataset_id(env_ids, str(config["algorithm"]), kind)
    require_dataset_id(dataset_id)
    path = directory / dataset_id
    if path.exists():
        raise ConfigError(f"{path} exists already: give another --dataset-id, or remove it")
    if form == "link":
        _require_linkable(shards)
    episodes = WholeEpisodes(shards)
    if not len(episodes):
        raise TrajectoryError(f"{RunDirectory(run_dir).trajectories} holds no whole episode of {kind}.")
    spec = env_spec_text(env_ids)
    metadata: dict[str, Any] = {
        "dataset_id": dataset_id,
        "data_format": "hdf5",
        "minari_version": _MINARI_VERSION,
        # Else frames are taken for JPEG.
        "jpeg_encoding": False,
        "observation_space": space_as_text(space.observation),
        "action_space": space_as_text(space.action),
        "algorithm_name": str(config["algorithm"]),
        "total_episodes": len(episodes),
        "total_steps": episodes.num_steps,
        **({} if spec is None else {"env_spec": spec}),
    }
    write = _Links(path / "data", shards) if form == "link" else _Copies(shards)
    try:
        _write_dataset(path, episodes, metadata, write)
    except OSError as error:
        raise ConfigError(f"{path} can't be written: {error}") from error
    counts = len(episodes), episodes.num_steps, episodes.num_unfinished, episodes.num_gaps
    return Exported(path, dataset_id, spec is not None, *counts)


def _require_linkable(shards: Sequence[Shard]) -> None:
    """TrajectoryError where a dataset of links would not hold what a copy does."""
    for shard in shards:
        for what in ("observation", "action"):
            if getattr(shard.about, what).leaves:
                raise TrajectoryError(f"--link needs a plain {what}, that of {shard.path} is packed: use --copy.")
        if any(series.pipeline.compression == "zstd" for series in shard.series.values()):
            raise TrajectoryError(f"--link needs shards that every HDF5 reads, {shard.path} has zstd: use --copy.")
        terminated, truncated, ended = (
            shard.read(name, 0, shard.num_rows) for name in ("terminated", "truncated", "ended")
        )
        if ((terminated | truncated) & ~ended).any():
            raise TrajectoryError(
                f"--link needs terminations that end their episode, {shard.path} has lost lives: use --copy."
            )


def _write_dataset(
    path: Path, episodes: WholeEpisodes, metadata: dict[str, Any], write: Callable[[h5py.Group, Episode], None]
) -> None:
    """Write it beside its place, and put it there in one step; OSError where the disk refuses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    data = temporary / "data"
    try:
        data.mkdir(parents=True)
        write_durably(data / "main_data.hdf5", lambda file: _write_episodes(file, episodes, write))
        size_mb = (data / "main_data.hdf5").stat().st_size / 1e6
        write_json_durably(data / "metadata.json", metadata | {"dataset_size": round(size_mb, 1)})
        make_durable(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_episodes(path: Path, episodes: WholeEpisodes, write: Callable[[h5py.Group, Episode], None]) -> None:
    image = Image(path)
    try:
        with h5py.File(image, "w", libver=("v110", "v110")) as file:
            for number in episodes.by_place():
                episode = episodes[number]
                group = file.create_group(f"episode_{number}")
                write(group, episode)
                group.attrs.update(_attributes(number, episode))
                image.check()
        image.check()
    finally:
        image.close()


def _attributes(number: int, episode: Episode) -> dict[str, int | float]:
    names = ("seed", "env_index", "number", "policy_version")
    same = {name: getattr(episode, name) for name in names}
    return {"id": number, "total_steps": episode.length, "return": episode.episode_return, **same}


class _Copies:
    """Writes the rows of an episode."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        # Episodes side by side lie in the same chunks.
        cache = ChunkCache(_CACHE_BYTES)
        for shard in shards:
            shard.cache = cache

    def __call__(self, group: h5py.Group, episode: Episode) -> None:
        about = episode.parts[0].shard.about
        _copy_elements(group, "observations", about.observation, episode.observations())
        _copy_elements(group, "actions", about.action, episode.steps("action"))
        _copy(group, "rewards", episode.steps("reward"))
        ended = episode.steps("ended")
        _copy(group, "terminations", episode.steps("terminated") & ended)
        _copy(group, "truncations", episode.steps("truncated") & ended)
        for name in _INFOS:
            _copy(group, f"infos/{name}", np.append(episode.steps(name), np.float32(np.nan)))


def _copy_elements(group: h5py.Group, name: str, space: Space, elements: NDArray) -> None:
    """Observations or actions [n, ...]; those that are packed leaf by leaf."""
    if not space.leaves:
        _copy(group, name, elements)
        return
    views = leaf_views(space, elements)
    for leaf, place in leaf_places(space).items():
        _copy(group, f"{name}/{place}", views[leaf])


def _copy(group: h5py.Group, name: str, array: NDArray) -> None:
    row_bytes = max(1, math.prod(array.shape[1:]) * array.itemsize)
    chunk = (min(len(array), max(1, _CHUNK_BYTES // row_bytes)), *array.shape[1:])
    options = {"compression": "gzip", "compression_opts": 1, "shuffle": array.itemsize > 1}
    group.create_dataset(name, data=array, chunks=chunk, **options)


class _Links:
    """Writes where the rows of an episode lie."""

    def __init__(self, data: Path, shards: Sequence[Shard]) -> None:
        # HDF5 looks for such a path beside the file that names it.
        self._places = {shard.path: os.path.relpath(shard.path.resolve(), data.resolve()) for shard in shards}

    def __call__(self, group: h5py.Group, episode: Episode) -> None:
        self._link(group, "observations", episode, "observation", 1)
        for name, series in _LINKED.items():
            self._link(group, name, episode, series, 0)
        infos = group.create_group("infos")
        for name in _INFOS:
            self._link(infos, name, episode, name, 1)

    def _link(self, group: h5py.Group, name: str, episode: Episode, series: str, extra: int) -> None:
        """A series at the steps of an episode, and `extra` rows behind: its last observation, or NaN."""
        last = episode.parts[-1]
        found = last.shard.series[series]
        space = h5s.create_simple((episode.length + extra, *found.shape[2:]))
        plist = h5p.create(h5p.DATASET_CREATE)
        if found.dtype.kind == "f":
            plist.set_fill_value(np.array(np.nan, found.dtype))
        row = 0
        for part in episode.parts:
            steps = part.end_row - part.first_row
            source = _rows(part.shard, series, (part.first_row, part.column), (steps, 1))
            self._map(plist, space, row, steps, part.shard, series, source)
            row += steps
        if series == "observation":
            finals = "finals/observation"
            self._map(plist, space, row, 1, last.shard, finals, _rows(last.shard, finals, (last.final,), (1,)))
        space.select_all()
        h5d.create(group.id, name.encode(), h5t.py_create(found.dtype, logical=True), space, plist)

    def _map(
        self, plist: Any, space: Any, row: int, num_rows: int, shard: Shard, series: str, source: h5s.SpaceID
    ) -> None:
        """Say where rows [row, row + num_rows) of a dataset with this space are found."""
        rest = space.shape[1:]
        space.select_hyperslab((row, *(0 for _ in rest)), (num_rows, *rest))
        plist.set_virtual(space, os.fsencode(self._places[shard.path]), series.encode(), source)


def _rows(shard: Shard, series: str, first: tuple[int, ...], count: tuple[int, ...]) -> h5s.SpaceID:
    """A block of a series: so many along its first axes, from there on, and all along the others."""
    shape = shard.series[series].shape
    rest = shape[len(first) :]
    space = h5s.create_simple(shape)
    space.select_hyperslab((*first, *(0 for _ in rest)), (*count, *rest))
    return space


_LINKED = {"actions": "action", "rewards": "reward", "terminations": "terminated", "truncations": "truncated"}
