"""Arrays in the safetensors format: plain data that other libraries read without a line of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hpcrl.errors import ConfigError
from hpcrl.storage.durable import write_durably


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, str]) -> None:
    """Writes arrays, and texts about them, to one file, durably.

    Args:
        path: The file to create or replace; its folder must exist.
        arrays: By name.
        about: The metadata in the file's header.

    Raises:
        ConfigError: The package safetensors is missing, or the file can't be written.
    """
    try:
        from safetensors.numpy import save
    except ImportError as error:
        raise ConfigError("--safetensors needs the package safetensors: pip install 'hpcrl[safetensors]'") from error
    data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, dict(about))
    try:
        write_durably(path, lambda temporary: temporary.write_bytes(data))
    except OSError as error:
        raise ConfigError(f"{path} can't be written: {error}") from error
