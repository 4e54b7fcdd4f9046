"""Presets: found by name, for their own algorithm, with a hint for a name that is nearly right."""

from __future__ import annotations

import dataclasses

import pytest

from hpcrl.config import CONFIGS, A2CConfig
from hpcrl.envs.factory import find_spec
from hpcrl.errors import ConfigError
from hpcrl.presets import PRESETS, preset


@pytest.mark.filterwarnings("ignore:.*out of date")
@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_of_known_algorithms_and_environments(name: str) -> None:
    config = PRESETS[name]()
    assert type(config) is CONFIGS[config.algorithm]
    assert preset(name, config.algorithm) == config
    assert find_spec(config.env).id == config.env


@pytest.mark.parametrize("name", PRESETS)
def test_presets_leave_the_run_and_its_layout_to_the_user(name: str) -> None:
    config, default = PRESETS[name](), A2CConfig()
    left = ("seed", "run_dir", "resume", "ranks", "learners", "placement", "learner_cores")
    assert {field: getattr(config, field) for field in left} == {field: getattr(default, field) for field in left}
    assert PRESETS[name].__doc__


def test_a_name_that_is_nearly_right_gets_a_hint() -> None:
    with pytest.raises(ConfigError, match=r"'first-ligth' \(did you mean first-light\?\).*grid-navigation"):
        preset("first-ligth", "a2c")
    with pytest.raises(ConfigError, match=r"^unknown preset 'zzz', expected one of: first-light, grid-navigation"):
        preset("zzz", "a2c")


def test_a_preset_of_another_algorithm_is_refused() -> None:
    with pytest.raises(ConfigError, match="first-light is for a2c, not for ppo"):
        preset("first-light", "ppo")


def test_presets_are_made_afresh_and_frozen() -> None:
    first = PRESETS["first-light"]()
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.seed = 9  # type: ignore[misc]
