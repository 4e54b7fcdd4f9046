"""The check of a GPU, rehearsed on the CPU: what it finds, skips and says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import tests.no_mpi  # noqa: F401

# isort: split
import pytest
import torch

from benchmarks import gpu_check
from benchmarks.children import CommandFailed
from benchmarks.gpu import answers, maths, updates
from benchmarks.gpu.findings import Finding, Skip, at_least, at_most, markdown
from benchmarks.gpu_check import carry_out, main
from hpcrl.devices.accelerator import HostAccelerator


def test_limits() -> None:
    assert at_most("s", "w", 1.0, 1.0).holds and not at_most("s", "w", 1.1, 1.0).holds
    assert at_least("s", "w", 1.0, 1.0).holds and not at_least("s", "w", 0.9, 1.0).holds
    assert not at_most("s", "w", float("nan"), 1.0).holds and not at_least("s", "w", float("nan"), 1.0).holds


def test_the_table_by_hand() -> None:
    table = markdown([at_most("maths", "loss", 0.25, 0.1), Finding("speed", "skipped", None, note="no | game")])
    assert "| maths | loss | 0.25 |  | <= 0.1 | MISSED |  |" in table
    assert "| speed | skipped |  |  |  |  | no / game |" in table


@pytest.mark.parametrize(
    ("error", "what", "holds"),
    [
        (Skip("no game"), "skipped", None),
        (ImportError("no game"), "skipped", None),
        (RuntimeError("no game"), "failed", False),
        (CommandFailed("no game"), "failed", False),
    ],
)
def test_a_section_that_can_not_be_run_says_why(error: Exception, what: str, holds: bool | None) -> None:
    def section() -> Iterator[Finding]:
        yield Finding("s", "first", 1.0)
        raise error

    first, last, time = carry_out("s", section)
    assert first.value == 1 and (last.what, last.holds, last.note) == (what, holds, "no game")
    assert time.what == "time for it" and time.value is not None


def test_what_the_cpu_computes_in_the_place_of_a_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The deep network takes as long as all others.
    monkeypatch.setattr(maths, "_CASES", {name: case for name, case in maths._CASES.items() if "deep" not in name})
    out = tmp_path / "found.json"
    assert main(["--device", "cpu", "--quick", "--only", "maths", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["machine"]["quick"] and "CPU in the place" in found["machine"]["device"]
    limits = [finding for finding in found["findings"] if finding["wanted"]]
    assert len(limits) == 2 * (len(maths._CASES) + 2) and all(finding["holds"] for finding in limits)
    assert "impala, Nature CNN, bfloat16: gradient" in capsys.readouterr().out


def test_a_network_that_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcrl.models.inputs._NORMALISED_CLIP", 10.0)
    whole = maths._config

    def other(options: dict[str, object]) -> object:
        monkeypatch.setattr("hpcrl.models.inputs._NORMALISED_CLIP", 10.0 if other.calls % 2 == 0 else 0.1)  # type: ignore[attr-defined]
        other.calls += 1  # type: ignore[attr-defined]
        return whole(options)

    other.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(maths, "_config", other)
    monkeypatch.setattr(maths, "_CASES", {"a2c": maths._CASES["a2c, 2 x 64"]})
    assert not any(finding.holds for finding in maths.check(HostAccelerator()))


def test_rates() -> None:
    found = list(updates._measure(HostAccelerator(), 2, "float32", 0.01, 1))
    assert [finding.unit for finding in found] == ["agent steps/s", "agent steps/s", ""]
    assert all(finding.value is not None and finding.value > 0 for finding in found)
    latency, rate = answers.measure(HostAccelerator(), 4, "float32", 0.01)
    assert latency.value is not None and rate.value == pytest.approx(4e6 / latency.value)


def test_what_can_not_be_checked_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--device", "cpu", "--only", "maths", "nonsense"]) == 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--device", "cuda"]) == 2
    unknown, no_gpu = capsys.readouterr().err.splitlines()
    assert "nonsense" in unknown and "--device cpu rehearses" in no_gpu


def test_what_is_missed_is_the_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, status in ((0.5, 0), (2.0, 1)):
        sections = {"one": lambda value=value: iter([at_most("one", "number", value, 1.0)])}
        monkeypatch.setattr(gpu_check, "_sections", lambda *_, sections=sections: sections)
        assert main(["--device", "cpu"]) == status
