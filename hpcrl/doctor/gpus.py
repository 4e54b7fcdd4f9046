"""Which GPUs every node shows to its ranks, and whether torch and MPI can make use of them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

from hpcrl.doctor.facts import RankFacts
from hpcrl.doctor.finding import Finding, Level, name_hosts, name_ranks
from hpcrl.words import plural

_NAME = "gpus"
_TOOL_S = 10
_DOUBT = ", which tasks inherit from their script"


def list_gpus() -> tuple[str, ...]:
    """The GPUs that the driver's tool lists on this machine; none without it. Local."""
    if (tool := shutil.which("nvidia-smi")) is None:
        return ()
    try:
        done = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=_TOOL_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    return tuple(line.partition(" (UUID")[0].strip() for line in lines if line.startswith("GPU "))


def judge_gpus(facts: Sequence[RankFacts], cuda_aware: bool | None) -> Finding:
    """Ranks and their devices, and whether messages may come from a GPU's memory."""
    shown: dict[str, list[RankFacts]] = {}
    for rank in facts:
        shown.setdefault(_devices(rank), []).append(rank)
    aware = {True: "MPI is CUDA-aware", False: "MPI is not CUDA-aware", None: "MPI doesn't say if it is CUDA-aware"}
    with_gpus = [rank for text, ranks in shown.items() if text for rank in ranks]
    if not with_gpus:
        return Finding(Level.OK, _NAME, f"no rank is shown a GPU; {aware[cuda_aware]}")
    pieces = [
        f"{name_ranks(rank.rank for rank in ranks)} on {name_hosts(rank.host for rank in ranks)} {text or 'no GPU'}"
        for text, ranks in shown.items()
    ]
    says = "; ".join([*pieces, aware[cuda_aware]])
    cpu_builds = [rank for rank in with_gpus if rank.torch is not None and rank.torch.build == "cpu"]
    if cpu_builds:
        says += f"; torch is a CPU build on {name_hosts(rank.host for rank in cpu_builds)} and leaves them idle"
        return Finding(Level.NOTE, _NAME, says, "To use them install a CUDA build of torch (see pytorch.org).")
    blind = [rank for rank in with_gpus if rank.torch is not None and not rank.torch.devices]
    if blind:
        says += f"; torch, built for {blind[0].torch.build if blind[0].torch else ''}, can use none of them"
        return Finding(Level.NOTE, _NAME, says, "Look at nvidia-smi on that node: the driver may be older than torch.")
    return Finding(Level.OK, _NAME, says)


def _devices(rank: RankFacts) -> str:
    """What a rank is shown, by the best witness: torch, the driver's tool, Slurm, or a variable; empty for nothing."""
    visible = rank.variables.get("CUDA_VISIBLE_DEVICES")
    among = f" (CUDA_VISIBLE_DEVICES={visible})" if visible is not None else ""
    kind = f", {rank.listed_gpus[0].partition(': ')[2]}" if rank.listed_gpus else ""
    if rank.torch is not None and rank.torch.devices:
        return f"{plural(rank.torch.devices, 'GPU')}{among}{kind}"
    if visible is not None and visible.strip() in ("", "-1", "NoDevFiles"):
        return ""
    if rank.listed_gpus:
        return f"{plural(len(rank.listed_gpus), 'GPU')}{among}{kind}"
    if (number := rank.variables.get("SLURM_GPUS_ON_NODE", "")).isdigit() and int(number):
        return f"{plural(int(number), 'GPU')} (SLURM_GPUS_ON_NODE says so{_DOUBT})"
    if visible is not None:
        return f"{plural(len(visible.split(',')), 'GPU')} (CUDA_VISIBLE_DEVICES={visible} says so{_DOUBT})"
    return ""
