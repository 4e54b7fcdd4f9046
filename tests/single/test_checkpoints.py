"""Checkpoints come back bit for bit, and a whole one is there whatever breaks while one is saved."""

import json
import os
import pathlib
import random
import shutil
import signal
import stat
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hpcrl.errors import CheckpointError, ConfigError
from hpcrl.storage.background import Background
from hpcrl.storage.checkpoints import Checkpoint, CheckpointStore, load_checkpoint, require_matching
from hpcrl.storage.durable import sha256_of, write_durably
from hpcrl.storage.hdf5 import CHUNK_BYTES, read_arrays, write_arrays

DTYPES = ["bool", "uint8", "int32", "int64", "uint64", "float16", "float32", "float64", ">f4", ">i8"]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
PARTS = st.text("abcxyz0189._-é", min_size=1, max_size=6).filter(lambda part: part not in (".", ".."))
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
VALUES = st.one_of(TEXTS, st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False))


def state(number: int) -> dict[str, np.ndarray]:
    """A state whose every array tells its number, so that a mixed one shows."""
    return {
        "weights/body.0.weight": np.full((64, 4), number, np.float32),
        "weights/body.0.bias": np.full(64, number, np.float32),
        "optimizer/step": np.array(number, np.int64),
        "environments/done": np.full(3, number % 2 == 0),
        "rng/none": np.zeros((0, 2), np.uint8),
    }


def save(store: CheckpointStore, number: int, score: float | None = None) -> Path:
    return store.save(f"update-{number:06d}", state(number), {"config": "{}", "env_steps": 10 * number}, score)


def number_of(checkpoint: Checkpoint | None) -> int:
    """The number of a checkpoint, after a check that all of it is that number's."""
    assert checkpoint is not None
    number = int(checkpoint.attributes["env_steps"]) // 10
    assert_same(checkpoint.arrays, state(number))
    return number


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype), name
        assert found[name].tobytes() == array.tobytes(), name


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_arrays_and_attributes_round_trip(tmp_path: Path, data: st.DataObject) -> None:
    arrays_of_any_kind = st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, SHAPES))
    leaves = data.draw(st.dictionaries(PARTS, arrays_of_any_kind, max_size=4))
    arrays = {f"group/deep/{name}": array for name, array in leaves.items()}
    attributes = data.draw(st.dictionaries(PARTS, VALUES, max_size=4))
    write_arrays(tmp_path / "x.h5", arrays, attributes)
    found, found_attributes = read_arrays(tmp_path / "x.h5")
    assert_same(found, arrays)
    assert found_attributes == attributes
    assert {type(value) for value in found_attributes.values()} <= {str, int, float}


