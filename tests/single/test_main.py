"""The console script: what ends a command from outside is one line and a status, and warnings are for people."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcrl.commands import main as console
from hpcrl.commands.main import main
from hpcrl.errors import ConfigError


@pytest.fixture(autouse=True)
def formatting() -> Iterator[None]:
    """Warnings look afterwards as they did before."""
    before, path = warnings.formatwarning, list(sys.path)
    yield
    warnings.formatwarning, sys.path[:] = before, path


def test_an_interrupt_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_arguments: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("hpcrl.commands.presets.list_presets", interrupted)
    assert main(["presets"]) == 130
    assert capsys.readouterr() == ("", "hpcrl: interrupted\n")


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["train", "a2c", "--print-config"]])
def test_who_has_read_enough_is_no_trouble(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as out, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", out)
        assert main(words) == 1


def test_a_run_whose_words_nobody_hears_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def unheard(*_: object) -> int:
        raise BrokenPipeError

    monkeypatch.setattr("hpcrl.commands.train.train", unheard)
    with pytest.raises(BrokenPipeError):
        main(["train", "a2c"])


def test_a_warning_of_ours_is_one_line() -> None:
    def shown(category: type[Warning], filename: str) -> str:
        return console._format_warning("TWO\nlines", category, filename, 3, "the_source()")

    ours = str(Path(console.__file__).parents[1] / "storage/checkpoints.py")
    assert shown(RuntimeWarning, ours) == "hpcrl: warning: TWO lines\n"
    for category, filename in ((DeprecationWarning, ours), (RuntimeWarning, "/elsewhere/theirs.py")):
        assert f"{filename}:3: {category.__name__}: TWO\nlines" in shown(category, filename)
    main(["--version"])
    assert warnings.formatwarning is console._format_warning


def test_a_module_of_the_users_that_is_not_found(capsys: pytest.CaptureFixture[str]) -> None:
    from hpcrl.envs.factory import describe_task
    from hpcrl.envs.world import World

    for env_id, hint in (("nowhere_at_all:mine", " (modules are looked for"), ("hpcrl.errors:mine", "")):
        with pytest.raises(ConfigError) as refused:
            describe_task(World(env_id))
        assert ("modules are looked for in the current folder and on PYTHONPATH)" in str(refused.value)) == bool(hint)


def test_ranks_are_not_started_for_a_folder_that_holds_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hpcrl.commands.train.inside_mpi", lambda environment: False)
    monkeypatch.setattr("hpcrl.commands.train.start_ranks", lambda *_: pytest.fail("started"))
    (tmp_path / "config.json").write_text("{}")
    assert main(["train", "a2c", "--ranks", "2", "--run-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"hpcrl: Run directory {tmp_path} holds a run: give --resume, or another --run-dir.\n"
    )
