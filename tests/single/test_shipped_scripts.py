"""The scripts in slurm/ and those of `hpcrl submit` are what the code makes, word for word, and are valid shell.

python -m tests.single.test_shipped_scripts      writes all of them anew; then read the difference
"""

from __future__ import annotations

import contextlib
import io
import shlex
import subprocess
import tempfile
from pathlib import Path

import pytest

from hpcrl.commands.submit import submit
from hpcrl.slurm import shipped

_REPOSITORY = Path(__file__).parents[2]
_SHIPPED = _REPOSITORY / "slurm"
_EXPECTED = _REPOSITORY / "tests/data/slurm"
_RENEW = "if that is meant: python -m tests.single.test_shipped_scripts"
_HOME = "/home/me"
_LINES = {
    "cpu": "a2c --env CartPole-v1 --nodes 2 --ntasks-per-node 4 --partition cpu --time 12:00:00 "
    "--sbatch=--account=physics --sbatch=--qos=long --run-dir runs/cpu --environment environment",
    "gpu": "impala --num-envs 64 --learner-cores 4 --nodes 2 --gpus-per-node 2 --ntasks-per-node=10 --partition=gpu "
    "--run-dir=runs/gpu --environment=environment --warning 300 --max-restarts 7",
    "het": "a2c --preset first-light --het --nodes 2 --gpus-per-node 2 --partition gpu --learner-cores 2 "
    "--actor-nodes 4 --actor-ntasks-per-node 8 --actor-partition cpu --run-dir runs/het --environment environment",
    "chain": "appo --seed 3 --chain 3 --nodes 1 --ntasks-per-node 8 --exclusive --run-dir runs/chain --resume "
    "--job-name mine --mpi pmix_v4 --environment environment",
    "stage": "a3c --env 'my env' --nodes 2 --ntasks-per-node 4 --stage-env 'my environment.tar.gz' "
    "--run-dir 'my runs/50%'",
}


def _submit(line: str, folder: Path) -> str:
    """What `hpcrl submit LINE --dry-run` prints in a home directory of that path."""
    (folder / "environment").mkdir(exist_ok=True)
    (folder / "my environment.tar.gz").touch()
    out = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out):
        assert submit([*shlex.split(line), "--dry-run"]) == 0
    return out.getvalue().replace(str(folder), _HOME)


def _name(script: Path) -> str:
    return script.stem


@pytest.mark.parametrize("name", _LINES)
def test_scripts_of_submit_are_as_expected(name: str, tmp_path: Path) -> None:
    made = _submit(_LINES[name], tmp_path.resolve())
    assert made == (_EXPECTED / f"{name}.sbatch").read_text(), _RENEW


def test_shipped_scripts_are_as_the_code_makes_them() -> None:
    assert {path.name: path.read_text() for path in _SHIPPED.glob("*.sbatch")} == shipped.shipped_scripts(), _RENEW


@pytest.mark.parametrize("script", [*_SHIPPED.glob("*.sbatch"), *_EXPECTED.glob("*.sbatch")], ids=_name)
def test_scripts_are_valid_shell(script: Path) -> None:
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", shipped.shipped_scripts())
def test_options_of_sbatch_stand_before_all_commands(name: str) -> None:
    """Those after the first command would not count."""
    lines = shipped.shipped_scripts()[name].splitlines()
    assert lines[0] == "#!/bin/bash"
    options = [place for place, line in enumerate(lines) if line.startswith("#SBATCH")]
    commands = [place for place, line in enumerate(lines) if line and not line.startswith("#")]
    assert options and max(options) < min(commands)


def _renew() -> None:
    shipped.main(_SHIPPED)
    for name, line in _LINES.items():
        with tempfile.TemporaryDirectory() as folder:
            (_EXPECTED / f"{name}.sbatch").write_text(_submit(line, Path(folder).resolve()))


if __name__ == "__main__":
    _renew()