def test_large_and_strided_arrays_round_trip(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "several_chunks": rng.random((3, CHUNK_BYTES // 8 + 7)),
        "odd_rows": rng.random((1000, 1001)),
        "transposed": rng.random((5, 7)).T,
    }
    write_arrays(tmp_path / "x.h5", arrays, {"config": "x" * 200_000})
    found, attributes = read_arrays(tmp_path / "x.h5")
    assert_same(found, arrays)
    assert attributes["config"] == "x" * 200_000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", np.array([None])),
        ("x", np.zeros(2, "c8")),
        ("/x", np.zeros(2)),
        ("a/../x", np.zeros(2)),
        ("", np.zeros(2)),
    ],
)
def test_what_can_not_be_read_is_not_written(tmp_path: Path, name: str, value: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected bool, integer or float|is no name for an array"):
        write_arrays(tmp_path / "x.h5", {name: value}, {})
    assert files(tmp_path) == set()


def test_more_than_is_read_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcrl.storage.hdf5.MAX_OBJECTS", 6)
    monkeypatch.setattr("hpcrl.storage.hdf5.MAX_ATTRIBUTES", 2)
    arrays = {name: np.zeros(1) for name in ("a/b/x", "a/b/y", "z")}
    write_arrays(tmp_path / "x.h5", arrays, {"a": 1, "b": 2})
    assert_same(read_arrays(tmp_path / "x.h5")[0], arrays)
    with pytest.raises(ValueError, match="6 objects"):
        write_arrays(tmp_path / "x.h5", arrays | {"a/y": np.zeros(1)}, {})
    with pytest.raises(ValueError, match="2 attributes"):
        write_arrays(tmp_path / "x.h5", arrays, {"a": 1, "b": 2, "c": 3})


def test_store_without_checkpoints_has_none(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "not_there_yet")
    assert store.newest() is None
    assert store.best() is None


def test_save_and_load(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "a" / "checkpoints")
    path = save(store, 1, score=1.5)
    assert path == tmp_path / "a" / "checkpoints" / "update-000001.h5"
    assert number_of(CheckpointStore(path.parent).newest()) == 1
    assert number_of(load_checkpoint(path)) == 1
    line = {"name": "update-000001", "sha256": sha256_of(path), "bytes": path.stat().st_size, "score": 1.5}
    assert json.loads((path.parent / "manifest.json").read_text()) == {
        "format_version": 1,
        "latest": "update-000001",
        "best": "update-000001",
        "checkpoints": [line | {"env_steps": 10}],
    }


def test_newest_few_and_best_stay(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    scores = [None, 1.0, 7.0, 3.0, float("nan"), float("inf"), 7.0, None, 2.0]
    for number, score in enumerate(scores):
        save(CheckpointStore(tmp_path, keep=2) if number % 2 else store, number, score)
    assert files(tmp_path) == {"manifest.json", *(f"update-00000{number}.h5" for number in (6, 7, 8))}
    assert number_of(store.newest()) == 8
    assert number_of(store.best()) == 6


def test_milestones_stay(tmp_path: Path) -> None:
    for number in range(7):
        store = CheckpointStore(tmp_path)
        store.save(f"update-{number:06d}", state(number), {"env_steps": 10 * number}, milestone=number in (1, 3, 6))
    assert files(tmp_path) == {"manifest.json", *(f"update-00000{number}.h5" for number in (1, 3, 5, 6))}
    lines = json.loads((tmp_path / "manifest.json").read_text())["checkpoints"]
    assert [line.get("milestone") for line in lines] == [True, True, None, True]
    assert number_of(store.newest()) == 6
    # As good as any where those after it are damaged.
    for number in (5, 6):
        damage_flip(tmp_path / f"update-00000{number}.h5")
    with pytest.warns(RuntimeWarning, match="update-00000"):
        assert number_of(store.newest()) == 3


def test_best_is_none_without_scores(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for number in range(3):
        save(store, number)
    assert store.best() is None
    assert files(tmp_path) == {"manifest.json", "update-000001.h5", "update-000002.h5"}


def test_fewer_than_two_kept_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 2"):
        CheckpointStore(tmp_path, keep=1)


def test_same_name_never_replaces_a_listed_file(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for number in (1, 2, 3):
        store.save("final", state(number), {"env_steps": 10 * number})
    assert files(tmp_path) == {"manifest.json", "final-2.h5", "final-3.h5"}
    assert number_of(store.newest()) == 3


def test_leftovers_go_and_user_files_stay(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1)
    leftovers = {".update-000002.h5.tmp-99", ".manifest.json.tmp-99", "update-000002.h5"}
    for name in leftovers | {"my copy.h5", "update-best.h5", "notes.txt"}:
        (tmp_path / name).write_bytes(b"partial")
    save(store, 3)
    kept = {"my copy.h5", "update-best.h5", "notes.txt"}
    assert files(tmp_path) == {"manifest.json", "update-000001.h5", "update-000003.h5"} | kept


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "x" * 300, "a\nb"])
def test_names_with_a_path_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="no plain file name"):
        CheckpointStore(tmp_path).save(name, state(1), {})
    assert files(tmp_path) == set()


def damage_flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [damage_flip, damage_truncate, Path.unlink])
def test_damaged_newest_is_passed_over(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1, score=1.0)
    damage(save(store, 2, score=2.0))
    with pytest.warns(RuntimeWarning, match="update-000002"):
        assert number_of(store.newest()) == 1
    with pytest.warns(RuntimeWarning, match="update-000002"):
        assert number_of(store.best()) == 1
    # Trained again from 1, number 2 is saved again; the damaged one must not push out the whole one.
    save(store, 2)
    assert number_of(store.newest()) == 2
    lines = json.loads((tmp_path / "manifest.json").read_text())["checkpoints"]
    assert [line["env_steps"] for line in lines] == [10, 20]
    assert len(files(tmp_path)) == 3
    # With the damaged one gone its name is free again, and as good as any.
    assert save(store, 2).name == "update-000002.h5"
    assert json.loads((tmp_path / "manifest.json").read_text())["latest"] == "update-000002"


