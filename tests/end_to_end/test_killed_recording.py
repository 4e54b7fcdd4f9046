"""A run that records is killed: every closed shard and the newest checkpoint load, and no episode is there twice."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.commands import run


def test_six_kills_of_one_process(tmp_path: Path) -> None:
    done = run([sys.executable, "-m", "tests.killed", str(tmp_path / "run"), "6"], timeout=120)
    assert done.returncode == 0, done.stderr
