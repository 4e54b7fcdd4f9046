"""What every GPU does already, and how fast data comes to it."""

from __future__ import annotations

from collections.abc import Sequence

from hpcrl.doctor.facts import GpuFacts, RankFacts
from hpcrl.doctor.finding import Finding, Level, name_ranks
from hpcrl.words import plural

_NAME = "gpu"
_MOST_LINES = 16
#: From here on somebody else is taken to use a GPU. An idle one has the driver's memory in use, some hundred MB.
_BUSY_PERCENT = 20
_MUCH_MEMORY = 0.5
#: Four lanes of PCIe 3, in bytes a second; a GPU has sixteen.
_SLOW = 3e9
_GB = 1e9


def judge_gpu_use(facts: Sequence[RankFacts]) -> list[Finding]:
    """A line for each GPU that ranks are shown; of very many, those that are noted come first."""
    ranks_of: dict[tuple[int, str], list[RankFacts]] = {}
    for rank in facts:
        for gpu in rank.gpus:
            ranks_of.setdefault((rank.node, gpu.uuid), []).append(rank)
    findings = [_judge(uuid, ranks) for (_, uuid), ranks in ranks_of.items()]
    findings.sort(key=lambda finding: -finding.level.weight)
    rest = len(findings) - _MOST_LINES
    if rest <= 0:
        return findings
    shown = findings[:_MOST_LINES]
    level = findings[_MOST_LINES].level
    return [*shown, Finding(level, _NAME, f"{plural(rest, 'GPU')} more; --json FILE has the figures of all")]


def short(uuid: str) -> str:
    """The first digits of a UUID: enough to find it in the list of `nvidia-smi -L`."""
    # Old names of MIG instances end with their numbers.
    return uuid if "/" in uuid else "-".join(uuid.split("-")[:2])


def _judge(uuid: str, ranks: Sequence[RankFacts]) -> Finding:
    place = next(place for place, gpu in enumerate(ranks[0].gpus) if gpu.uuid == uuid)
    gpu, rate = ranks[0].gpus[place], _rate(ranks, uuid)
    host = ranks[0].host
    says = f"{short(uuid)} on {host} ({gpu.name}, {name_ranks(rank.rank for rank in ranks)}): {_figures(gpu, rate)}"
    notes, advice = [], []
    if _is_in_use(gpu):
        notes.append("somebody uses it already")
        advice.append(f"Look at nvidia-smi on {host}; ask the scheduler for a GPU of your own.")
    if rate is not None and rate < _SLOW:
        notes.append("data comes to it slowly")
        advice.append(f"See on {host} which cores are near it (nvidia-smi topo -m), and its lanes (nvidia-smi -q).")
    return Finding(Level.NOTE if notes else Level.OK, _NAME, "; ".join([says, *notes]), " ".join(advice))


def _rate(ranks: Sequence[RankFacts], uuid: str) -> float | None:
    """What was measured by the ranks that are shown a GPU; None where no one has."""
    for rank in ranks:
        rates = rank.torch.copy_rates if rank.torch is not None else ()
        for gpu, rate in zip(rank.gpus, rates, strict=False):
            if gpu.uuid == uuid and rate is not None:
                return rate
    return None


def _is_in_use(gpu: GpuFacts) -> bool:
    if gpu.busy_percent is not None and gpu.busy_percent >= _BUSY_PERCENT:
        return True
    return bool(gpu.memory_bytes and gpu.used_bytes and gpu.used_bytes >= _MUCH_MEMORY * gpu.memory_bytes)


def _figures(gpu: GpuFacts, rate: float | None) -> str:
    pieces = []
    if gpu.busy_percent is not None:
        pieces.append(f"{gpu.busy_percent} % busy")
    if gpu.used_bytes is not None and gpu.memory_bytes is not None:
        pieces.append(f"{gpu.used_bytes / _GB:.1f} of {gpu.memory_bytes / _GB:.1f} GB in use")
    pieces.append("copies to it not measured" if rate is None else f"{rate / _GB:.1f} GB/s from host memory")
    return ", ".join(pieces)
