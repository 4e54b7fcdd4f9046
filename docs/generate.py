"""Writes docs/reference anew, from what commands say of themselves and from docstrings: `python docs/generate.py`."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import os
import re
import textwrap
import typing
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Literal

import hpcrl
from hpcrl import storage
from hpcrl.algorithms import a2c, appo, batch, bc, impala, loss, ppo, registry, returns
from hpcrl.commands.main import main
from hpcrl.config import CONFIGS, TrainConfig

FOLDER = Path(__file__).with_name("reference")
_NOTICE = "<!-- Written by docs/generate.py: change what it reads, and run it. -->\n"
_WIDTH = "100"
_GROUPS = {
    "environment": "Environment",
    "atari": "Atari",
    "model": "Model",
    "algorithm": "Algorithm",
    "optimizer": "Optimizer",
    "run": "Run",
    "evaluation": "Evaluation",
    "trajectories": "Trajectories",
    "layout": "Layout",
    "run_ahead": "Actors that run ahead",
    "asynchronous": "Asynchronous gradients",
}


def pages() -> dict[Path, str]:
    """The text of every page."""
    return {FOLDER / "cli.md": _command_line(), FOLDER / "api.md": _api()}


# The command line


def _command_line() -> str:
    usage = _printed()
    parts = [
        _NOTICE,
        "# Commands and options\n",
        "What `hpcrl --help` and `--help` after each command print, and the options of `hpcrl train`, which are the "
        "fields of the configurations of the [Python API](api.md#configurations), by the same names with `_` in "
        "place of `-`.\n",
        _block(usage),
        *_training(),
    ]
    for command in re.findall(r"^  ([a-z]+) ", usage.partition("\ncommands:\n")[2].partition("\n\n")[0], re.M):
        if command != "train":
            words = (command,) if command == "presets" else (command, "--help")
            parts += [f"## hpcrl {command}\n", _block(_printed(*words))]
    return "\n".join(parts)


def _printed(*words: str) -> str:
    """What a command line prints, without colours, for a terminal of a fixed width."""
    kept = {name: os.environ.get(name) for name in ("COLUMNS", "NO_COLOR", "TERM")}
    os.environ.update(COLUMNS=_WIDTH, NO_COLOR="1", TERM="dumb")
    out = io.StringIO()
    try:
        with redirect_stdout(out):
            main(words)
    except SystemExit:
        pass
    finally:
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return out.getvalue()


def _block(text: str) -> str:
    lines = "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")
    return f"```text\n{lines}\n```\n"


def _training() -> Iterator[str]:
    """The options of training: those that are the same everywhere, then each algorithm's."""
    tables = {name: _options(cls) for name, cls in CONFIGS.items()}
    common = set.intersection(*(set(rows) for rows in tables.values()))
    yield "## hpcrl train\n"
    yield "    hpcrl train ALGORITHM [--preset NAME] [--config FILE] [--print-config] [options]\n"
    names = ", ".join(f"[{name}](#{name})" for name in tables)
    yield f"Algorithms: {names}.\n"
    yield "Presets are [listed below](#hpcrl-presets); [command-line.md](../command-line.md) has files of options.\n"
    yield "A switch that is on by default is shown as what turns it off.\n"
    first = next(iter(tables.values()))
    yield from _grouped([row for row in first if row in common], "###")
    for name, rows in tables.items():
        yield f"### {name}\n"
        yield f"{_first_line(CONFIGS[name])}\n"
        own = [row for row in rows if row not in common]
        yield from _grouped(own, None) if own else ["No options beside those of all.\n"]


class _Option(typing.NamedTuple):
    group: str
    flag: str
    values: str
    default: str
    help: str


def _options(cls: type[TrainConfig]) -> list[_Option]:
    kinds = typing.get_type_hints(cls)
    return [_option(field, kinds[field.name]) for field in dataclasses.fields(cls)]


def _option(field: dataclasses.Field, kind: Any) -> _Option:
    name, default = field.name.replace("_", "-"), field.default
    flag, values = f"--{name}", _values(kind)
    if kind is bool:
        flag, default = f"--no-{name}" if default else flag, "on" if default else "off"
    elif isinstance(default, tuple):
        default = " ".join(map(str, default))
    return _Option(
        field.metadata["group"], flag, values, "" if default is None else str(default), field.metadata["help"]
    )


def _values(kind: Any) -> str:
    """What a field takes, in a word."""
    if typing.get_origin(kind) is Literal:
        return " or ".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) is tuple:
        return "numbers"
    words = {bool: "", int: "whole number", float: "number", str: "text", Path: "path"}
    kinds = [each for each in typing.get_args(kind) or (kind,) if each is not type(None)]
    return " or ".join(words[each] if each in words else _values(each) for each in kinds)


def _grouped(rows: Sequence[_Option], heading: str | None) -> Iterator[str]:
    """A table for each group, under a heading of its own, or one for all."""
    if heading is None:
        yield _table(rows)
        return
    for group, title in _GROUPS.items():
        if inside := [row for row in rows if row.group == group]:
            yield f"{heading} {title}\n"
            yield _table(inside)


def _table(rows: Iterable[_Option]) -> str:
    lines = ["| option | takes | default | |", "| --- | --- | --- | --- |"]
    for row in rows:
        default = f"`{row.default}`" if row.default else ""
        lines.append(f"| `{row.flag}` | {row.values} | {default} | {_plain(row.help)} |".replace("|  |", "| |"))
    return "\n".join([*lines, ""])


# The Python API


