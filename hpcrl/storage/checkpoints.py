"""Checkpoints: a file counts once the manifest beside it, written after it, lists it."""

import math
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcrl.errors import CheckpointError, ConfigError
from hpcrl.storage.durable import sha256_of, write_durably, write_json_durably
from hpcrl.storage.hdf5 import Attribute, read_arrays, write_arrays
from hpcrl.storage.manifest import (
    MANIFEST_NAME,
    Entry,
    by_score,
    is_plain_name,
    manifest_of,
    read_manifest,
    unused_name,
)
from hpcrl.storage.staging import Staging

_HDF5 = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What one checkpoint file held.

    Attributes:
        path: The file.
        arrays: Its arrays by slash-separated name.
        attributes: Its texts and numbers, such as `config`, `env_steps` and `learner_updates`.
    """

    path: Path
    arrays: dict[str, np.ndarray]
    attributes: dict[str, Attribute]

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        """Returns the arrays below `prefix/`, named without it."""
        start = prefix + "/"
        below = (name for name in self.arrays if name.startswith(start))
        return {name.removeprefix(start): self.arrays[name] for name in below}


class CheckpointStore:
    """The checkpoints of one run: the newest few, the best one, milestones, and the manifest that lists them.

    One thread writes; any number may read meanwhile.
    """

    def __init__(self, directory: Path, keep: int = 2, local: Path | None = None) -> None:
        """Names the directory; nothing is read or made until it is needed.

        Args:
            directory: Holds `<name>.h5` files and `manifest.json`; the first save creates it.
            keep: How many of the newest checkpoints stay, at least 2.
            local: A folder of the node in which files are written first, see `Staging`; None: none.

        Raises:
            ConfigError: `keep` is below 2.
        """
        if keep < 2:
            raise ConfigError(f"Expected at least 2 checkpoints to be kept, got {keep}.")
        self.directory = Path(directory)
        self.keep = keep
        self._write_durably = write_durably if local is None else Staging(local, self.directory).write_durably
        self._damaged: set[str] = set()

    def save(
        self,
        name: str,
        arrays: Mapping[str, np.ndarray],
        attributes: Mapping[str, Attribute],
        score: float | None = None,
        milestone: bool = False,
    ) -> Path:
        """Makes a checkpoint the newest one, durably; until then the old ones stay untouched.

        Args:
            name: A plain file name without `.h5`. Where a listed checkpoint has it already, `-2` (or `-3`
                and so on) is appended, since a kill while that one is replaced could lose both.
            arrays: As for `write_arrays`.
            attributes: As for `write_arrays`.
            score: Higher is better; None or a non-finite number never becomes the best.
            milestone: Whether it stays whatever comes after it.

        Returns:
            The file written.

        Raises:
            CheckpointError: The disk is full, read-only or broken, or the manifest is damaged.
            ValueError: A name, dtype or attribute that can't be stored.
        """
        listed = read_manifest(self.directory)
        unused = unused_name(name, listed)
        _require(is_plain_name(unused), f"{unused!r} is no plain file name")
        path = self._file(unused)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            _unlink_quietly(self._leftovers(name, listed))
            self._write_durably(path, lambda temporary: write_arrays(temporary, arrays, attributes))
            kept = self._kept([*listed, _describe(path, attributes, score, milestone)])
            write_json_durably(self.directory / MANIFEST_NAME, manifest_of(kept))
        except OSError as error:
            raise CheckpointError(f"Checkpoint {path} was not saved: {error}.") from error
        dropped = {entry.name for entry in listed} - {entry.name for entry in kept}
        _unlink_quietly(map(self._file, dropped))
        self._damaged.clear()
        return path

    def newest_file(self) -> Path | None:
        """The file that the manifest lists last; None where it lists none. Nothing is loaded or verified.

        Raises:
            CheckpointError: The manifest is damaged.
        """
        listed = read_manifest(self.directory)
        return self._file(listed[-1].name) if listed else None

    def newest(self) -> Checkpoint | None:
        """Loads the newest whole checkpoint; warns of each damaged one that it passes over.

        Returns:
            The checkpoint, or None where none was ever saved.

        Raises:
            CheckpointError: The manifest, or every checkpoint that it lists, is damaged.
        """
        return self._first_whole(reversed(read_manifest(self.directory)))

    def best(self) -> Checkpoint | None:
        """Loads the whole checkpoint of the highest score; warns of each damaged one that it passes over.

        Returns:
            The checkpoint, or None where none was saved with a score.

        Raises:
            CheckpointError: The manifest, or every checkpoint with a score, is damaged.
        """
        return self._first_whole(by_score(read_manifest(self.directory)))

    def _first_whole(self, entries: Iterable[Entry]) -> Checkpoint | None:
        damages: list[str] = []
        for entry in entries:
            try:
                checkpoint = _load_verified(self._file(entry.name), entry)
            except CheckpointError as error:
                self._damaged.add(entry.name)
                damages.append(str(error))
                continue
            for damage in damages:
                warnings.warn(f"A checkpoint is passed over: {damage}", RuntimeWarning, stacklevel=3)
            return checkpoint
        if damages:
            raise CheckpointError(f"No checkpoint in {self.directory} is whole; the first: {damages[0]}")
        return None

    def _kept(self, entries: list[Entry]) -> list[Entry]:
        """Returns the newest `keep` entries, the best one and milestones, oldest first; none found damaged."""
        whole = [entry for entry in entries if entry.name not in self._damaged]
        chosen = whole[-self.keep :] + by_score(whole)[:1]
        return [entry for entry in whole if entry.milestone or entry in chosen]

    def _leftovers(self, name: str, entries: list[Entry]) -> list[Path]:
        """Returns what a kill left behind: temporary files, and files named like ours but not listed."""
        listed = {entry.name for entry in entries}
        # A file under another kind of name is the user's own copy.
        ours = re.compile(re.sub(r"[0-9]+", "[0-9]+", re.escape(name)) + "(-[0-9]+)?")
        unlisted = [path for path in self.directory.glob("*.h5") if path.stem not in listed]
        return [*self.directory.glob(".*.tmp-*"), *(path for path in unlisted if ours.fullmatch(path.stem))]

    def _file(self, name: str) -> Path:
        return self.directory / f"{name}.h5"


def save_checkpoint(path: Path, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Attribute]) -> None:
    """Writes one checkpoint file outside any store, durably; arguments as for `write_arrays`.

    Raises:
        CheckpointError: The file can't be written; an older one of that name is untouched then.
    """
    try:
        write_durably(path, lambda temporary: write_arrays(temporary, arrays, attributes))
    except OSError as error:
        raise CheckpointError(f"Checkpoint {path} was not saved: {error}.") from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Loads one checkpoint file, against the sha256 of the manifest beside it where that lists it.

    Raises:
        CheckpointError: The file is missing, damaged or hostile.
    """
    path = Path(path)
    try:
        entries = read_manifest(path.parent)
    except CheckpointError as error:
        warnings.warn(f"The checkpoint is loaded without its manifest: {error}", RuntimeWarning, stacklevel=2)
        entries = []
    for entry in entries:
        if path.name == f"{entry.name}.h5":
            return _load_verified(path, entry)
    return Checkpoint(path, *read_arrays(path))


