"""What a checkpoint or a shard of trajectories holds, as JSON data; to be run in a process of its own.

`python -m hpcrl.storage.inspection` reads a JSON list of files from its input and answers each with a line of JSON.
It limits itself first: a file made to harm may make HDF5 crash, hang or ask for much memory.
"""

from __future__ import annotations

import json
import math
import resource
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5z

from hpcrl.errors import CheckpointError, HpcrlError, TrajectoryError
from hpcrl.storage.chunks import FILTER_ZSTD
from hpcrl.storage.confined import MEMORY_BYTES, Facts, cpu_seconds
from hpcrl.storage.durable import sha256_of
from hpcrl.storage.hdf5 import Attribute, read_array, read_attributes, regular_size, stored_bytes, walk
from hpcrl.storage.manifest import Entry, read_manifest
from hpcrl.storage.shard_reader import Shard

_FILTERS = {h5z.FILTER_DEFLATE: "gzip", h5z.FILTER_SHUFFLE: "shuffle", h5z.FILTER_FLETCHER32: "fletcher32"}
_FILTERS |= {FILTER_ZSTD: "zstd"}


def main() -> None:
    """Answer for every file asked about."""
    paths = [Path(name) for name in json.load(sys.stdin)]
    _lower(resource.RLIMIT_CORE, 0)
    _limit_memory()
    for path in paths:
        _limit_cpu(cpu_seconds(path))
        print(json.dumps(_answer(path)), flush=True)


def _limit_memory() -> None:
    # From what there is by now: libraries take some for every core.
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _lower(resource.RLIMIT_AS, pages * resource.getpagesize() + MEMORY_BYTES)


def _limit_cpu(seconds: float) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    _lower(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime + seconds))


def _lower(limit: int, value: int) -> None:
    _, most = resource.getrlimit(limit)
    resource.setrlimit(limit, (value if most == resource.RLIM_INFINITY else min(value, most), most))


def _answer(path: Path) -> Facts:
    try:
        facts = describe_shard(path) if _is_shard(path) else describe_checkpoint(path)
        return {"path": str(path), "bytes": path.stat().st_size, **facts}
    except HpcrlError as error:
        return {"path": str(path), "error": str(error)}
    except MemoryError:
        return {"path": str(path), "error": f"{path} takes more than {MEMORY_BYTES >> 30} GiB of memory to be read."}


def _is_shard(path: Path) -> bool:
    """Whether a file says that it is one; what is no HDF5 is left to its reader's complaint."""
    try:
        regular_size(path)
        with h5py.File(path, "r") as file:
            return bool(h5a.exists(file.id, b"about"))
    except (OSError, ValueError, RuntimeError):
        return False


# Checkpoints


def describe_checkpoint(path: Path) -> Facts:
    """A checkpoint, all of which is read.

    Raises:
        CheckpointError: it is missing, damaged or hostile, or not what the manifest beside it says.
    """
    listed, manifest, digest = _compare(path)
    try:
        nbytes = regular_size(path)
        with h5py.File(path, "r") as file:
            root = h5g.open(file.id, b"/")
            arrays = list(_arrays(root, nbytes))
            said = read_attributes(root)
    except Exception as error:  # a damaged file makes h5py raise nearly every built-in exception
        raise CheckpointError(f"{path} can't be read as a checkpoint: {_in_one_line(error)}.") from error
    config = _config(said.get("config"))
    return {
        "kind": "checkpoint",
        "env_steps": _count(said.get("env_steps")),
        "learner_updates": _count(said.get("learner_updates")),
        "algorithm": config.get("algorithm"),
        "env": config.get("env"),
        "score": None if listed is None else listed.score,
        "milestone": listed is not None and listed.milestone,
        "sha256": digest,
        "manifest": manifest,
        "groups": _grouped(arrays),
        "arrays": arrays,
    }


def _compare(path: Path) -> tuple[Entry | None, str, str]:
    """The line of the manifest, what it is worth, and the sha256; CheckpointError where that is another."""
    try:
        digest = sha256_of(path) if path.is_file() else ""
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error}.") from error
    try:
        entries = read_manifest(path.parent)
    except CheckpointError as error:
        return None, str(error), digest
    for entry in entries:
        if path.name == f"{entry.name}.h5":
            if digest != entry.sha256:
                raise CheckpointError(f"{path} is damaged: its sha256 is not the manifest's.")
            return entry, "agrees", digest
    return None, "does not list it" if entries else "none", digest


