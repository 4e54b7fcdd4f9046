"""Shards open in plain HDF5, in other processes and threads; a disk that refuses costs what was open, and no more."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

import tests.no_mpi  # noqa: F401

# isort: split
from hpcrl.envs.episodes import Finals
from hpcrl.roles.recording import Recording
from hpcrl.spaces import Space
from hpcrl.storage.shard_reader import Shard
from hpcrl.storage.shards import ShardOptions, ShardWriter
from hpcrl.storage.trajectories import open_shards, put_aside, shard_files
from hpcrl.unroll import Memory, Unroll, UnrollSpec
from tests.recordings import about_of, act, blocks, content, is_same, make_shard, task_of, write

DTYPES = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
DTYPES += ["float16", "float32", "float64"]
SHAPES = [(), (3,), (40, 30), (2, 40, 30)]


def equal_in_plain_h5py(path: Path) -> bool:
    """HDF5 itself compares the checksums and unpacks."""
    found = content(Shard(path))
    with h5py.File(path) as file:
        return is_same({name: file[name][...] for name in found}, found)


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_plain_h5py_reads_the_same(tmp_path: Path, compression: str) -> None:
    """Whatever the dtype and the shape of observations and actions, and with all that a policy may remember."""
    for number, dtype in enumerate(DTYPES):
        rng, shape = np.random.default_rng(number), SHAPES[number % len(SHAPES)]
        task = task_of(Space("box", shape, dtype), Space("box", SHAPES[-1 - number % 3], dtype))
        memory = Memory(5 * (number % 2), number % 3, bool(number % 2))
        rows = act(rng, 130, 3, resets=False, breaks=0.05)
        recorded = list(blocks(rng, rows, task, memory, versioned=number % 2 == 1))
        path = write(tmp_path / dtype, recorded, task, memory, compression)
        assert equal_in_plain_h5py(path), dtype
        shard = Shard(path)
        for name, series in shard.series.items():
            if name not in ("observation", "finals/observation", "unrolls/core_state"):
                told = np.concatenate([block.series[name] for block in recorded])
                assert np.array_equal(shard.read(name, 0, series.shape[0]), told), (dtype, name)
        observations = [*(block.series["observation"] for block in recorded), recorded[-1].next_observation[None]]
        assert np.array_equal(shard.read("observation", 0, 131), np.concatenate(observations)), dtype
        assert np.array_equal(shard.first_history, recorded[0].history), dtype


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="needs h5dump")
def test_h5dump_reads_all(tmp_path: Path) -> None:
    done = subprocess.run(["h5dump", make_shard(tmp_path)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


#: Inherited by processes.
SHARED: list[Shard] = []


def _read_rows(_: int = 0) -> bytes:
    return b"".join(SHARED[0].read("observation", row, row + 3).tobytes() for row in range(0, 2000, 7))


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_threads_and_processes_share_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_shard(tmp_path, num_rows=2100)
    SHARED[:] = [Shard(path)]
    before = _descriptors()
    real = os.open
    # All threads are there before the file is open.
    monkeypatch.setattr(os, "open", lambda *arguments: (time.sleep(0.05), real(*arguments))[1])
    with ThreadPoolExecutor(8) as threads:
        (expected,) = set(threads.map(_read_rows, range(16)))
    monkeypatch.undo()
    assert _descriptors() == before + 1
    # Ended by itself: processes forked here may have a test's handler of SIGTERM.
    processes = get_context("fork").Pool(3)
    assert set(processes.map(_read_rows, range(6))) == {expected}
    processes.close()
    processes.join()
    before = _descriptors()
    SHARED[:] = [pickle.loads(pickle.dumps(SHARED[0]))]
    assert _descriptors() == before - 1
    assert _read_rows() == expected
    SHARED[0].close()
    assert _read_rows() == expected
    SHARED.clear()


# ---- disks that refuse

NUM_ENVS = 3


@cache
def acted() -> dict[str, NDArray]:
    """Rows for seventy unrolls."""
    return act(np.random.default_rng(1), 70 * 16, NUM_ENVS, resets=False, breaks=0.0)


class Play:
    """Makes a recording of unrolls that are made up, and closes its shard after every third."""

    def __init__(self, folder: Path) -> None:
        self.rng, self.task = np.random.default_rng(0), task_of()
        self.row = 0
        writer = ShardWriter(ShardOptions(folder), about_of(self.task), self.task, Memory(), np.arange(4, 4 + NUM_ENVS))
        self.recording = Recording(writer, np.arange(NUM_ENVS))

    def unrolls(self, number: int) -> None:
        spec = UnrollSpec(self.task, 16, NUM_ENVS, 4, num_finals=16 * NUM_ENVS)
        for each in range(1, number + 1):
            unroll = Unroll(spec)
            rows = {name: array[self.row : self.row + 16] for name, array in acted().items()}
            self.row += 16
            for name, array in rows.items():
                getattr(unroll, name)[...] = array
            unroll.observation[...] = self.rng.random(unroll.observation.shape)
            unroll.set_header(actor=3, length=16)
            for t in range(16):
                ended = np.flatnonzero(rows["ended"][t])
                self.recording.note_lasts(t, Finals(np.zeros((len(ended), 3), np.float32), ended), 0)
            self.recording.finish(unroll, np.zeros((16, NUM_ENVS), np.float32))
            if each % 3 == 0:
                self.recording.close_shard(env_steps=each)


class Disk:
    """Refuses writes, syncs and renames from the n-th on (removals too where it is read-only), until it is mended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, number: int = errno.ENOSPC) -> None:
        self.steps, self._at, self._number = 0, at, number
        names = ["pwrite", "ftruncate", "fsync", "replace"] + (["unlink"] if number == errno.EROFS else [])
        for name in names:
            monkeypatch.setattr(os, name, self._wrap(getattr(os, name)))

    def _wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **words: Any) -> Any:
            self.steps += 1
            if self.steps > self._at >= 0:
                raise OSError(self._number, os.strerror(self._number))
            return real(*arguments, **words)

        return step

    def mend(self) -> None:
        self._at = -1


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path not in shard_files(folder)]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_refuses_at_any_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    with monkeypatch.context() as patch:
        disk = Disk(patch, at=-1)
        Play(tmp_path / "count").unrolls(6)
        steps = disk.steps
    assert len(shard_files(tmp_path / "count")) == 2
    for at in range(0, steps, 7):
        folder = tmp_path / str(at)
        with monkeypatch.context() as patch:
            disk = Disk(patch, at, number)
            play = Play(folder)
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                play.unrolls(6)
                assert disk.steps > at
                assert [str(each.message) for each in said if "TRAJECTORIES NOT WRITTEN" not in str(each.message)] == []
                assert len(said) == 1
            assert play.recording.complaints.count > 0
            whole = shard_files(folder)
            assert number == errno.EROFS or leftovers(folder) == []
            disk.mend()
            play.unrolls(3)
        for shard in open_shards(folder):
            shard.verify()
        assert len(shard_files(folder)) == len(whole) + 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_file_system(small_disk: Path) -> None:
    folder, ballast = small_disk / "trajectories", small_disk / "ballast"
    play = Play(folder)
    play.unrolls(3)
    ballast.write_bytes(bytes(300_000))
    with pytest.warns(RuntimeWarning, match="NOT WRITTEN.*No space left on device"):
        play.unrolls(60)
    assert play.recording.complaints.count > 0
    assert leftovers(folder) == []
    before = shard_files(folder)
    for shard in open_shards(folder):
        shard.verify()
    ballast.unlink()
    play.unrolls(3)
    assert len(shard_files(folder)) == len(before) + 1


