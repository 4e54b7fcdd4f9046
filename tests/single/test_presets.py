"""Presets: found by name, for their own algorithm, with a hint for a name that is nearly right."""

from __future__ import annotations

import dataclasses

import pytest

from hpcrl.config import CONFIGS, A2CConfig
from hpcrl.envs.atari import AtariEnvs, is_atari
from hpcrl.envs.factory import find_spec
from hpcrl.errors import ConfigError
from hpcrl.presets import PRESETS, find_preset, preset
from hpcrl.presets.preset import Preset

EVERY = pytest.mark.parametrize("one", PRESETS.values(), ids=lambda one: f"{one.algorithm}-{one.name}")


@pytest.mark.filterwarnings("ignore:.*out of date")
@EVERY
def test_presets_are_of_known_algorithms_and_environments(one: Preset) -> None:
    config = one.make()
    assert type(config) is CONFIGS[config.algorithm] and one.algorithm == config.algorithm
    assert preset(one.name, one.algorithm) == config and find_preset(one.name, one.algorithm) is one
    if is_atari(config.env):
        assert AtariEnvs.__doc__ and config.frame_stack == 4 and config.reward_clip == 1
    else:
        assert find_spec(config.env).id == config.env


@EVERY
def test_presets_leave_the_run_and_its_layout_to_the_user(one: Preset) -> None:
    config, default = one.make(), A2CConfig()
    left = ("seed", "run_dir", "resume", "ranks", "learners", "placement", "learner_cores")
    assert {field: getattr(config, field) for field in left} == {field: getattr(default, field) for field in left}
    assert one.description.endswith(".") or one.description[-1].isalnum()


def test_a_name_that_is_nearly_right_gets_a_hint() -> None:
    with pytest.raises(ConfigError, match=r"'first-ligth' \(did you mean first-light\?\).*grid-navigation"):
        preset("first-ligth", "a2c")
    with pytest.raises(ConfigError, match=r"^unknown preset 'zzz', expected one of: first-light, grid-navigation"):
        preset("zzz", "a2c")


def test_a_preset_of_another_algorithm_is_refused() -> None:
    with pytest.raises(ConfigError, match="first-light is for a2c, not for ppo"):
        preset("first-light", "ppo")


def test_presets_are_made_afresh_and_frozen() -> None:
    first = preset("first-light", "a2c")
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.seed = 9  # type: ignore[misc]
