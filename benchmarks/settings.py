"""What the command line sets for every workload."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

CORES = len(os.sched_getaffinity(0))
_NATIVE_FACTOR = 20


@dataclass(frozen=True)
class Settings:
    """Length of the runs, and where peers are.

    Attributes:
        env_steps: of a run on a Python environment.
        seconds: of a peer's run, and of environments alone.
        peers_python: interpreters that have some of the peers.
    """

    env_steps: int = 400_000
    seconds: float = 15.0
    peers_python: Sequence[str] = ()

    @property
    def native_env_steps(self) -> int:
        """Env steps of a run on environments in numpy, which are that much faster."""
        return self.env_steps * _NATIVE_FACTOR

    def python_with(self, module: str) -> str | None:
        """The first of the peers' interpreters that has `module`."""
        found = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
        for python in self.peers_python:
            if subprocess.run([python, "-c", found], capture_output=True, timeout=60, check=False).returncode == 0:
                return python
        return None
