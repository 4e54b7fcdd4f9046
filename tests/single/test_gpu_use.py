"""What the doctor says of every GPU: who uses it already, and how fast data comes to it."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hpcrl.doctor.copies import copy_rate
from hpcrl.doctor.facts import GpuFacts, RankFacts, TorchFacts, look_at_gpus
from hpcrl.doctor.finding import Finding, Level
from hpcrl.doctor.gpu_use import judge_gpu_use, short
from hpcrl.doctor.report import write_json
from tests.single.test_nvml import CUT, GB, H100, WHOLE, Driver, opened

IDLE = GpuFacts("GPU-8932f937-d72c-4106", H100, 80 * 10**9, 0, 500 * 10**6)


def rank(number: int, *gpus: GpuFacts, rates: tuple[float | None, ...] | None = None, node: int = 0) -> RankFacts:
    torch = None if rates is None else TorchFacts(1, (0,), "12.8", len(rates), rates)
    return RankFacts(number, node, f"n{node}", (0,), 8, torch=torch, gpus=gpus)


def only(*ranks: RankFacts) -> Finding:
    (found,) = judge_gpu_use(ranks)
    return found


def test_the_driver_tells_of_the_gpus_that_cuda_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    drivers: list[Driver] = []

    def library() -> Any:
        drivers.append(Driver([WHOLE, CUT]))
        return opened(drivers[-1])

    assert look_at_gpus(library) == (
        GpuFacts("MIG-aaaa", f"{H100} MIG 1g.10gb", 10 * GB, None, GB),
        GpuFacts("MIG-bbbb", f"{H100} MIG 3g.40gb", 40 * GB, None, GB),
        GpuFacts("GPU-1111", H100, 80 * GB, 42, 3 * GB),
    )
    assert drivers and not any(driver.is_open for driver in drivers)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1111")
    assert [gpu.uuid for gpu in look_at_gpus(library)] == ["GPU-1111"]
    assert look_at_gpus(lambda: None) == ()


def test_an_idle_gpu_takes_a_line() -> None:
    found = only(rank(0, IDLE, rates=(24.94e9,)), rank(1, IDLE))
    assert found.level == Level.OK and found.do == ""
    assert found.says == (
        "GPU-8932f937 on n0 (NVIDIA H100 80GB HBM3, ranks 0-1): 0 % busy, 0.5 of 80.0 GB in use, "
        "24.9 GB/s from host memory"
    )
    assert judge_gpu_use([rank(0)]) == []


@pytest.mark.parametrize(
    ("gpu", "rate", "words", "advice"),
    [
        (replace(IDLE, busy_percent=20), 2e10, "somebody uses it already", "nvidia-smi on n0"),
        (replace(IDLE, used_bytes=40 * 10**9), 2e10, "somebody uses it already", "GPU of your own"),
        (IDLE, 2.9e9, "data comes to it slowly", "topo -m"),
        (replace(IDLE, busy_percent=99), 1e9, "uses it already; data comes to it slowly", "topo -m"),
    ],
)
def test_a_gpu_that_is_in_use_or_far_away_is_named(gpu: GpuFacts, rate: float, words: str, advice: str) -> None:
    found = only(rank(0, gpu, rates=(rate,)))
    assert (found.level, words in found.says, advice in found.do) == (Level.NOTE, True, True)
    assert found.says.startswith("GPU-8932f937 on n0")


def test_what_is_not_told_is_left_out() -> None:
    silent = replace(IDLE, busy_percent=None, used_bytes=None)
    for rates in (None, (), (None,)):
        found = only(rank(0, silent, rates=rates))
        assert (found.level, found.says.partition("): ")[2]) == (Level.OK, "copies to it not measured")


def test_every_gpu_has_the_rate_of_the_rank_that_measured_it() -> None:
    other = replace(IDLE, uuid="GPU-ffffffff-0000")
    ranks = [rank(0, other, IDLE, rates=(None, 1e9)), rank(1, IDLE, other, rates=(2e9, 5e9)), rank(2, IDLE, node=2)]
    lines = {finding.says.partition(" (")[0]: finding.says for finding in judge_gpu_use(ranks)}
    assert "5.0 GB/s" in lines["GPU-ffffffff on n0"] and "1.0 GB/s" in lines["GPU-8932f937 on n0"]
    # Machines that were copied may number their GPUs alike.
    assert "not measured" in lines["GPU-8932f937 on n2"] and len(lines) == 3


def test_of_very_many_the_noted_come_first() -> None:
    many = [replace(IDLE, uuid=f"GPU-{number}", busy_percent=90 * (number == 30)) for number in range(40)]
    findings = judge_gpu_use([rank(0, *many)])
    assert len(findings) == 17 and findings[0].says.startswith("GPU-30 ") and findings[0].level == Level.NOTE
    assert findings[-1] == Finding(Level.OK, "gpu", "24 GPUs more; --json FILE has the figures of all")


def test_names_are_short() -> None:
    assert [short(uuid) for uuid in (IDLE.uuid, "MIG-1c9d-22", "MIG-GPU-8932/7/0")] == [
        "GPU-8932f937",
        "MIG-1c9d",
        "MIG-GPU-8932/7/0",
    ]


def test_ranks_that_see_other_gpus_are_in_another_situation() -> None:
    other = rank(1, replace(IDLE, uuid="GPU-ffffffff"))
    assert rank(0, IDLE).situation == rank(1, IDLE).situation != other.situation


class Torch:
    """Stands for the module, with a device that copies or fails."""

    uint8 = "uint8"

    def __init__(self, fails: bool = False) -> None:
        self.copies: list[tuple[Any, Any]] = []
        self.cuda = SimpleNamespace(device=self._device, synchronize=lambda: None)
        self._fails = fails

    def _device(self, index: int) -> AbstractContextManager[None]:
        assert index == 3
        return nullcontext()

    def empty(self, size: int, dtype: str, **where: Any) -> Any:
        if self._fails and where == {"device": "cuda"}:
            raise RuntimeError("out of memory")
        made = SimpleNamespace(size=size, **where)
        made.copy_ = lambda source, non_blocking: self.copies.append((made, source))
        return made


def test_copies_go_from_pinned_memory_to_the_device() -> None:
    torch = Torch()
    rate = copy_rate(torch, 3)
    assert rate is not None and rate > 0 and len(torch.copies) == 8
    for target, source in torch.copies:
        assert target.device == "cuda" and source.pin_memory and target.size == source.size == 64 << 20
    assert copy_rate(Torch(fails=True), 3) is None


def test_the_file_has_all_figures(tmp_path: Path) -> None:
    assert write_json(tmp_path / "report.json", [], [rank(0, IDLE, rates=(2.5e10,))], {}) is None
    (written,) = json.loads((tmp_path / "report.json").read_text())["ranks"]
    assert written["gpus"][0]["used_bytes"] == IDLE.used_bytes and written["gpus"][0]["busy_percent"] == 0
    assert written["torch"]["copy_rates"] == [2.5e10]
