"""Command lines of hpcrl one after the other, in one process or on the same ranks: `python -m tests.in_turn FOLDER`.

FOLDER/commands.json holds them. What each prints on a rank goes to FOLDER/NUMBER.RANK.out and .err, and its status and
seconds on the first rank to FOLDER/NUMBER.json. A fault after FOLDER is planted first, see `tests.faults`.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from hpcrl.commands.main import main
from tests.faults import own_rank, plant_as_told


def _run(command: Sequence[str]) -> int:
    """The status that a process of its own would leave with."""
    # A warning that an earlier command gave is given again.
    with warnings.catch_warnings():
        try:
            return main(command)
        except SystemExit as leaving:
            return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)


def _run_all(folder: Path) -> None:
    rank = own_rank()
    for number, command in enumerate(json.loads((folder / "commands.json").read_text())):
        begin = time.monotonic()
        with (
            (folder / f"{number}.{rank}.out").open("w", buffering=1) as out,
            (folder / f"{number}.{rank}.err").open("w", buffering=1) as err,
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            status = _run(command)
        if rank == "0":
            (folder / f"{number}.json").write_text(json.dumps([status, time.monotonic() - begin]))


if __name__ == "__main__":
    for fault in sys.argv[2:]:
        plant_as_told(fault)
    _run_all(Path(sys.argv[1]))
