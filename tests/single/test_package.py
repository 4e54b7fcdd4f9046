"""What an installed hpcrl needs beside its modules is named in setup.py."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_file_of_the_package_that_is_no_module_is_installed() -> None:
    calls = [node for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())) if isinstance(node, ast.keyword)]
    patterns = next(ast.literal_eval(node.value) for node in calls if node.arg == "package_data")["hpcrl"]
    installed = {path for pattern in patterns for path in (ROOT / "hpcrl").glob(pattern)}
    there = {path for path in (ROOT / "hpcrl").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert there == installed
