"""Takes the place of srun, scontrol, sbatch and of a Python with hpcrl in tests of batch scripts, by its own name.

Every call is a line of $STUB_FOLDER/calls; the other $STUB_* say what it does. See tests/single/test_batch_scripts.py.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

FOLDER = Path(os.environ["STUB_FOLDER"])
_VARIABLES = (
    "HPCRL_RUN_DIR",
    "HPCRL_RESTARTS",
    "HPCRL_RESULTS",
    "SLURM_RESTART_COUNT",
    "SLURM_EXPORT_ENV",
    "STUB_PYTHON",
)
_PATIENCE_S = 10.0


def number(name: str, default: float = 0) -> float:
    return float(os.environ.get(f"STUB_{name}", default))


def note(name: str, arguments: Sequence[str]) -> None:
    call = {
        "name": name,
        "arguments": arguments,
        "variables": {variable: os.environ.get(variable) for variable in _VARIABLES},
        "ignores_warnings": signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN,
    }
    with (FOLDER / "calls").open("a") as file:
        file.write(json.dumps(call) + "\n")


def srun(arguments: list[str]) -> int:
    """Runs the command of the first component once, and passes warnings on, once it listens.

    $STUB_LOST is what does not answer: a node of several, or Slurm itself.
    """
    note("srun", arguments)
    start = next(place for place, word in enumerate(arguments) if not word.startswith("-"))
    command = arguments[start:]
    if ":" in command:
        command = command[: command.index(":")]
    if command == ["true"] and (lost := os.environ.get("STUB_LOST")):
        return int(lost == "Slurm" or "--ntasks=1" not in arguments)
    time.sleep(number("SRUN_DEAF_S"))
    ranks: list[subprocess.Popen[bytes]] = []

    def forward(_number: int, _frame: FrameType | None) -> None:
        for rank in ranks:
            rank.send_signal(signal.SIGUSR1)

    # Caught here, so that the ranks have the default: as Slurm's daemon starts them.
    signal.signal(signal.SIGUSR1, forward)
    signal.signal(signal.SIGTERM, forward)
    process = subprocess.Popen(command)
    if "hpcrl" in command:
        until_it_ignores_warnings(process)
    ranks.append(process)
    status = process.wait()
    return status if status >= 0 else 128 - status


def until_it_ignores_warnings(process: subprocess.Popen[bytes]) -> None:
    """A rank's first command line: Slurm takes longer to pass a warning on."""
    end = time.monotonic() + 1
    while process.poll() is None and time.monotonic() < end:
        ignored = re.search(r"SigIgn:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())
        if ignored is not None and int(ignored[1], 16) >> (signal.SIGUSR1 - 1) & 1:
            return
        time.sleep(0.005)


def plugin() -> int:
    note("plugin", [])
    time.sleep(number("PLUGIN_S"))
    print(os.environ.get("STUB_MPI", "pmi2"))
    return int(number("PLUGIN_STATUS"))


def rank(arguments: list[str]) -> int:
    """Finishes, fails, or works until it has been warned often enough."""
    note("rank", arguments)
    outcome = Path(arguments[arguments.index("--run-dir") + 1]) / "outcome"
    outcome.write_text("running\n")
    if (left := until_warned() or int(number("RANK_STATUS"))) != 0:
        return left
    outcome.write_text(os.environ.get("STUB_OUTCOME", "finished") + "\n")
    return 0


def benchmark(arguments: list[str]) -> int:
    note("benchmark", arguments)
    return until_warned() or (128 + signal.SIGUSR1 if number("WARNINGS") else int(number("RANK_STATUS")))


def until_warned() -> int:
    """0 after $STUB_WARNINGS warnings, of which those of the first moments are not noticed."""
    missing = int(number("WARNINGS"))
    time.sleep(number("RANK_DEAF_S"))
    warnings: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _frame: warnings.append(number))
    note("listens", [])
    end = time.monotonic() + _PATIENCE_S
    while len(warnings) < missing:
        if time.monotonic() > end:
            return 99
        time.sleep(0.01)
    return 0


def scontrol(arguments: list[str]) -> int:
    note("scontrol", arguments)
    if arguments[0] == "requeue":
        time.sleep(number("REQUEUE_S"))
        return int(number("REQUEUE_STATUS"))
    if arguments[:2] == ["show", "partition"]:
        print(f"PreemptMode={os.environ.get('STUB_PREEMPT_MODE', 'REQUEUE')}")
        return 0
    state = FOLDER / "state"
    if not state.exists():
        print("scontrol: unable to contact slurm controller", file=sys.stderr)
        return 1
    print(state.read_text(), end="")
    return 0


def sbatch(arguments: list[str]) -> int:
    note("sbatch", arguments)
    return int(number("SBATCH_STATUS"))


def python(arguments: list[str]) -> int:
    if arguments[0] == "-c":
        return 0
    assert arguments[0] == "-m"
    if arguments[1] == "hpcrl.cluster.srun":
        return plugin()
    return benchmark(arguments[2:]) if arguments[1] == "benchmarks.scaling" else rank(arguments[2:])


if __name__ == "__main__":
    calls = {"srun": srun, "scontrol": scontrol, "sbatch": sbatch, "python3": python}
    status = calls[Path(sys.argv[0]).name](sys.argv[1:])
    # Python takes its handlers away before it is over.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    sys.exit(status)
