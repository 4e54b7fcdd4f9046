"""Runs a real `mpirun` over several "hosts" that are namespaces of this machine, without root.

Every host has a network namespace, a host name, a `/dev/shm` and a `TMPDIR` of its own, so that ranks on
different hosts can only talk TCP, as on a cluster. The hosts hang on one bridge, as `10.77.0.1`, `10.77.0.2`
and so on.

Everything lives in one user, PID and mount namespace. The process with PID 1 in there is this file run as a
program (`_Driver`); the kernel kills all other processes of a PID namespace when its PID 1 ends, and network
interfaces go with their namespace, so nothing is left behind however a run ends. PID 1 ends when `mpirun`
ended or when the caller closes the pipe it holds (at a time-out, or by dying).
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

NETWORK = "10.77.0"
"""The first three numbers of every host's address; the hosts are numbered from 1 in the order given."""

TOOLS = ("unshare", "nsenter", "ip", "mount", "hostname", "sleep")

# A user namespace in which the caller is root, with network, mount and PID namespaces that it may administer.
_OUTER = ["unshare", "-Urnm", "--pid", "--fork", "--kill-child", "--mount-proc"]

# Every user is root inside the namespace, which Open MPI refuses unless told four times.
_MPI_SETTINGS = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_ALLOW_RUN_AS_ROOT": "1",
    "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


def find_mpirun() -> str | None:
    """Returns the path of `mpirun`: the virtual environment's own, else the first on `PATH`, else None."""
    return shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}")


def why_not() -> str | None:
    """Returns the reason why `run_on_hosts` can't work on this machine, or None if it can.

    It tries the namespaces, the interfaces and the mounts for real, which takes some hundredths of a second.
    """
    mpirun = find_mpirun()
    if mpirun is None:
        return "there is no mpirun"
    version = subprocess.run([mpirun, "--version"], capture_output=True, text=True, timeout=30).stdout
    if not version.startswith("mpirun (Open MPI) 5."):
        return f"{mpirun} is not Open MPI 5: {version.strip().splitlines()[:1]}"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"tools are missing: {', '.join(missing)}"
    trial = "ip link add br0 type bridge && ip link add v0 type veth peer name v1"
    trial += " && mount -t tmpfs none /dev/shm && mount --bind /etc/hosts /etc/hosts"
    trial += " && unshare -num hostname other"
    done = subprocess.run([*_OUTER, "sh", "-c", trial], capture_output=True, text=True, timeout=30)
    if done.returncode != 0:
        return f"namespaces are not permitted here: {done.stderr.strip()}"
    return None


