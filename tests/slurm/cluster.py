"""A real Slurm cluster of four nodes on this machine: two of the partition cpu, two of gpu with two fake GPUs each.

    python -m tests.slurm.cluster up FOLDER      prints what to export; needs root and what tests/slurm/install installs
    python -m tests.slurm.cluster down FOLDER

Every node is a slurmd in namespaces of its own, with its host name and its /dev/shm. Cores and network are shared.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

#: Debian ships the file that Slurm's pmix plugin opens only with the headers; tests/slurm/install makes a link.
PMIX = Path("/usr/lib/x86_64-linux-gnu/pmix2/lib/libpmix.so")
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "unshare")
NODES = ("cpu1", "cpu2", "gpu1", "gpu2")
CPUS = 4

_SETTINGS = """\
ClusterName=mini
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.socket,cred_expire=10
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
TmpFS={folder}/tmp/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/log/jobcomp.log
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
JobRequeue=1
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=15
KillWait=5
OverTimeLimit=0
InactiveLimit=0
MinJobAge=3600
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
"""
_NODE = (
    "NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} Boards=1 SocketsPerBoard=1 "
    "CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory=4096 Feature={kind} State=UNKNOWN{gres}\n"
)
_PARTITIONS = """\
PartitionName=cpu Nodes=cpu[1-2] Default=YES DefaultTime=10 MaxTime=60 State=UP PreemptMode=REQUEUE GraceTime=8
PartitionName=gpu Nodes=gpu[1-2] DefaultTime=10 MaxTime=60 State=UP PreemptMode=OFF
PartitionName=urgent Nodes=cpu[1-2] DefaultTime=10 MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=strict Nodes=cpu[1-2] DefaultTime=10 MaxTime=60 State=UP PreemptMode=OFF
"""
_DEVICES = """\
AutoDetect=off
NodeName=gpu[1-2] Name=gpu File=/dev/null
NodeName=gpu[1-2] Name=gpu File=/dev/zero
"""


class ClusterError(Exception):
    """The cluster did not come up, or a command of Slurm did not do what was asked."""


def why_not() -> str | None:
    """What keeps this machine from running the cluster; None where nothing does."""
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"no {', '.join(missing)}: run tests/slurm/install as root (Debian)"
    if os.geteuid() != 0:
        return "Slurm's daemons and namespaces need root here"
    if not PMIX.exists():
        return f"no {PMIX}: run tests/slurm/install as root"
    probe = subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True, timeout=30, check=False)
    return None if probe.returncode == 0 else "namespaces can't be made here"


class MiniCluster:
    """The daemons of the cluster, whose process ids lie in its folder.

    Args:
        folder: short, since a socket lies in it; made by `up`, removed by `down`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pids_file = folder / "pids.json"

    @property
    def environment(self) -> dict[str, str]:
        """What Slurm's commands need: this process' environment without an outer job, and the cluster's own."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        return ours | {"SLURM_CONF": str(self.folder / "etc/slurm.conf")}

    def up(self) -> None:
        """Start everything and wait until all nodes are idle; ClusterError with the logs where they don't come."""
        for name in ("etc", "run", "log", "state", *(f"{kind}/{node}" for kind in ("spool", "tmp") for node in NODES)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._write_settings()
        self._start("munged", self._munged())
        self._wait_for(lambda: (self.folder / "run/munge.socket").exists(), "munged")
        self._start("slurmctld", ["slurmctld", "-D", "-f", self.environment["SLURM_CONF"]])
        for node in NODES:
            self.start_node(node)
        self._wait_for(lambda: self.node_states() == dict.fromkeys(NODES, "idle"), "nodes")

    def down(self) -> None:
        """End all daemons, and what their jobs left; remove the folder. May be called twice."""
        for name in sorted(self._pids(), key=lambda name: name in ("munged", "slurmctld")):
            self.stop(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node, in namespaces of its own; what was on its disk before `stop` is still there."""
        hosts = self.folder / "etc/hosts"
        script = (
            'hostname "$0" && mount -t tmpfs none /dev/shm && mount --bind "$1" /etc/hosts && '
            'exec slurmd -D -f "$SLURM_CONF" -N "$0"'
        )
        separate = ["unshare", "--uts", "--mount", "--propagation", "private"]
        self._start(node, [*separate, "sh", "-c", script, node, str(hosts)])

    def stop(self, name: str) -> None:
        """Kill a daemon; of a node all that runs on it, as if its power went."""
        pids = self._pids()
        if (pid := pids.pop(name, None)) is None:
            return
        for victim in self._on_node(pid) if name in NODES else [pid]:
            _kill(victim)
        self._pids_file.write_text(json.dumps(pids))

    def node_states(self) -> dict[str, str]:
        """State of every node, as sinfo says it."""
        lines = self.call("sinfo", "--noheader", "--Node", "--format=%N %T", check=False).splitlines()
        return dict(line.split() for line in lines if line.strip())

    def call(self, *command: str, check: bool = True, folder: Path | None = None, timeout: float = 60) -> str:
        """Output of a command; ClusterError where it fails."""
        done = subprocess.run(
            command, capture_output=True, text=True, env=self.environment, cwd=folder, timeout=timeout, check=False
        )
        if check and done.returncode:
            raise ClusterError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def logs(self) -> str:
        """The last lines of every daemon's log."""
        return "\n".join(
            f"== {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-15:])
            for path in sorted((self.folder / "log").glob("*"))
        )

    def _write_settings(self) -> None:
        controller, *ports = _free_ports(1 + len(NODES))
        values = {"folder": self.folder, "host": socket.gethostname(), "port": controller, "user": "root"}
        nodes = "".join(
            _NODE.format(name=name, port=port, cpus=CPUS, kind=name[:3], gres=" Gres=gpu:2" * name.startswith("gpu"))
            for name, port in zip(NODES, ports, strict=True)
        )
        etc = self.folder / "etc"
        (etc / "slurm.conf").write_text(_SETTINGS.format(**values) + nodes + _PARTITIONS)
        (etc / "gres.conf").write_text(_DEVICES)
        (etc / "hosts").write_text(f"127.0.0.1 localhost {socket.gethostname()} {' '.join(NODES)}\n")
        key = etc / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))

    def _munged(self) -> list[str]:
        run, etc, log = (self.folder / name for name in ("run", "etc", "log"))
        return [
            "munged",
            "--foreground",
            "--force",
            f"--key-file={etc}/munge.key",
            f"--socket={run}/munge.socket",
            f"--pid-file={run}/munged.pid",
            f"--log-file={log}/munged.log",
            f"--seed-file={run}/munge.seed",
        ]

    def _start(self, name: str, command: Sequence[str]) -> None:
        with (self.folder / f"log/{name}.out").open("ab") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self.environment, start_new_session=True
            )
        self._pids_file.write_text(json.dumps(self._pids() | {name: process.pid}))

    def _pids(self) -> dict[str, int]:
        return json.loads(self._pids_file.read_text()) if self._pids_file.exists() else {}

    @staticmethod
    def _on_node(slurmd: int) -> list[int]:
        """All processes in the node's namespaces, its slurmd first."""
        if (home := _namespace(slurmd)) is None or home == _namespace(os.getpid()):
            return []
        pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return sorted((pid for pid in pids if _namespace(pid) == home), key=lambda pid: pid != slurmd)

    def _wait_for(self, condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
        end = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > end:
                logs = self.logs()
                self.down()
                raise ClusterError(f"{what} did not come up within {timeout_s:.0f} s\n{logs}")
            time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; all at once, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _namespace(pid: int) -> str | None:
    try:
        return str(Path(f"/proc/{pid}/ns/mnt").readlink())
    except OSError:
        return None


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    end = time.monotonic() + 10
    while time.monotonic() < end and _is_alive(pid):
        time.sleep(0.01)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Up or down, from the command line."""
    if len(arguments) != 2 or arguments[0] not in ("up", "down"):
        print(__doc__, file=sys.stderr)
        return 2
    cluster = MiniCluster(Path(arguments[1]).resolve())
    if arguments[0] == "down":
        cluster.down()
        return 0
    if (reason := why_not()) is not None:
        print(reason, file=sys.stderr)
        return 1
    cluster.up()
    print(f"export SLURM_CONF={cluster.environment['SLURM_CONF']}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
