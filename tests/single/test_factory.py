"""What is found out of an environment before a run: also where its first episodes break."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcrl.envs.factory import describe_task
from hpcrl.envs.world import World
from hpcrl.errors import ConfigError, EnvironmentFailure
from tests.environments import Breaking

HERE = "tests.single.test_factory"


class Late(Breaking):
    """Its first resets break."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        self._break_at_first(seed)
        return super().reset(seed=seed, options=options)[0], {"action_mask": np.ones(2, np.int8)}

    def _break_at_first(self, seed: int | None) -> None:
        if seed == 0:
            raise KeyError("no licence")
        if seed == 1:
            time.sleep(10_000)


@pytest.mark.parametrize("isolated", [False, True])
def test_first_episodes_that_break_are_begun_anew(isolated: bool) -> None:
    with pytest.warns(RuntimeWarning) as warnings:
        task = describe_task(World(f"{HERE}:Late", isolated=isolated, restarts=2, timeout_s=0.2))
    assert task.info_mask_size == 2 and task.has_action_mask
    assert ["no licence" in str(warning.message) for warning in warnings] == [True, False]
    assert "no answer" in str(warnings[1].message)


def test_one_too_many_is_told_with_its_traceback() -> None:
    with (
        pytest.warns(RuntimeWarning, match="no licence"),
        pytest.raises(EnvironmentFailure, match=r"--env-restarts 1 allows(.|\n)*in _break_at_first\n"),
    ):
        describe_task(World(f"{HERE}:Late", restarts=1, timeout_s=0.2))


@pytest.mark.parametrize("where", ["__init__", "reset"])
def test_what_takes_too_long_is_told_without_a_limit_of_its_own(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Breaking, where, lambda *_, **__: time.sleep(10_000))
    with pytest.raises(EnvironmentFailure, match=r"not made and reset in time:(.|\n)*no answer within 0\.2 s"):
        describe_task(World("tests.environments:Breaking"), 0.2)


def test_what_may_not_break_raises_its_own_error() -> None:
    with pytest.raises(KeyError, match="no licence"):
        describe_task(World(f"{HERE}:Late"))


def test_a_package_may_name_its_environments_by_entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "plugged-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged\nVersion: 1.0\n")
    points = "[hpcrl.environments]\nmy-env = plugged:make\nmy-gone-env = plugged:nowhere\n"
    (package / "entry_points.txt").write_text(points)
    (tmp_path / "plugged.py").write_text("import gymnasium\ndef make():\n    return gymnasium.make('Pendulum-v1')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert describe_task(World("my-env")).observation.shape == (3,)
    assert describe_task(World("my-env", isolated=True)).action.shape == (1,)
    with pytest.raises(ConfigError, match=r"--env .my-gone-env. can.t be imported: .*nowhere"):
        describe_task(World("my-gone-env"))
    with pytest.raises(ConfigError, match="--env 'my-other-env' is not a registered Gymnasium environment"):
        describe_task(World("my-other-env"))
