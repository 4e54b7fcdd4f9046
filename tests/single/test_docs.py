"""What pages name is there: links, anchors, commands with their options, modules, targets; so is the reference."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import runpy
import shlex
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tyro

from hpcrl.commands import doctor, plan, submit
from hpcrl.commands.eval import EvalOptions
from hpcrl.commands.export import ExportOptions
from hpcrl.commands.inspect import InspectOptions
from hpcrl.commands.options import join_values, parse, take_value
from hpcrl.commands.plot import PlotOptions
from hpcrl.commands.report import ReportOptions
from hpcrl.commands.runs import RunsOptions
from hpcrl.commands.status import StatusOptions
from hpcrl.commands.watch import WatchOptions
from hpcrl.config import TrainConfig, config_class
from hpcrl.errors import HpcrlError
from hpcrl.presets import preset

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = [*PAGES, *sorted((ROOT / "examples").glob("*.py"))]

_OPTIONS = {
    "eval": EvalOptions,
    "export": ExportOptions,
    "inspect": InspectOptions,
    "plot": PlotOptions,
    "report": ReportOptions,
    "runs": RunsOptions,
    "status": StatusOptions,
    "watch": WatchOptions,
}
_WITH_TRAINING: dict[str, tuple[type, ...]] = {
    "train": (),
    "submit": (submit.SubmitOptions,),
    "plan": (plan.PlanOptions,),
    "bench": (),
}
#: Words that stand for what a reader puts there, and what may.
_PLACEHOLDERS = {
    "ALGORITHM": "a2c",
    "ENV": "CartPole-v1",
    "YOURS": "CartPole-v1",
    "N": "4",
    "SHELL": "bash",
    "RUN_DIR...": "runs/a runs/b",
}
_LAUNCHERS = ("srun", "mpirun", "mpiexec", "apptainer", "for")


class Line(NamedTuple):
    """A command line: the page and the number of the line where it begins, and its words."""

    where: str
    words: list[str]


def _blocks(path: Path) -> Iterator[tuple[int, str]]:
    """Numbers and texts of the lines in code blocks, without indentation; what a fence calls `text` is output."""
    fence: str | None = None
    before = ""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if match := re.match(r"\s*```(\w*)", line):
            fence = match[1] if fence is None else None
        elif fence is not None and fence not in ("text", "python"):
            yield number, line
        elif fence is None and (path.suffix == ".py" or (line.startswith("    ") and _may_be_code(before))):
            yield number, line.strip()
        before = line


def _may_be_code(before: str) -> bool:
    """Whether an indented line that follows this one is code, and not a paragraph that goes on."""
    return not before.strip() or before.startswith("    ")


def _commands(path: Path) -> Iterator[Line]:
    """The commands in the code blocks of a page, and those of make and Python in running text."""
    continued = ""
    begins = 0
    for number, text in _blocks(path):
        begins = begins if continued else number
        text, continued = continued + text, ""
        if text.endswith("\\"):
            continued = text[:-1]
            continue
        yield from _split(f"{path.relative_to(ROOT)}:{begins}", text)
    if path.suffix == ".md":
        for number, text in _prose(path):
            for code in re.findall(r"`((?:make|python3?) [^`]+)`", text):
                yield from _split(f"{path.relative_to(ROOT)}:{number}", code)


def _prose(path: Path) -> Iterator[tuple[int, str]]:
    is_code = False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        is_code ^= line.lstrip().startswith("```")
        if not is_code and not line.startswith("    "):
            yield number, line


def _split(where: str, text: str) -> Iterator[Line]:
    if not re.match(r"(\S*/)?(hpcrl|make|python3?)\s|(" + "|".join(_LAUNCHERS) + r")\s", text):
        return
    # What follows two spaces is said beside the command; what stands in brackets may be left out.
    text = re.split(r"\s#|  +(?=[A-Za-z\"'(])", text)[0]
    text = re.sub(r" \[[^\]]*\]", "", text)
    for part in re.split(r"&&|;|\||&", re.sub(r"[<>]+ ?\S+", "", text)):
        try:
            words = shlex.split(part)
        except ValueError as error:
            raise AssertionError(f"{where}: {text}: {error}") from None
        places = [place for place, word in enumerate(words) if re.fullmatch(r"(.*/)?(hpcrl|make|python3?)", word)]
        if not places or (places[0] and words[0] not in (*_LAUNCHERS, "do")):
            continue
        words = words[places[0] :]
        words[0] = words[0].rpartition("/")[2]
        yield Line(where, words)


def _filled(words: Sequence[str]) -> list[str]:
    """The words of a command line, with values in place of what stands for them."""
    return [each for word in words for each in _PLACEHOLDERS.get(word, re.sub(r"^\$\w+$", "1", word)).split()]


def _understand(command: str, words: Sequence[str]) -> TrainConfig | None:
    """Read a command line by the fields of its options; the configuration where it has one. AssertionError if it can't.

    That is what the commands do by tyro, which takes a tenth of a second each time; see the test below.
    """
    if command in ("presets", "--help", "--version") or {"--help", "-h"} & set(words):
        return None
    if command == "completion":
        assert words and words[0] in ("bash", "zsh", "fish"), "no such shell"
        return None
    if command == "doctor":
        doctor._parser().parse_args(words)
        return None
    if command in _OPTIONS:
        _values(_OPTIONS[command], words)
        return None
    assert command in _WITH_TRAINING, f"no command {command}"
    if command == "bench" and (not words or words[0].startswith("-")):
        words = ["a2c", *words]
    algorithm, *words = words
    for option in ("--config", "--seconds", "--repeats") if command == "bench" else ("--config",):
        _, words = take_value(words, option)
    name, words = take_value(words, "--preset")
    base = config_class(algorithm)() if name is None else preset(name, algorithm)
    own = _WITH_TRAINING[command]
    words = [word for word in join_values(words, "--env") if word != "--print-config"]
    values = _values((type(base), *own), words)
    names = {field.name for field in dataclasses.fields(base)}
    return dataclasses.replace(base, **{name: value for name, value in values.items() if name in names})


def _values(classes: type | tuple[type, ...], words: Sequence[str]) -> dict[str, Any]:
    """What stands behind each option of some dataclasses, by field name; what belongs to none is left out."""
    kinds: dict[str, Any] = {}
    for cls in classes if isinstance(classes, tuple) else (classes,):
        kinds |= typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    rest = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    while rest:
        flag = {"-o": "--out", "--from": "--from-"}.get(rest[0], rest[0])
        del rest[0]
        if not flag.startswith("-"):
            assert not isinstance(classes, tuple), f"{flag} belongs to no option"
            continue
        name = flag[2:].replace("-", "_")
        if kinds.get(name) is bool or kinds.get(name.removeprefix("no_")) is bool:
            values[name.removeprefix("no_")] = not name.startswith("no_")
            continue
        assert name in kinds, f"no option {flag}"
        many = typing.get_origin(kinds[name]) is tuple and name != "sbatch"
        count = next((place for place, word in enumerate(rest) if word.startswith("--")), len(rest)) if many else 1
        given, rest = rest[:count], rest[count:]
        assert given, f"{flag} needs a value"
        values[name] = tuple(_value(kinds[name], word) for word in given) if many else _value(kinds[name], given[0])
    return values


def _value(kind: Any, word: str) -> Any:
    """A word as the type that an annotation names."""
    if typing.get_origin(kind) is typing.Literal:
        found = [choice for choice in typing.get_args(kind) if choice == word]
        assert found, f"{word} is none of {typing.get_args(kind)}"
        return found[0]
    for choice in [each for each in typing.get_args(kind) or (kind,) if each is not Ellipsis]:
        try:
            return _value(choice, word) if typing.get_args(choice) else choice(word)
        except (AssertionError, TypeError, ValueError):
            continue
    raise AssertionError(f"{word} is no {kind}")


def _lines() -> list[Line]:
    return [
        Line(where, _filled(words[1:]))
        for path in SOURCES
        for where, words in _commands(path)
        if words[0] == "hpcrl" and len(words) > 1
    ]


def test_commands_in_pages_are_understood() -> None:
    lines = _lines()
    wrong = [f"{line.where}: hpcrl {shlex.join(line.words)}: {why}" for line in lines if (why := _trouble(line.words))]
    assert not wrong, "\n".join(wrong)
    assert {line.words[0] for line in lines} >= {*_OPTIONS, *_WITH_TRAINING, "doctor"}


def _trouble(words: Sequence[str]) -> str | None:
    try:
        _understand(words[0], words[1:])
    except (HpcrlError, AssertionError, ValueError) as error:
        return str(error) or type(error).__name__
    return None


_REFUSED = ("train a2c --numb-envs 3", "train a2c --num-envs many", "train a4c", "train a2c CartPole-v1", "paint")
_REFUSED += ("train ppo --preset pang", "train a2c --max-lag 2", "train a2c --core tree", "train a2c --seed")
_REFUSED += ("eval runs/a --episode 3", "submit a2c --node 2", "doctor --all", "train impala --max-lag -1")


@pytest.mark.parametrize("words", _REFUSED)
def test_a_command_that_is_not_understood_is_found(words: str) -> None:
    assert _trouble(words.split())


def test_commands_are_read_here_as_hpcrl_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    longest: dict[str, list[str]] = {}
    for words in sorted((line.words for line in _lines()), key=len):
        if not {"--from-trajectories", "--config", "--print-config", "--help"} & set(words):
            longest[words[1] if words[0] == "train" else words[0]] = words
    assert len(longest) > len(_OPTIONS) + len(_WITH_TRAINING)
    for command, *words in longest.values():
        if command in _OPTIONS:
            tyro.cli(_OPTIONS[command], args=words, config=(tyro.conf.FlagCreatePairsOff,))
        elif command == "train":
            assert parse(words[0], words[1:]) == _understand(command, words)
        elif command == "submit":
            assert parse(words[0], submit._split(words[1:])[1]) == _understand(command, words)
        elif command == "plan":
            assert parse(words[0], plan._split(words[1:])[1]) == _understand(command, words)


def test_modules_and_targets_in_pages_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    wrong, seen = [], set()
    for line in (line for path in SOURCES for line in _commands(path)):
        program, *words = line.words
        if program == "make":
            names = {word for word in words if "=" not in word and word != "TARGET"}
            wrong += [f"{line.where}: make {name}" for name in names - targets]
        elif program.startswith("python") and words[:1] == ["-m"]:
            if words[1].startswith(("hpcrl", "benchmarks", "tests")) and not importlib.util.find_spec(words[1]):
                wrong.append(f"{line.where}: python -m {words[1]}")
        elif program.startswith("python") and words[0].endswith(".py"):
            folders = (ROOT, ROOT / "examples")
            if words[0] != "train.py" and not any((folder / words[0]).exists() for folder in folders):
                wrong.append(f"{line.where}: python {words[0]}")
        seen.add(program)
    assert not wrong, "\n".join(wrong)
    assert seen >= {"make", "python"}


def test_links_lead_to_something() -> None:
    wrong = []
    anchors = {path: _anchors(path) for path in PAGES}
    for path in PAGES:
        for number, text in _prose(path):
            for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", text)):
                if reason := _complaint(path, target, anchors):
                    wrong.append(f"{path.relative_to(ROOT)}:{number}: {target}: {reason}")
    assert not wrong, "\n".join(wrong)


def _complaint(page: Path, target: str, anchors: dict[Path, set[str]]) -> str | None:
    if target.startswith(("https://", "http://")):
        return None
    name, _, anchor = target.partition("#")
    path = (page.parent / name).resolve() if name else page
    if not path.exists():
        return "no such file"
    if anchor and anchor not in anchors.get(path, set()):
        return "no such heading"
    return None


def _anchors(path: Path) -> set[str]:
    """Of the headings of a page, as GitHub makes them."""
    found: set[str] = set()
    for _, line in _prose(path):
        if match := re.match(r"#+ (.*)", line):
            slug = re.sub(r"[^\w\- ]", "", match[1].strip().lower()).replace(" ", "-")
            number = 0
            while (name := f"{slug}-{number}" if number else slug) in found:
                number += 1
            found.add(name)
    return found


def test_a_link_to_nothing_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A heading, of `code`\n\n# Twice\n\n# Twice\n")
    anchors = {page: _anchors(page)}
    assert anchors[page] == {"a-heading-of-code", "twice", "twice-1"}
    assert _complaint(page, "#twice-1", anchors) is None
    assert _complaint(page, "other.md", anchors) == "no such file"
    assert _complaint(page, "page.md#thrice", anchors) == "no such heading"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    missing = [
        str(name)
        for path in sorted((ROOT / "docs").rglob("*.md"))
        if (name := path.relative_to(ROOT / "docs")).name != "README.md" and f"]({name})" not in index
    ]
    assert not missing


def test_the_reference_is_up_to_date() -> None:
    pages = runpy.run_path(str(ROOT / "docs" / "generate.py"))["pages"]()
    old = [str(path.relative_to(ROOT)) for path, text in pages.items() if path.read_text() != text]
    assert not old, "python docs/generate.py writes them anew"
