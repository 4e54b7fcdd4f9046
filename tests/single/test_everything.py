"""`make bench`: parts, what they leave, and what becomes of those that fail or come too late; commands are stubs."""

from __future__ import annotations

import importlib.util
import json
import signal
import sys
import time
from pathlib import Path

import pytest

from benchmarks.everything import Part, main, measure, parts
from benchmarks.steps import Stop


def _python(program: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", program)


def _part(name: str, *programs: str, minutes: float = 1.0) -> Part:
    return Part(name, name.capitalize(), minutes, tuple(map(_python, programs)), (f"{name}.png",))


SUMS = _part("sums", "print('{\"rate\": 3}'); print('| a table |')", "print('and a note')")


def _measure(out: Path, *chosen: Part, seconds: float = 60.0) -> int:
    return measure(chosen, out, time.monotonic() + seconds, Stop())


def test_parts_leave_tables_lines_and_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sums.png").touch()
    assert _measure(tmp_path, SUMS, _part("peers", "print('who is faster')")) == 0
    assert (tmp_path / "sums.md").read_text() == "| a table |\nand a note\n"
    assert json.loads((tmp_path / "sums.jsonl").read_text()) == {"rate": 3}
    assert not (tmp_path / "peers.jsonl").exists()
    text = (tmp_path / "README.md").read_text()
    assert "## Sums\n\n| a table |\nand a note\n\n![Sums](sums.png)\n\n## Peers\n\nwho is faster\n" in text
    assert text in capsys.readouterr().out


def test_a_part_that_fails_says_so_and_the_others_are_measured(tmp_path: Path) -> None:
    assert _measure(tmp_path, _part("paths", "raise SystemExit('no such path')"), SUMS) == 1
    text = (tmp_path / "README.md").read_text()
    assert "## Paths\n\nNot measured: " in text and "no such path" in text and "| a table |" in text


def test_nothing_begins_after_the_end(tmp_path: Path) -> None:
    assert _measure(tmp_path, SUMS, seconds=0.0) == 1
    assert "Not measured: there was no time left" in (tmp_path / "README.md").read_text()
    slow = _part("slow", "import time; time.sleep(60)", minutes=0.01)
    assert _measure(tmp_path, slow, SUMS) == 1
    assert "not over within" in (tmp_path / "slow.md").read_text() and "a table" in (tmp_path / "sums.md").read_text()


def test_a_signal_stops_it_after_what_was_measured(tmp_path: Path) -> None:
    stop = Stop()
    stop.install()
    asking = _part("asking", "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)")
    assert measure([SUMS, asking, _part("never", "print(1)")], tmp_path, time.monotonic() + 60, stop) == 143
    assert "a table" in (tmp_path / "README.md").read_text() and not (tmp_path / "never.md").exists()
    assert stop.signal == signal.SIGTERM


def test_every_part_is_a_program_and_the_peers_come_last(tmp_path: Path) -> None:
    found = parts(tmp_path, ("/peer/python",))
    assert sum(part.minutes for part in found) <= 40 and found[-1].name == "peers"
    assert "/peer/python" in found[-1].commands[0]
    modules = {command[2] for part in found for command in part.commands}
    assert all(importlib.util.find_spec(module) for module in modules) and "hpcrl" in modules


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["--out", str(tmp_path), "--only", "nonsense"])
    assert leaving.value.code == 2