def test_all_damaged_is_an_error(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for number in (1, 2):
        damage_flip(save(store, number))
    # Nothing is passed over, so nobody is warned.
    with warnings.catch_warnings(), pytest.raises(CheckpointError, match=r"No checkpoint in .* is whole.*damaged"):
        warnings.simplefilter("error")
        store.newest()
    for file in tmp_path.glob("*.h5"):
        file.unlink()
    with pytest.raises(CheckpointError, match="is missing, though the manifest lists it"):
        store.newest()


def test_damaged_file_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path)
    path = save(store, 1)
    damage_flip(path)
    monkeypatch.setattr("hpcrl.storage.checkpoints.read_arrays", lambda path: pytest.fail("parsed"))
    with pytest.raises(CheckpointError, match="sha256"):
        load_checkpoint(path)


def flip_bits(path: Path, num_flips: int) -> int:
    """Flip one bit of a listed checkpoint at a time; how many flips its file alone gives away.

    With the manifest every flip shows; without it the file's own checksums leave only harmless ones.
    """
    stray = path.parent / "elsewhere" / "stray.h5"
    stray.parent.mkdir()
    content, expected, rng, refused = path.read_bytes(), load_checkpoint(path), random.Random(0), 0
    for _ in range(num_flips):
        position = rng.randrange(len(content))
        flipped = bytearray(content)
        flipped[position] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        stray.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="sha256"):
            load_checkpoint(path)
        try:
            found = load_checkpoint(stray)
        except CheckpointError:
            refused += 1
            continue
        assert_same(found.arrays, expected.arrays)
        assert found.attributes == expected.attributes
    path.write_bytes(content)
    return refused


def test_200_flipped_bits_are_detected(tmp_path: Path) -> None:
    assert flip_bits(save(CheckpointStore(tmp_path), 1), 200) > 0


MANIFESTS = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff",
    b"[" * 100_000,
    b'{"format_version": 1}',
    b'{"format_version": 2, "latest": null, "best": null, "checkpoints": []}',
    b'{"format_version": 1, "latest": "x", "best": null, "checkpoints": []}',
    b'{"format_version": 1, "latest": null, "best": "x", "checkpoints": []}',
    b'{"format_version": 1, "latest": null, "best": null, "checkpoints": [1]}',
    b'{"format_version": 1, "latest": null, "best": null, "checkpoints": [{"name": "x"}]}',
]


@pytest.mark.parametrize("content", MANIFESTS)
def test_damaged_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    store = CheckpointStore(tmp_path)
    path = save(store, 1)
    (tmp_path / "manifest.json").write_bytes(content)
    for call in (store.newest, store.best, lambda: save(store, 2)):
        with pytest.raises(CheckpointError, match="manifest"):
            call()
    with pytest.warns(RuntimeWarning, match="without its manifest"):
        assert number_of(load_checkpoint(path)) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "../x"),
        ("name", 3),
        ("sha256", "0"),
        ("sha256", None),
        ("bytes", "1"),
        ("score", "high"),
        ("score", float("nan")),
        ("env_steps", 1.5),
        ("milestone", 1),
        ("unknown", 1),
    ],
)
def test_bad_manifest_line_is_refused(tmp_path: Path, key: str, value: object) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["checkpoints"][0][key] = value
    manifest["latest"] = manifest["checkpoints"][0]["name"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="manifest"):
        store.newest()


