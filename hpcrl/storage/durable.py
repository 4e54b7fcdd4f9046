"""Files that are either the old one or the new one, whatever happens in between."""

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_durably(path: Path, write: Callable[[Path], object]) -> None:
    """Replaces a file in one step that a kill or a power cut can't split.

    Args:
        path: The file to create or replace; its directory must exist.
        write: Called with a temporary sibling of `path`, which it must create and close.

    Raises:
        OSError: The disk is full, read-only or broken; the temporary file is gone again.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        write(temporary)
        make_durable(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def make_durable(temporary: Path, path: Path) -> None:
    """Gives a whole file, closed, its name in the same directory, durably.

    Raises:
        OSError: As `write_durably`; the file may have either name.
    """
    _sync(temporary)
    os.replace(temporary, path)
    _sync_directory(path.parent)


def write_json_durably(path: Path, data: Any) -> None:
    """Replaces a file by `data` as indented JSON, durably.

    Raises:
        OSError: As `write_durably`.
        TypeError: `data` holds something that JSON has no word for.
        ValueError: `data` holds a NaN or an infinity, which JSON has no word for either.
    """
    text = json.dumps(data, indent=2, allow_nan=False) + "\n"
    write_durably(path, lambda temporary: temporary.write_bytes(text.encode()))


def sha256_of(path: Path) -> str:
    """Returns the sha256 of a file's content, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_directory(path: Path) -> None:
    try:
        _sync(path)
    except OSError as error:
        # Some network file systems refuse to sync a directory; their renames are synchronous.
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
