"""Items of a recorded run are the unrolls that were acted, bit for bit."""

from __future__ import annotations

import dataclasses
import math
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import tests.no_mpi  # noqa: F401

# isort: split
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from hpcrl.algorithms.batch import Batch, evaluate
from hpcrl.errors import TrajectoryError
from hpcrl.roles.batching import batch_of
from hpcrl.storage import TrajectoryDataset
from hpcrl.storage.chunks import Pipeline
from hpcrl.storage.shard_reader import Shard
from hpcrl.unroll import Unroll
from tests.recorded import SHORT_CARTPOLE, Acting, config_of

REMEMBERING: dict[str, Any] = {"core": "lstm", "frame_stack": 3}
#: Spaces, ends and memory: options of the run, and rows for last observations to spare.
RUNS: dict[str, tuple[dict[str, Any], int | None]] = {
    "plain": ({"env": SHORT_CARTPOLE}, None),
    "cut": ({"env": SHORT_CARTPOLE, "frame_stack": 3}, 0),
    "remembering": ({"env": SHORT_CARTPOLE, "normalise_returns": True, **REMEMBERING}, None),
    "packed": ({"env": "tests.worlds:Any-tuple-dict-v0", "record_compression": "none"}, 1),
    "images": (
        {"env": "tests.worlds:Any-image-box-v0", "model": "nature", "frame_stack": 2, "record_fraction": 0.5},
        None,
    ),
    "next_step": ({"env": "tests.worlds:Scripted-vector-next_step-v0", "vector": "native", **REMEMBERING}, None),
    "same_step": ({"env": "tests.worlds:Scripted-vector-same_step-v0", "vector": "native", **REMEMBERING}, 2),
}
#: Fields of which an unroll that was cut leaves rows as they were.
UNTOUCHED = ("discounted_return",)
#: Of an item, whatever the run.
DOCUMENTED = set(re.findall(r"^        (\w+) +\[?[a-z0-9]* ?\[", str(TrajectoryDataset.__doc__), re.MULTILINE))


def record(run_dir: Path, name: str = "plain", sizes: tuple[int, ...] = (3, 1)) -> Acting:
    """Seven unrolls of each of two actors, in three shards each."""
    options, spare_finals = RUNS[name]
    acting = Acting(config_of(**options), run_dir, sizes, spare_finals=spare_finals)
    for num_unrolls in (3, 1, 3):
        acting.act(num_unrolls)
    return acting


def recorded_columns(name: str, unroll: Unroll) -> list[int]:
    """Every second environment where half of them are recorded."""
    first = unroll.spec.first_env
    share = 2 if "record_fraction" in RUNS[name][0] else 1
    return [column for column in range(unroll.spec.num_envs) if (first + column + 1) % share == 0]


def columns_of(batch: Batch, columns: list[int]) -> dict[str, Tensor]:
    """Some columns of a batch, as a batch of their own."""
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    ours = [t_b[1] in columns for t_b in batch.final_index.tolist()]
    for name, tensor in fields.items():
        if name in ("core_state", "env_index"):
            fields[name] = tensor[columns]
        elif name.startswith("final"):
            fields[name] = tensor[ours]
        else:
            fields[name] = tensor[:, columns]
    fields["final_index"] = torch.tensor(
        [[t, columns.index(b)] for t, b in fields["final_index"].tolist()], dtype=torch.int64
    ).reshape(-1, 2)
    return fields


def require_equal(found: Tensor, expected: Tensor, name: str) -> None:
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype), name
    assert found.numpy().tobytes() == expected.numpy().tobytes(), name


