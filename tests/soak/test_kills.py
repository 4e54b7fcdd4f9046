"""Many kills at random moments: what is on disk always loads, and what is lost is at most an interval."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.commands import run
from tests.killed import kill_ranks

_KILLS = int(os.environ.get("HPCRL_SOAK_KILLS", "100"))


def test_kills_of_a_rank_or_of_all(tmp_path: Path) -> None:
    kill_ranks(tmp_path / "run", 3, _KILLS - _KILLS // 2)


def test_kills_of_one_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.killed", str(tmp_path / "run"), str(_KILLS // 2)]
    done = run(command, timeout=60 + 10 * _KILLS)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