def find_checkpoint(path: Path, best: bool) -> Checkpoint:
    """Loads one checkpoint file, or the newest (or the best) whole checkpoint of a run directory.

    Raises:
        CheckpointError: There is no such thing (with the exit status of a ConfigError), or nothing whole.
    """
    if path.is_file():
        if not _is_hdf5(path):
            raise _nothing_here(f"{path} is no checkpoint file")
        single = load_checkpoint(path)
        if "config" not in single.attributes:
            raise _nothing_here(f"{path} is no checkpoint of a run: it holds no configuration")
        return single
    if not path.is_dir():
        raise _nothing_here(f"{path} is neither a run directory nor a checkpoint file")
    store = CheckpointStore(path / "checkpoints")
    checkpoint = store.best() if best else store.newest()
    if checkpoint is None:
        raise _nothing_here(f"{path} holds no {'best ' if best else ''}checkpoint")
    return checkpoint


def _is_hdf5(path: Path) -> bool:
    """Whether a file begins as HDF5 does; also where it can't be read, which whoever opens it says."""
    try:
        with path.open("rb") as file:
            return file.read(len(_HDF5)) == _HDF5
    except OSError:
        return True


def _nothing_here(sentence: str) -> CheckpointError:
    error = CheckpointError(sentence)
    # Nothing is damaged: what was asked for can't be done.
    error.exit_status = ConfigError.exit_status
    return error


def require_matching(checkpoint: Checkpoint, prefix: str, expected: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
    """Checks that a group holds exactly the arrays that a model expects.

    Args:
        checkpoint: The checkpoint.
        prefix: The group, such as `weights`.
        expected: Shape and dtype name by the array's name below `prefix`.

    Raises:
        CheckpointError: Names the first array that is missing, unexpected, or of another shape or dtype.
    """
    found = checkpoint.group(prefix)
    for name in sorted(expected.keys() | found.keys()):
        held = _outline(found[name].shape, found[name].dtype.name) if name in found else "no such array"
        wanted = _outline(*expected[name]) if name in expected else "no such array"
        if held != wanted:
            raise CheckpointError(f"{checkpoint.path} holds {prefix}/{name} {held}, expected {wanted}.")


def _outline(shape: tuple[int, ...], dtype: str) -> str:
    return f"{list(shape)} {dtype}"


def _describe(path: Path, attributes: Mapping[str, Attribute], score: float | None, milestone: bool) -> Entry:
    counters = {key: int(attributes[key]) for key in ("env_steps", "learner_updates") if key in attributes}
    finite = float(score) if score is not None and math.isfinite(score) else None
    return Entry(path.stem, sha256_of(path), path.stat().st_size, finite, milestone=milestone, **counters)


def _load_verified(path: Path, entry: Entry) -> Checkpoint:
    if not path.exists():
        raise CheckpointError(f"{path} is missing, though the manifest lists it.")
    try:
        whole = path.is_file() and path.stat().st_size == entry.bytes and sha256_of(path) == entry.sha256
    except OSError as error:
        raise CheckpointError(f"{path} is listed in the manifest but can't be read: {error}.") from error
    if not whole:
        raise CheckpointError(f"{path} is damaged: its size or sha256 is not the manifest's.")
    return Checkpoint(path, *read_arrays(path))


def _unlink_quietly(paths: Iterable[Path]) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            warnings.warn(f"An old checkpoint file stays behind: {error}.", RuntimeWarning, stacklevel=3)


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)
