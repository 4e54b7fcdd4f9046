"""Imports point only downwards, MPI and HDF5 each stay in one folder, and `import hpcrl` starts nothing."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from hpcrl import A2CConfig, load_policy
from tests.trained import save_untrained

PACKAGE = Path(__file__).parents[2] / "hpcrl"

GROUND = frozenset(
    {"__init__", "errors", "config", "presets", "spaces", "unroll", "noise"}
    | {"spans", "activity", "signals", "metrics", "provenance", "words"}
)
#: The Python API, which the front door opens when it is asked for.
API = frozenset({"trainer", "trained_policy"})
#: From the ground up; the rooms of one floor may not use each other, but on the ground.
FLOORS = (
    GROUND,
    {"envs", "models", "devices"},
    {"cluster", "slurm", "storage"},
    {"algorithms"},
    {"roles", "doctor", "benching", "planning", "viewing"},
    API,
    {"commands"},
    {"__main__"},
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

#: Rooms above the ground that these may use: they are pure maths.
ONLY = {"models": {"models"}, "algorithms": {"algorithms", "models"}}
ONLY_THIRD_PARTY = {"models": {"torch"}, "algorithms": {"torch"}}
HOME_OF = {"mpi4py": "cluster", "h5py": "storage"}

#: (file, module) that may look upwards: the package's own front door.
ALLOWED = {("__init__", "envs.registration"), *(("__init__", room) for room in API)}


class Import(NamedTuple):
    """An import statement: where it stands, what it names, and whether it runs when the module is loaded."""

    room: str
    file: str
    line: int
    module: str
    at_load: bool


def imports(package: Path) -> Iterator[Import]:
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        for node, at_load in _nodes(ast.parse(path.read_text()), True):
            for module in _modules(node, package, parts):
                yield Import(parts[0], "/".join(parts), node.lineno, module, at_load)


def _nodes(node: ast.AST, at_load: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node, at_load
    lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    lazy = lazy or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    for child in ast.iter_child_nodes(node):
        yield from _nodes(child, at_load and not lazy)


def _modules(node: ast.Import | ast.ImportFrom, package: Path, parts: tuple[str, ...]) -> list[str]:
    """Full names of what a statement imports; of `from x import y`, x.y where that is a module of ours."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        base = ".".join([package.name, *parts[: len(parts) - node.level], *base.split(".")]).rstrip(".")
    inside = base.split(".")
    if inside[0] != package.name:
        return [base]
    folder = package.joinpath(*inside[1:])
    is_module = [(folder / alias.name).is_dir() or (folder / f"{alias.name}.py").exists() for alias in node.names]
    return [f"{base}.{alias.name}" if module else base for alias, module in zip(node.names, is_module, strict=True)]


def violations(package: Path) -> list[str]:
    found = []
    for item in imports(package):
        if reason := _complaint(item, package.name):
            found.append(f"{item.file}.py:{item.line} imports {item.module}: {reason}")
    return found


def _complaint(item: Import, package: str) -> str | None:
    top, *rest = item.module.split(".")
    if top != package:
        return _complaint_of_third_party(item.room, top)
    room = rest[0] if rest else "__init__"
    if unknown := {room, item.room} - set(FLOOR_OF):
        return f"no floor is known for {sorted(unknown)}"
    if (item.file, ".".join(rest)) in ALLOWED:
        return "only when asked for" if item.at_load and room in API else None
    if room in GROUND or room == item.room:
        return None if FLOOR_OF[room] <= FLOOR_OF[item.room] else "runs upwards"
    if FLOOR_OF[room] >= FLOOR_OF[item.room]:
        return "runs upwards or across"
    return None if room in ONLY.get(item.room, FLOOR_OF) else "not for pure maths"


def _complaint_of_third_party(room: str, top: str) -> str | None:
    if top in HOME_OF and room != HOME_OF[top]:
        return f"only {HOME_OF[top]}/ may"
    allowed = ONLY_THIRD_PARTY.get(room)
    if allowed is not None and top not in sys.stdlib_module_names | allowed:
        return f"{room}/ knows only {', '.join(sorted(allowed))}"
    return None


def test_imports_point_only_downwards() -> None:
    assert not violations(PACKAGE)


def test_the_checker_sees_the_package() -> None:
    seen = {(item.room, item.module.split(".")[0]) for item in imports(PACKAGE)}
    assert {("cluster", "mpi4py"), ("storage", "h5py"), ("algorithms", "torch"), ("roles", "hpcrl")} <= seen
    assert {item.room for item in imports(PACKAGE)} >= {"envs", "models", "trainer", "commands", "metrics"}


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("config", "from hpcrl.envs.factory import find_spec"),
        ("envs/factory", "from hpcrl.models import policy"),
        ("models/policy", "import hpcrl.envs.factory"),
        ("models/policy", "import numpy as np"),
        ("algorithms/a2c", "from hpcrl.cluster.waiting import Waiter"),
        ("algorithms/a2c", "from ..roles.actor import Actor"),
        ("cluster/links", "from .. import storage"),
        ("cluster/links", "def late():\n    from hpcrl.roles import actor"),
        ("roles/actor", "from mpi4py import MPI"),
        ("planning/model", "from hpcrl.roles import actor"),
        ("viewing/run", "from hpcrl.roles import actor"),
        ("roles/recorder", "import h5py"),
        ("roles/recorder", "from hpcrl import trainer"),
        ("trainer", "from hpcrl.commands.display import Display"),
        ("__init__", "from hpcrl.trainer import Trainer"),
        ("__init__", "from hpcrl.trained_policy import load_policy"),
        ("trained_policy", "from hpcrl.trainer import Trainer"),
        ("newcomer", "import hpcrl.errors"),
    ],
)
def test_the_checker_finds_a_planted_import(tmp_path: Path, file: str, line: str) -> None:
    package = tmp_path / "hpcrl"
    for name in (
        "envs/factory",
        "models/policy",
        "roles/actor",
        "storage/hdf5",
        "commands/display",
        "trainer",
        file,
    ):
        path = package / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert not violations(package)
    (package / f"{file}.py").write_text(line)
    assert len(violations(package)) == 1


@pytest.mark.parametrize(
    "module", ["hpcrl", "hpcrl.config", "hpcrl.presets", "hpcrl.commands.main", "hpcrl.cluster.launch"]
)
def test_importing_starts_neither_mpi_nor_torch(module: str) -> None:
    script = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(json.loads(done.stdout))
    assert module in loaded
    assert not loaded & {"mpi4py", "mpi4py.MPI", "torch", "h5py"}


def test_a_policy_is_loaded_and_acts_where_there_is_no_mpi(tmp_path: Path) -> None:
    run_dir = save_untrained(tmp_path / "run", A2CConfig(env="CartPole-v1", hidden_sizes=(8,)), 300)
    script = (
        "import sys; sys.modules['mpi4py'] = None; import hpcrl, numpy\n"
        "print(hpcrl.load_policy(sys.argv[1]).act(numpy.ones((3, 4))).tolist())"
    )
    command = [sys.executable, "-c", script, str(run_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == load_policy(run_dir).act(np.ones((3, 4))).tolist()
