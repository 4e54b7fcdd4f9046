"""Starting ranks: each launcher has a folder of its own, which is gone when it ends."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from hpcrl.cluster import launch


class Launcher:
    """Takes the place of the process; remembers the folder that it was given, and that it was there."""

    folders: list[str | None]

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        assert "hpcrl" in command
        self._folder = environment.get(launch.SESSION_FOLDER)

    def wait(self) -> int:
        assert self._folder is None or Path(self._folder).is_dir()
        self.folders.append(self._folder)
        return 7


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The folders of the launchers that a test starts."""
    monkeypatch.setattr(launch, "_Ranks", Launcher)
    Launcher.folders = []
    return Launcher.folders


def test_every_launcher_has_a_folder_of_its_own(folders: list[str | None]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != launch.SESSION_FOLDER}
    assert [launch.start_ranks(2, ["train"], environment) for _ in range(2)] == [7, 7]
    one, other = folders
    assert one is not None and other is not None and one != other
    assert not Path(one).exists() and not Path(other).exists()


def test_a_folder_that_the_user_names_is_kept(folders: list[str | None], tmp_path: Path) -> None:
    assert launch.start_ranks(2, ["train"], {**os.environ, launch.SESSION_FOLDER: str(tmp_path)}) == 7
    assert folders == [str(tmp_path)] and tmp_path.is_dir()