@pytest.mark.parametrize("name", RUNS)
def test_items_are_the_unrolls_that_were_acted(tmp_path: Path, name: str) -> None:
    acting = record(tmp_path, name)
    dataset, number = TrajectoryDataset(tmp_path), 0
    lengths, num_finals, all_valid = set(), 0, True
    for unroll in (unroll for unrolls in acting.unrolls for unroll in unrolls):
        columns = recorded_columns(name, unroll)
        batch = TrajectoryDataset.collate([dataset[number + place] for place in range(len(columns))])
        number += len(columns)
        for field, expected in columns_of(batch_of(unroll), columns).items():
            rows = slice(0, unroll.length) if field in UNTOUCHED else slice(None)
            require_equal(batch[field][rows], expected[rows], field)
        require_equal(batch["ended"], torch.from_numpy(unroll.ended[:, columns]), "ended")
        assert batch["policy_version"].tolist() == [unroll.policy_version] * len(columns)
        assert not batch["value"][unroll.length :].any() and batch["row_version"].shape == (0, len(columns))
        found = Batch(**{field.name: batch[field.name] for field in dataclasses.fields(Batch)})
        with torch.no_grad():
            values = evaluate(acting.policy, found).values
        valid = batch["valid"]
        torch.testing.assert_close(batch["value"][valid], values[valid], rtol=1e-4, atol=1e-4)
        lengths.add(unroll.length)
        all_valid &= bool(valid[: unroll.length].all())
        num_finals += len(batch["final_index"])
    assert number == len(dataset) and num_finals > 2 and set(dataset[0]) == DOCUMENTED
    # What the run was made for is there.
    assert len(lengths) > 1 or RUNS[name][1] is None
    assert all_valid == (name != "next_step")


@pytest.mark.parametrize(("method", "num_workers"), [("fork", 2), ("spawn", 1)])
def test_workers_load_the_same(tmp_path: Path, method: str, num_workers: int) -> None:
    record(tmp_path, "remembering")
    dataset = TrajectoryDataset(tmp_path)
    expected = [
        TrajectoryDataset.collate([dataset[number + place] for place in range(4)]) for number in range(0, 28, 4)
    ]
    options: dict[str, Any] = {"num_workers": num_workers, "multiprocessing_context": method}
    loader = DataLoader(dataset, batch_size=4, collate_fn=TrajectoryDataset.collate, **options)
    for batch, alone in zip(loader, expected, strict=True):
        assert batch.keys() == alone.keys()
        for name, tensor in alone.items():
            require_equal(batch[name], tensor, name)


def test_chunks_are_taken_apart_once_as_long_as_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path)
    decode, decoded = Pipeline.decode, list[int]()
    monkeypatch.setattr(Pipeline, "decode", lambda *args: decoded.append(0) or decode(*args))
    series = Shard(tmp_path / "trajectories/actor00000-0000.h5").series.values()
    # Of every series a chunk, as an item needs them.
    one_shard = sum(math.prod(each.chunk) * each.dtype.itemsize for each in series)
    roomy, tight, none = (TrajectoryDataset(tmp_path, cache_bytes=size) for size in (64 << 20, one_shard, 0))
    counts = []
    for dataset in (roomy, tight, none):
        decoded.clear()
        items = [dataset[number] for number in (0, 1, 0, 13, 1, -1)]
        counts.append(len(decoded))
        for name, tensor in items[0].items():
            require_equal(tensor, items[2][name], name)
    assert counts[0] < counts[1] < counts[2]
    decoded.clear()
    _ = roomy[1], roomy[-1]
    assert not decoded
    # What is sent to a worker has no chunks in it.
    assert len(pickle.dumps(roomy)) < 100_000
    assert pickle.loads(pickle.dumps(roomy))[3]["observation"].equal(roomy[3]["observation"])


def test_only_whole_shards_of_one_run_are_seen(tmp_path: Path) -> None:
    with pytest.raises(TrajectoryError, match="holds no whole shard of training episodes"):
        TrajectoryDataset(tmp_path)
    acting = record(tmp_path / "one", sizes=(4,))
    acting.act(1, close=False)
    dataset = TrajectoryDataset(tmp_path / "one")
    assert len(dataset) == 7 * 4
    with pytest.raises(IndexError, match="item 28 of 28"):
        dataset[28]
    record(tmp_path / "other", "packed", sizes=(4,))
    shard = tmp_path / "other/trajectories/actor00000-0002.h5"
    shard.rename(tmp_path / "one/trajectories/actor00000-0003.h5")
    with pytest.raises(TrajectoryError, match=r"actor00000-0003.h5 has observation .* actor00000-0000.h5 beside it"):
        TrajectoryDataset(tmp_path / "one")


def test_the_folder_of_storage_loads_nothing_heavy() -> None:
    script = "import sys, hpcrl.storage; assert not {'torch', 'h5py', 'mpi4py.MPI'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
