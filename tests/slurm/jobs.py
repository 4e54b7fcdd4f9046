"""Batch jobs on the mini cluster, as a user has them."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.slurm.cluster import MiniCluster

REPOSITORY = Path(__file__).parents[2]
_ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "OUT_OF_MEMORY"}


class Jobs:
    """Submits and watches jobs; `folder` is where they are submitted, with their logs and runs.

    Args:
        cluster: which must be up.
        folder: for everything that the jobs write.
        environment: folder of the Python environment that they use.
    """

    def __init__(self, cluster: MiniCluster, folder: Path, environment: Path) -> None:
        self.cluster, self.folder, self.environment = cluster, folder, environment
        self._submitted: list[str] = []

    @property
    def variables(self) -> dict[str, str]:
        """Variables of a user who submits: the environment, and hpcrl importable in it."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PMI", "PRTE_"))}
        return ours | {"HPCRL_ENVIRONMENT": str(self.environment), "PYTHONPATH": str(REPOSITORY)}

    def sbatch(self, *words: object, variables: Mapping[str, str] | None = None) -> str:
        """Submit; the job's id."""
        command = ["env", *(f"{name}={value}" for name, value in {**self.variables, **(variables or {})}.items())]
        out = self.cluster.call(*command, "sbatch", "--parsable", *map(str, words), folder=self.folder)
        self._submitted.append(out.strip())
        return self._submitted[-1]

    def adopt(self, job: str) -> None:
        """Watch a job that something else submitted."""
        self._submitted.append(job)

    def show(self, job: str, name: str) -> str:
        """A field of `scontrol show job`; empty where it is not there."""
        found = re.search(rf"\b{name}=(\S*)", self.cluster.call("scontrol", "show", "job", job, check=False))
        return found[1] if found else ""

    def log(self, job: str) -> str:
        """What a job wrote."""
        found = [path for path in self.folder.rglob(f"*-{job}.log")]
        return found[0].read_text(errors="replace") if found else ""

    def start(self, job: str, timeout_s: float = 60) -> None:
        """Wait until a job runs; one that was requeued waits two seconds only."""
        # Its credential is of the second in which it was requeued: revoked for a start in the same one.
        hasten = time.monotonic() + 2

        def runs() -> bool:
            state = self.show(job, "JobState")
            if state == "PENDING" and time.monotonic() > hasten:
                self.cluster.call("scontrol", "update", f"jobid={job}", "StartTime=now", check=False)
            return state == "RUNNING"

        self.until(runs, job, timeout_s)

    def ends(self, job: str, timeout_s: float = 120) -> str:
        """Wait until a job is over for good; its state."""
        self.until(lambda: self.show(job, "JobState") in _ENDED, job, timeout_s)
        return self.show(job, "JobState")

    def until(self, condition: Callable[[], object], job: str, timeout_s: float = 60) -> None:
        """Wait for something that a job does; fails with its log where that takes too long."""
        end = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > end:
                shown = self.cluster.call("scontrol", "show", "job", job, check=False)
                raise AssertionError(f"not within {timeout_s:.0f} s\n{shown}\n{self.log(job)}")
            time.sleep(0.1)

    def cancel_all(self) -> None:
        """End what was submitted and still runs or waits."""
        for job in self._submitted:
            self.cluster.call("scancel", job.partition("_")[0], check=False)