def test_a_read_only_file_system(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    play = Play(small_disk / "trajectories")
    with pytest.warns(RuntimeWarning, match="NOT WRITTEN.*Read-only file system"):
        play.unrolls(6)
    assert play.recording.complaints.count == 6
    assert list(small_disk.iterdir()) == []


def test_no_folder_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "trajectories").write_text("in the way")
    play = Play(tmp_path / "trajectories")
    with pytest.warns(RuntimeWarning, match="NOT WRITTEN") as said:
        play.unrolls(6)
    assert len(said) == 1


# ---- what a resume puts aside


def test_a_resume_puts_aside_what_did_not_happen(tmp_path: Path) -> None:
    """Of each actor from its newest shard back to the first that happened; what is damaged does not tell."""
    task, rows = task_of(), acted()
    block = next(blocks(np.random.default_rng(0), rows, task))

    def shard(actor: int, number: int, first_env_step: int) -> Path:
        header = block.header | {"first_env_step": first_env_step}
        return write(tmp_path, [block._replace(header=header)], task, actor=actor, number=number)

    kept = [shard(1, 9998, 0), shard(1, 9999, 150), shard(2, 9999, 0)]
    future = [shard(1, 10000, 200), shard(1, 10001, 250), shard(2, 10000, 200)]
    damaged = shard(1, 10002, 300)
    damaged.write_bytes(b"damaged")
    (tmp_path / ".actor00001-10003.h5.tmp-77").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("of the user")
    with pytest.warns(RuntimeWarning, match="stays where it is"):
        assert put_aside(tmp_path, np.full(8, 200), 0) == 10003
    discarded = {f"{path.name}.discarded" for path in future}
    names = {path.name for path in (*kept, damaged)}
    assert {path.name for path in tmp_path.iterdir()} == names | discarded | {"notes.txt"}
    # Again, and then from the beginning.
    damaged.unlink()
    assert put_aside(tmp_path, np.full(8, 200), 0) == 10002
    assert put_aside(tmp_path, None, 0) == 10002
    assert shard_files(tmp_path) == []