def test_require_matching_names_the_first_difference(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(save(CheckpointStore(tmp_path), 1))
    assert checkpoint.group("weights").keys() == {"body.0.weight", "body.0.bias"}
    good = {"body.0.weight": ((64, 4), "float32"), "body.0.bias": ((64,), "float32")}
    require_matching(checkpoint, "weights", good)
    changes: list[tuple[dict[str, tuple[tuple[int, ...], str]], str]] = [
        (
            {"body.0.weight": ((32, 4), "float32")},
            r"weights/body.0.weight \[64, 4\] float32, expected \[32, 4\]",
        ),
        ({"body.0.weight": ((64, 4), "float64")}, r"\[64, 4\] float32, expected \[64, 4\] float64"),
        ({"head": ((1,), "float32")}, r"weights/head no such array, expected \[1\] float32"),
    ]
    for change, message in changes:
        with pytest.raises(CheckpointError, match=message):
            require_matching(checkpoint, "weights", good | change)
    with pytest.raises(CheckpointError, match=r"weights/body.0.bias \[64\] float32, expected no such array"):
        require_matching(checkpoint, "weights", {"body.0.weight": good["body.0.weight"]})


# ---- faults between the steps of a save


class Steps:
    """Counts the writes, syncs, renames and removals of a save, and breaks the n-th of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail: Callable[[], None], at: int = -1) -> None:
        self.log: list[str] = []
        self._fail, self._at = fail, at
        writes = [(os, "pwrite"), (pathlib.Path, "write_bytes")]
        for owner, name in [(os, "fsync"), (os, "replace"), (os, "unlink"), (shutil, "copyfile"), *writes]:
            monkeypatch.setattr(owner, name, self._wrap(name, getattr(owner, name)))

    def _wrap(self, name: str, real: Callable) -> Callable:
        is_write = name in ("pwrite", "write_bytes")

        def step(target, *args, **kwargs):
            directory = name == "fsync" and stat.S_ISDIR(os.fstat(target).st_mode)
            self.log.append("fsync directory" if directory else "write" if is_write else name)
            if len(self.log) - 1 == self._at:
                if is_write:
                    real(target, bytes(args[0])[: len(args[0]) // 2], *args[1:])
                if name == "copyfile":
                    args[0].write_bytes(b"half")
                self._fail()
            return real(target, *args, **kwargs)

        return step


def raise_disk_full() -> None:
    raise OSError(28, "No space left on device")


def count_steps(directory: Path, local: Path | None) -> int:
    with pytest.MonkeyPatch.context() as patch:
        store = prepared(directory, local)
        steps = Steps(patch, raise_disk_full)
        save_in_background(store, 3)
        return len(steps.log)


def prepared(directory: Path, local: Path | None = None) -> CheckpointStore:
    """A store that the next save makes drop an old checkpoint and a leftover."""
    store = CheckpointStore(directory, local=local)
    save(store, 1)
    save(store, 2)
    (directory / ".update-000009.h5.tmp-1").write_bytes(b"partial")
    return store


def save_in_background(store: CheckpointStore, number: int) -> None:
    """Save as training does."""
    background = Background()
    background.begin(lambda: save(store, number) and None)
    background.close()
    background.wait()


@pytest.fixture(params=["direct", "local"])
def local(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    """A folder of the node, with a file of another run; or none."""
    if request.param == "direct":
        return None
    (tmp_path / "local").mkdir()
    (tmp_path / "local/hpcrl-another-update-000001.h5").write_text("another run")
    return tmp_path / "local"


def expect_nothing_left(local: Path | None) -> None:
    assert local is None or files(local) == {"hpcrl-another-update-000001.h5"}


def test_steps_come_in_the_durable_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = prepared(tmp_path)
    steps = Steps(monkeypatch, raise_disk_full)
    save(store, 3)
    durable = ["write", "fsync", "replace", "fsync directory"]
    # HDF5 writes in several pieces.
    once = [step for step, before in zip(steps.log, [None, *steps.log], strict=False) if step != before]
    assert once == ["unlink", *durable, *durable, "unlink"]


def test_local_files_are_whole_before_they_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "node").mkdir()
    monkeypatch.setenv("TMPDIR_OF_THE_JOB", str(tmp_path / "node"))
    store = prepared(tmp_path / "run", Path("$TMPDIR_OF_THE_JOB"))
    steps = Steps(monkeypatch, raise_disk_full)
    save(store, 3)
    durable = ["fsync", "replace", "fsync directory"]
    once = [step for step, before in zip(steps.log, [None, *steps.log], strict=False) if step != before]
    copied = ["copyfile", *durable, "unlink"]
    assert once == ["unlink", "write", *durable, *copied, "write", *durable, "unlink"]
    assert files(tmp_path / "node") == set()


def test_a_local_folder_that_is_not_there_costs_no_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "run", local=tmp_path / "nowhere")
    with pytest.warns(RuntimeWarning, match="written directly"):
        save(store, 1)
    assert number_of(store.newest()) == 1


def test_fault_at_every_step_leaves_a_whole_newest(tmp_path: Path, local: Path | None) -> None:
    for at in range(count_steps(tmp_path / "count", local)):
        directory = tmp_path / str(at)
        store = prepared(directory, local)
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Steps(patch, raise_disk_full, at)
            try:
                save_in_background(store, 3)
                saved = True
            except CheckpointError as error:
                saved = False
                assert "No space left on device" in str(error)
        assert number_of(store.newest()) in ({3} if saved else {2, 3})
        assert not {name for name in files(directory) if "000003" in name and ".tmp-" in name}
        save(store, 4)
        assert number_of(CheckpointStore(directory).newest()) == 4
        assert not {name for name in files(directory) if ".tmp-" in name}
        assert len(files(directory)) == 3
        expect_nothing_left(local)


def test_death_at_every_step_leaves_a_whole_newest(tmp_path: Path, local: Path | None) -> None:
    for at in range(count_steps(tmp_path / "count", local)):
        directory = tmp_path / str(at)
        store = prepared(directory, local)
        child = os.fork()
        if child == 0:
            Steps(pytest.MonkeyPatch(), lambda: os._exit(77), at)
            save_in_background(store, 3)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 77
        assert number_of(CheckpointStore(directory).newest()) in {2, 3}
        assert len(json.loads((directory / "manifest.json").read_text())["checkpoints"]) == 2
        save(CheckpointStore(directory, local=local), 4)
        assert number_of(CheckpointStore(directory).newest()) == 4
        assert len(files(directory)) == 3
        expect_nothing_left(local)


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise_disk_full()

    with pytest.raises(OSError, match="No space"):
        write_durably(path, write)
    assert path.read_text() == "old"
    assert files(tmp_path) == {"x"}


def test_save_where_no_directory_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="was not saved"):
        save(CheckpointStore(tmp_path / "file" / "checkpoints"), 1)


LIMITED = """
import resource, signal, sys
from tests.single.test_checkpoints import CheckpointStore, Path, number_of, save
store = CheckpointStore(Path(sys.argv[1]))
save(store, 1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    save(store, 2)
except Exception as error:
    print(type(error).__name__)
print(number_of(store.newest()), *sorted(path.name for path in store.directory.iterdir()))
"""

ENDLESS = """
import itertools, sys
from tests.single.test_checkpoints import CheckpointStore, Path, number_of, save
store = CheckpointStore(Path(sys.argv[1]))
newest = store.newest()
first = 1 if newest is None else number_of(newest) + 1
for number in itertools.count(first):
    save(store, number, score=float(-number))
    print(number, flush=True)
"""


def script(text: str, directory: Path) -> subprocess.Popen:
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    command = [sys.executable, "-W", "error", "-c", text, str(directory)]
    return subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True)


def test_file_size_limit_of_the_system(tmp_path: Path) -> None:
    output, _ = script(LIMITED, tmp_path).communicate()
    assert output.split() == ["CheckpointError", "1", "manifest.json", "update-000001.h5"]


def test_kill_at_random_moments(tmp_path: Path) -> None:
    """What was reported as saved is never lost, and a new process goes on from it."""
    rng, reported = random.Random(0), 0
    for _ in range(10):
        process = script(ENDLESS, tmp_path)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(rng.randrange(1, 4))]
        signal.sigtimedwait([], rng.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.read().splitlines()
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        numbers = [int(line) for line in lines]
        assert numbers[0] in {reported + 1, reported + 2}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            newest = number_of(CheckpointStore(tmp_path).newest())
            assert number_of(CheckpointStore(tmp_path).best()) == 1
        assert newest in {numbers[-1], numbers[-1] + 1}
        reported = numbers[-1]


@pytest.fixture(autouse=True)
def _no_unexpected_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def test_the_newest_file_is_the_one_saved_last(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    assert store.newest_file() is None
    # The best one stays, and is not the newest.
    paths = [save(store, number, score) for number, score in ((3, 9.0), (2, 1.0), (4, 2.0), (1, 3.0))]
    assert store.newest_file() == paths[-1]


def test_the_newest_file_is_named_without_a_look_into_it(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    path = save(store, 1)
    path.write_bytes(b"damaged")
    assert store.newest_file() == path
    path.unlink()
    assert store.newest_file() == path


@pytest.mark.parametrize("text", ["", "{", "[]", '{"checkpoints": 1}'])
def test_a_damaged_manifest_names_no_newest_file(tmp_path: Path, text: str) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match="manifest"):
        store.newest_file()
