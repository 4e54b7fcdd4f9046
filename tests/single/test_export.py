"""Exported weights are those of the checkpoint, bit for bit, and the file tells what they are."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from hpcrl.commands.export import export
from hpcrl.config import A2CConfig, to_json
from hpcrl.errors import CheckpointError, ConfigError
from hpcrl.storage.checkpoints import CheckpointStore

CONFIG = A2CConfig(env="GridNavigation-v0")


def weights(number: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(number)
    matrix = rng.standard_normal((5, 7)).astype(np.float32)
    # Numbers that a detour through text or another precision would change.
    matrix[0, :4] = [np.nan, -np.inf, -0.0, np.float32(1e-42)]
    # As a view, whose rows do not lie one after the other.
    return {"body.0.weight": matrix.T, "inputs.mean": rng.random(3, np.float32), "value.bias": np.zeros(0, np.float32)}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run of three checkpoints, of which the second is the best."""
    store = CheckpointStore(tmp_path / "run/checkpoints")
    for number, score in enumerate([1.0, 9.0, 5.0]):
        arrays = {f"weights/{name}": array for name, array in weights(number).items()}
        arrays["optimizer/square_avg/body.0.weight"] = np.ones((7, 5), np.float32)
        attributes = {"config": json.dumps(to_json(CONFIG)), "env_steps": 100 * number, "format_version": 1}
        store.save(f"step_{number}", arrays, attributes, score)
    return tmp_path / "run"


@pytest.mark.parametrize(("options", "number"), [((), 2), (("--best",), 1)])
def test_weights_come_back_bit_for_bit(run_dir: Path, tmp_path: Path, options: tuple[str, ...], number: int) -> None:
    path = tmp_path / "policy.safetensors"
    path.write_bytes(b"an older one")
    assert export([str(run_dir), "--safetensors", str(path), *options]) == 0
    found, expected = load_file(path), weights(number)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
        assert found[name].tobytes() == array.tobytes()
    with safe_open(path, "numpy") as file:
        about = file.metadata()
    assert json.loads(about.pop("config")) == to_json(CONFIG)
    steps = str(100 * number)
    assert about == {"format_version": "1", "env_steps": steps, "algorithm": "a2c", "env": "GridNavigation-v0"}
    assert {file.name for file in tmp_path.iterdir()} == {"run", "policy.safetensors"}


def test_one_checkpoint_file_is_exported(run_dir: Path, tmp_path: Path) -> None:
    export([str(run_dir / "checkpoints/step_1.h5"), "--safetensors", str(tmp_path / "x")])
    assert load_file(tmp_path / "x")["inputs.mean"].tobytes() == weights(1)["inputs.mean"].tobytes()


def test_what_can_not_be_exported_is_refused(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="exactly one of: --safetensors"):
        export([str(run_dir)])
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        export([str(tmp_path), "--safetensors", str(tmp_path / "x")])
    with pytest.raises(ConfigError, match=r"nowhere/x can't be written"):
        export([str(run_dir), "--safetensors", str(tmp_path / "nowhere/x")])
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ConfigError, match=r"pip install 'hpcrl\[safetensors\]'"):
        export([str(run_dir), "--safetensors", str(tmp_path / "x")])
    assert {file.name for file in tmp_path.iterdir()} == {"run"}