def run_on_hosts(
    command: Sequence[str],
    ranks_per_host: Mapping[str, int],
    timeout: float,
    env: Mapping[str, str] | None = None,
    mpi_options: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Runs a command with `mpirun` over hosts that exist only for this run.

    The current directory and the environment (with `PATH`, `PYTHONPATH`, ...) reach every rank. `mpirun`
    itself runs on the first host. Ranks are numbered host by host, in the order of `ranks_per_host`.

    Args:
        command: The program and its arguments, as every rank runs it. Start Python as `sys.executable`.
        ranks_per_host: Number of ranks on each host, by host name (letters and digits).
        timeout: Seconds after which everything is killed.
        env: Variables to set besides this process's own.
        mpi_options: Further options of `mpirun`.

    Returns:
        `mpirun`'s exit status (128 + the signal if a signal ended it) and all output.

    Raises:
        subprocess.TimeoutExpired: It took longer than `timeout`; nothing of it is left.
        RuntimeError: The hosts could not be made, or there is no `mpirun`.
    """
    mpirun = find_mpirun()
    if mpirun is None:
        raise RuntimeError("there is no mpirun")
    with tempfile.TemporaryDirectory(prefix="hosts-") as directory:
        plan = Path(directory, "plan.json")
        job = [mpirun, "-n", str(sum(ranks_per_host.values())), "--map-by", "slot", "--bind-to", "none"]
        job += ["--host", ",".join(f"{name}:{ranks}" for name, ranks in ranks_per_host.items())]
        job += [*mpi_options, *command]
        plan.write_text(json.dumps({"hosts": list(ranks_per_host), "job": job, "cwd": str(Path.cwd())}))
        alive_reader, alive_writer = os.pipe()
        try:
            process = subprocess.Popen(
                [*_OUTER, sys.executable, __file__, directory],
                stdin=alive_reader,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**_environment(), **(env or {})},
                start_new_session=True,
            )
        except BaseException:
            os.close(alive_writer)
            raise
        finally:
            os.close(alive_reader)
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as expired:
            os.close(alive_writer)
            alive_writer = -1
            stdout, stderr = _finish(process)
            raise subprocess.TimeoutExpired(process.args, timeout, stdout, stderr) from expired
        finally:
            if alive_writer >= 0:
                os.close(alive_writer)
            _finish(process)
        if not Path(directory, "ready").exists():
            raise RuntimeError(f"the hosts could not be made: {stderr.strip()}")
        return subprocess.CompletedProcess(job, process.returncode, stdout, stderr)


def _environment() -> dict[str, str]:
    """Ours, without the launcher's folder: every host has a `TMPDIR` of its own."""
    return {name: value for name, value in os.environ.items() if name != "PRTE_MCA_prte_tmpdir_base"}


def _finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Waits for the end of a run whose pipe was closed, by force after 5 s, and returns its output."""
    if process.returncode is not None:
        return "", ""
    try:
        return process.communicate(timeout=5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()


class _Driver:
    """PID 1 of the namespaces: makes the hosts, runs `mpirun` in the first one, and returns its status.

    Attributes:
        directory: The run's directory, the same on every host but for `tmp` in it.
        pids: For each host, the process that holds its namespaces, by host name.
    """

    def __init__(self, directory: Path) -> None:
        """Takes the run's directory, with `plan.json` in it."""
        self.directory = directory
        self.pids: dict[str, int] = {}

    def run(self) -> int:
        """Runs the plan and returns the exit status."""
        plan = json.loads((self.directory / "plan.json").read_text())
        hosts: list[str] = plan["hosts"]
        (self.directory / "tmp").mkdir()
        names = self.directory / "hosts"
        names.write_text(
            "127.0.0.1 localhost\n" + "".join(f"{NETWORK}.{i} {name}\n" for i, name in enumerate(hosts, 1))
        )
        _call("mount", "--bind", str(names), "/etc/hosts")
        _call("ip", "link", "add", "bridge0", "type", "bridge")
        _call("ip", "link", "set", "bridge0", "up")
        for number, name in enumerate(hosts, 1):
            self._make_host(number, name)
        agent = self._write_agent()
        settings = {
            **_MPI_SETTINGS,
            "PRTE_MCA_plm_ssh_agent": str(agent),
            "TMPDIR": str(self.directory / "tmp"),
        }
        (self.directory / "ready").touch()
        job = subprocess.Popen(
            [str(agent), hosts[0], shlex.join(plan["job"])],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **settings},
            cwd=plan["cwd"],
        )
        # PID 1 inherits the orphans of the namespace, so it reaps all that end, not its own child alone.
        while True:
            pid, status = os.wait()
            if pid == job.pid:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code

    def _make_host(self, number: int, name: str) -> None:
        """Makes one host: a sleeping process with namespaces of its own, joined to the bridge."""
        script = (
            'hostname "$0" && mount -t tmpfs none /dev/shm && mount -t tmpfs none "$1"'
            " && ip link set lo up && echo made && exec sleep infinity"
        )
        holder = subprocess.Popen(
            ["unshare", "-num", "sh", "-c", script, name, str(self.directory / "tmp")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert holder.stdout is not None
        if holder.stdout.readline() != "made\n":
            raise RuntimeError(f"host {name} could not be made")
        self.pids[name] = holder.pid
        port = f"port{number}"
        inside = ["nsenter", "-t", str(holder.pid), "-n", "ip"]
        _call("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(holder.pid))
        _call("ip", "link", "set", port, "master", "bridge0", "up")
        _call(*inside, "addr", "add", f"{NETWORK}.{number}/24", "dev", "eth0")
        _call(*inside, "link", "set", "eth0", "up")

    def _write_agent(self) -> Path:
        """Writes what Open MPI calls in place of ssh: a script that runs a command line on a host."""
        agent = self.directory / "agent"
        cases = "".join(f"{name}) pid={pid} ;;\n" for name, pid in self.pids.items())
        agent.write_text(
            f"#!/bin/sh\nhost=$1\nshift\ncase $host in\n{cases}*) echo no host $host >&2; exit 255 ;;\nesac\n"
            # Entering a mount namespace leaves one in its root directory.
            """exec nsenter -t $pid -n -u -m sh -c 'cd "$0" && eval "$1"' "$PWD" "$*"\n"""
        )
        agent.chmod(0o755)
        return agent


def _call(*command: str) -> None:
    """Runs a set-up command and raises if it fails."""
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def _end_with_caller(directory: Path) -> None:
    """Ends PID 1, and so everything in the namespaces, once the caller's end of the pipe is closed."""
    os.read(0, 1)
    shutil.rmtree(directory, ignore_errors=True)  # A caller that was killed can't.
    os._exit(128 + signal.SIGKILL)


if __name__ == "__main__":
    run_directory = Path(sys.argv[1])
    threading.Thread(target=_end_with_caller, args=(run_directory,), daemon=True).start()
    sys.exit(_Driver(run_directory).run())