def _arrays(root: h5g.GroupID, budget: int) -> Iterator[Facts]:
    """All arrays, each of which is read, and so its checksum compared, and dropped again."""
    for name, dataset in walk(root):
        budget -= stored_bytes(name, dataset)
        if budget < 0:
            raise ValueError(f"{name} declares more data than the file can hold")
        read_array(name, dataset)
        yield _outline(name, dataset)


def _grouped(arrays: Sequence[Facts]) -> dict[str, dict[str, int]]:
    """Arrays, numbers and bytes by the first part of their names."""
    groups: dict[str, dict[str, int]] = {}
    for array in arrays:
        group = groups.setdefault(array["name"].partition("/")[0], {"arrays": 0, "numbers": 0, "bytes": 0})
        group["arrays"] += 1
        group["numbers"] += math.prod(array["shape"])
        group["bytes"] += array["bytes"]
    return groups


def _config(text: Attribute | None) -> dict[str, Any]:
    try:
        config = json.loads(str(text))
    except (ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _count(value: Attribute | None) -> int | None:
    return value if type(value) is int else None


# Shards


def describe_shard(path: Path) -> Facts:
    """A shard, all of which is read.

    Raises:
        TrajectoryError: it is missing, damaged or hostile.
    """
    shard = Shard(path)
    shard.verify()
    about, versions = shard.about, shard.unrolls["policy_version"]
    try:
        with h5py.File(path, "r") as file:
            datasets = [_outline(name, dataset) for name, dataset in walk(h5g.open(file.id, b"/"))]
    except Exception as error:  # as above; somebody changes it meanwhile
        raise TrajectoryError(f"{path} can't be read as a shard of trajectories: {_in_one_line(error)}.") from error
    return {
        "kind": about.kind,
        "actor": about.actor,
        "number": about.number,
        "algorithm": about.config.get("algorithm"),
        "env": about.config.get("env"),
        "rows": shard.num_rows,
        "environments": len(shard.env_index),
        "env_steps": shard.num_steps,
        "run_env_steps": about.env_steps,
        "unrolls": len(versions),
        "unroll_length": about.unroll_length,
        "policy_versions": _range(versions),
        "episodes": _episodes(shard),
        "returns": _returns(shard.episodes.episode_return[shard.episodes.is_over]),
        "versions": about.versions,
        "checksums": "hold",
        "arrays": datasets,
    }


def _range(versions: np.ndarray) -> dict[str, int] | None:
    """The first and the last policy version, and the updates between the oldest and the newest."""
    if not len(versions):
        return None
    return {"first": int(versions[0]), "last": int(versions[-1]), "lag": int(versions.max() - versions.min())}


def _episodes(shard: Shard) -> dict[str, int]:
    """How many lie wholly in the shard, only begin or only end there, or do neither."""
    begins, ends = shard.episodes.first_step == 0, shard.episodes.is_over
    parts = {"whole": begins & ends, "begun": begins & ~ends, "ended": ~begins & ends, "neither": ~begins & ~ends}
    return {name: int(chosen.sum()) for name, chosen in parts.items()}


def _returns(returns: np.ndarray) -> dict[str, float] | None:
    """Of the episodes that are over, wherever they began; None where there are none, or not all are numbers."""
    if not len(returns) or not np.isfinite(returns).all():
        return None
    return {"mean": float(returns.mean()), "min": float(returns.min()), "max": float(returns.max())}


# Both


def _outline(name: str, dataset: h5d.DatasetID) -> Facts:
    """A dataset that was found to be plain."""
    plist = dataset.get_create_plist()
    filters = [plist.get_filter(place)[0] for place in range(plist.get_nfilters())]
    nbytes, stored = math.prod(dataset.shape) * dataset.dtype.itemsize, dataset.get_storage_size()
    return {
        "name": name,
        "shape": list(dataset.shape),
        "dtype": str(dataset.dtype),
        "bytes": nbytes,
        "stored_bytes": stored,
        "ratio": round(nbytes / stored, 2) if stored else None,
        "filters": [_FILTERS.get(number, str(number)) for number in filters],
    }


def _in_one_line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())


if __name__ == "__main__":
    main()
