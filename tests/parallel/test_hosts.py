"""Tests of the helper that runs `mpirun` over several hosts on one machine."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hosts import run_on_hosts, why_not

REASON = why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

HOSTS = {"left": 2, "right": 1}

TALK = """
import json, os, socket, sys
import numpy as np
from mpi4py import MPI

world = MPI.COMM_WORLD
open(f"/dev/shm/trace-{world.rank}", "w").close()
total = np.empty(1000)
world.Allreduce(np.full(1000, world.rank + 1.0), total)

# A ping-pong of 1 MB between rank 0 and the last rank, which is on the other host.
ball = np.arange(131072.0) if world.rank == 0 else np.zeros(131072)
if world.rank == 0:
    world.Send(ball, world.size - 1)
    world.Recv(ball, world.size - 1)
elif world.rank == world.size - 1:
    world.Recv(ball, 0)
    ball += 1
    world.Send(ball, 0)
world.Barrier()

# Received and sent bytes of the host's interface, from its line in the kernel's table.
line = next(line for line in open("/proc/net/dev") if line.strip().startswith("eth0:")).split()
found = world.gather({
    "host": socket.gethostname(),
    "rank": world.rank,
    "neighbours": world.Split_type(MPI.COMM_TYPE_SHARED).size,
    "allreduce": bool((total == 6).all()),
    "traces": sorted(name for name in os.listdir("/dev/shm") if name.startswith("trace-")),
    "bytes": [int(line[1]), int(line[9])],
    "directory": os.getcwd(),
    "variable": os.environ["HOSTS_TEST"],
})
if world.rank == 0:
    print(json.dumps({"ball": bool((ball == np.arange(131072.0) + 1).all()), "ranks": found}))
"""


def _remains(directory: Path) -> list[str]:
    """Returns the command lines of live processes that mention a directory, and what is left in it."""
    found = [str(path) for path in directory.glob("hosts-*")]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:  # It ended meanwhile.
            continue
        if str(directory) in words:
            found.append(words.replace("\0", " "))
    return found


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a directory that all temporary files of a run go to, so that every process of it names it."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_three_ranks_on_two_hosts(
    directory: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks see their host's name, their neighbours and /dev/shm only, and talk to the others over TCP."""
    current = tmp_path_factory.mktemp("a directory's name")
    monkeypatch.chdir(current)
    done = run_on_hosts([sys.executable, "-c", TALK], HOSTS, timeout=60, env={"HOSTS_TEST": "two words"})
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["ball"]
    ranks = found["ranks"]
    assert [(rank["host"], rank["rank"]) for rank in ranks] == [("left", 0), ("left", 1), ("right", 2)]
    assert [rank["neighbours"] for rank in ranks] == [2, 2, 1]
    assert all(rank["allreduce"] for rank in ranks)
    assert [rank["traces"] for rank in ranks] == [["trace-0", "trace-1"]] * 2 + [["trace-2"]]
    assert all(count > 2**20 for rank in ranks for count in rank["bytes"])
    assert {(rank["directory"], rank["variable"]) for rank in ranks} == {(str(current), "two words")}
    assert _remains(directory) == []


def test_a_failure_is_returned_and_leaves_nothing(directory: Path) -> None:
    """The status of `mpirun` is returned when a rank on the second host aborts."""
    program = "from mpi4py import MPI; w = MPI.COMM_WORLD; w.rank == 2 and w.Abort(7); w.Barrier()"
    done = run_on_hosts([sys.executable, "-c", program, str(directory)], HOSTS, timeout=60)
    assert done.returncode == 7, done.stderr
    assert _remains(directory) == []


def test_a_time_out_leaves_nothing(directory: Path) -> None:
    """At a time-out every process is gone by the time the exception arrives."""
    program = "import time; from mpi4py import MPI; print('started', flush=True); time.sleep(1000)"
    begin = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        run_on_hosts([sys.executable, "-c", program, str(directory)], HOSTS, timeout=5)
    assert time.monotonic() - begin < 10
    assert str(caught.value.stdout) == "started\n" * 3
    assert _remains(directory) == []


def test_a_killed_caller_leaves_nothing(directory: Path) -> None:
    """When the process that called the helper is killed, its hosts and their processes end too."""
    root = Path(__file__).parents[2]
    started = directory / "started"
    program = f"import time; open({str(started)!r}, 'w'); time.sleep(1000)"
    call = "from tests.hosts import run_on_hosts; "
    call += f"run_on_hosts([{sys.executable!r}, '-c', {program!r}], {HOSTS}, 60)"
    caller = subprocess.Popen(
        [sys.executable, "-c", call],
        cwd=root,
        env={**os.environ, "TMPDIR": str(directory)},
        start_new_session=True,
    )
    _wait_until(started.exists)
    assert _remains(directory) != []
    os.kill(caller.pid, signal.SIGKILL)
    caller.wait()
    _wait_until(lambda: _remains(directory) == [])


def test_hosts_that_cannot_be_made_raise() -> None:
    """A host name that the kernel's tools refuse is an error of the call, not a failed run."""
    with pytest.raises(RuntimeError, match="could not be made"):
        run_on_hosts(["true"], {"not a name": 1}, timeout=30)


def _wait_until(condition: Callable[[], bool]) -> None:
    """Waits up to 20 s for a condition."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