def _api() -> str:
    classes = [getattr(hpcrl, name) for name in hpcrl.__all__ if name.endswith("Config")]
    parts = [
        _NOTICE,
        "# Python API\n",
        "`import hpcrl` starts nothing: neither MPI nor torch is loaded before a trainer is made, or a policy loaded. "
        "What is not on this page may change without a word in the changelog.\n",
        "## Training\n",
        *_class(hpcrl.Trainer, "hpcrl.Trainer"),
        "## Trained policies\n",
        *_function(hpcrl.load_policy, "hpcrl.load_policy"),
        *_class(hpcrl.TrainedPolicy, "hpcrl.TrainedPolicy"),
        "## Configurations\n",
        "Frozen dataclasses, checked when they are made, all of whose fields have defaults. The "
        "[options of the command line](cli.md#hpcrl-train) are their fields: `--num-envs 8` is `num_envs=8`.\n",
        "| class | |\n| --- | --- |",
        *(f"| `hpcrl.{cls.__name__}` | {_plain(_first_line(cls))} |" for cls in classes),
        "",
        "## Recorded trajectories\n",
        *_class(storage.TrajectoryDataset, "hpcrl.storage.TrajectoryDataset"),
        "## Losses\n",
        "What a loss of your own is made of ([own-algorithm.md](../own-algorithm.md)).\n",
        *_class(registry.LossFunction, "hpcrl.algorithms.registry.LossFunction", inside=("__call__",)),
        *_functions(registry.loss_of, batch.evaluate, loss.predict, loss.make_targets, loss.total_loss, loss.dot),
        *_functions(returns.generalised_advantages, returns.vtrace, returns.importance_ratios),
        *_functions(a2c.a2c_loss, ppo.ppo_loss, impala.impala_loss, appo.appo_loss, bc.bc_loss),
        *(
            line
            for cls in (batch.Batch, batch.Outputs, loss.Prediction, loss.Targets, loss.Loss, returns.VTrace)
            for line in _class(cls, f"{cls.__module__}.{cls.__name__}", inside=())
        ),
        "## Errors\n",
        *_class(hpcrl.HpcrlError, "hpcrl.HpcrlError", inside=()),
    ]
    return "\n".join(parts)


def _functions(*functions: Any) -> Iterator[str]:
    for function in functions:
        yield from _function(function, f"{function.__module__}.{function.__name__}")


def _function(function: Any, name: str, level: str = "###") -> Iterator[str]:
    yield f"{level} `{name}`\n"
    yield _python(f"{_header(function, name.rpartition('.')[2])}")
    yield _markdown(_doc(function))


def _class(cls: type, name: str, inside: Sequence[str] | None = None) -> Iterator[str]:
    """A class with its public methods and properties, or those named."""
    yield f"### `{name}`\n"
    if inspect.isfunction(cls.__dict__.get("__init__")) and not dataclasses.is_dataclass(cls) and inside is None:
        yield _python(_header(cls.__init__, cls.__name__))  # type: ignore[misc]
    yield _markdown(_doc(cls))
    names = [each for each in cls.__dict__ if not each.startswith("_")] if inside is None else inside
    for each in names:
        member = inspect.getattr_static(cls, each)
        if isinstance(member, property):
            yield f"#### `{cls.__name__}.{each}`\n"
            yield _markdown(_doc(member))
        elif callable(function := getattr(member, "__func__", member)):
            yield from _function(function, f"{cls.__name__}.{each}", "####")


def _header(function: Any, name: str) -> str:
    """A function's signature as its source has it, without `self`."""
    node = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body[0]
    assert isinstance(node, ast.FunctionDef)
    node.args.args = [each for each in node.args.args if each.arg not in ("self", "cls")]
    returned = "" if node.returns is None or name[:1].isupper() else f" -> {ast.unparse(node.returns)}"
    line = f"{name}({ast.unparse(node.args)}){returned}"
    if len(line) <= int(_WIDTH):
        return line
    # A comma between arguments is one outside all brackets.
    inner = re.sub(r", (?=\*?\*?\w+[:=]|\*,)", ",\n    ", ast.unparse(node.args))
    return f"{name}(\n    {inner},\n){returned}"


def _python(text: str) -> str:
    return f"```python\n{text}\n```\n"


def _doc(of: Any) -> str:
    """The docstring of an object's own."""
    return inspect.cleandoc(of.__doc__ or "")


def _first_line(cls: type) -> str:
    return _doc(cls).partition("\n\n")[0].replace("\n", " ")


def _markdown(text: str) -> str:
    """A Google-style docstring, its sections as lists."""
    out: list[str] = []
    for paragraph in re.split(r"\n\n(?! )", text):
        head, _, rest = paragraph.partition("\n")
        if re.fullmatch(r"(Args|Attributes|Returns|Raises):", head):
            out += [f"{head[:-1]}:", _section(textwrap.dedent(rest), head != "Returns:")]
        else:
            out.append("\n".join(line if line.startswith("    ") else _plain(line) for line in paragraph.splitlines()))
    return "\n\n".join(out) + "\n"


def _section(text: str, is_list: bool) -> str:
    """Entries, each of which begins at the margin and goes on indented."""
    if not is_list:
        return f"- {_plain(' '.join(text.split()))}"
    entries = [" ".join(entry.split()) for entry in re.split(r"\n(?! )", text)]
    named = (re.match(r"([\w, ]+): (.*)", entry) for entry in entries)
    return "\n".join(
        f"- `{found[1]}`: {_plain(found[2])}" if found else f"- {_plain(entry)}"
        for found, entry in zip(named, entries, strict=True)
    )


def _plain(text: str) -> str:
    """Text in which asterisks and the like are themselves, outside of code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*|<])", r"\\\1", part) for part in parts)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for path, text in pages().items():
        path.write_text(text)
        print(path)
