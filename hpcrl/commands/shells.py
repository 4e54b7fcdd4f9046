"""Completion scripts: a grammar of the command line, said in the languages of three shells; they start no Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple


class Option(NamedTuple):
    """An option.

    Attributes:
        flag: as it is typed.
        help: one sentence, or none.
        takes: what follows it.
        choices: values that are known; others may be allowed too.
    """

    flag: str
    help: str = ""
    takes: Literal["nothing", "value", "file"] = "nothing"
    choices: tuple[str, ...] = ()


class Command(NamedTuple):
    """A command: what stands behind it, and options of its own."""

    takes: Literal["algorithm", "run", "shell", "nothing"]
    options: tuple[Option, ...]


class Grammar(NamedTuple):
    """The command line: commands by name; options and presets by algorithm, of all commands that take one."""

    commands: dict[str, Command]
    options: dict[str, tuple[Option, ...]]
    presets: dict[str, tuple[str, ...]]

    def taking(self, what: str) -> list[str]:
        """The commands that take something."""
        return [name for name, command in self.commands.items() if command.takes == what]

    def shared(self) -> dict[Option, list[str]]:
        """The options of all algorithms, with the algorithms that have them."""
        found: dict[Option, list[str]] = {}
        for algorithm, options in self.options.items():
            for option in options:
                found.setdefault(option, []).append(algorithm)
        return found


def bash(grammar: Grammar) -> str:
    """For bash 3.2 and later."""
    return f"""\
# Completes hpcrl in bash; made by: hpcrl completion bash
_hpcrl() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}} place=$COMP_CWORD
    local command=${{COMP_WORDS[1]-}} algorithm=${{COMP_WORDS[2]-}} known= takes= kind= run IFS=$' \\t\\n'
    # --option=value is three words to bash.
    [[ $before == = ]] && before=${{COMP_WORDS[COMP_CWORD - 2]}}
    [[ $word == = ]] && word=
{_cases(grammar)}
    COMPREPLY=($(compgen -W "$known" -- "$word"))
    [[ $takes == run && $word == -* ]] && takes=
    if [[ $takes == run ]]; then
        COMPREPLY=()
        for run in "$word"*/ runs/"$word"*/; do
            [[ -e ${{run}}config.json ]] && COMPREPLY+=("${{run%/}}")
        done
    fi
    if [[ ($takes == file || $takes == run) && ${{#COMPREPLY[@]}} == 0 ]]; then
        IFS=$'\\n'
        COMPREPLY=($(compgen -f -- "$word"))
    fi
    if [[ $takes == file || $takes == run ]]; then compopt -o filenames 2>/dev/null; fi
    return 0
}}
complete -F _hpcrl hpcrl
"""


def zsh(grammar: Grammar) -> str:
    """For zsh with its completion system."""
    return f"""\
#compdef hpcrl
# Completes hpcrl in zsh; made by: hpcrl completion zsh
_hpcrl() {{
    local word=$words[CURRENT] before=$words[CURRENT-1] command=$words[2] algorithm=$words[3] known= takes= kind=
    local -i place=$((CURRENT - 1))
    local -a found
    if [[ $word == --*=* ]]; then
        before=${{word%%=*}}
        compset -P '*='
    fi
{_cases(grammar)}
    if [[ $takes == run && $word != -* ]]; then
        found=({{,runs/}}*/config.json(N:h))
        (($#found)) && compadd -f -- $found
        _files
    elif [[ $takes == file ]]; then
        _files
    elif [[ -n $known ]]; then
        compadd -- ${{=known}}
    fi
}}
compdef _hpcrl hpcrl
"""


def fish(grammar: Grammar) -> str:
    """For fish 3."""
    return "\n".join(
        [
            "# Completes hpcrl in fish; made by: hpcrl completion fish",
            "function __hpcrl_runs",
            "    for file in runs/*/config.json",
            "        dirname $file",
            "    end",
            "    __fish_complete_path (commandline -ct)",
            "end",
            "function __hpcrl_place",
            "    test (count (commandline -opc)) -eq $argv[1]",
            "end",
            "complete -c hpcrl -f",
            *_fish_lines(grammar),
            "",
        ]
    )


SHELLS: dict[str, Callable[[Grammar], str]] = {"bash": bash, "zsh": zsh, "fish": fish}


def _cases(grammar: Grammar) -> str:
    """What bash and zsh have in common: from $place, $command, $before and $algorithm to $known and $takes.

    $takes is "file", "run", or empty where only $known words may follow.
    """
    training = grammar.taking("algorithm")
    lines = [
        f"case $command in {' | '.join(training)}) kind=train ;; *) kind=$command ;; esac",
        "if ((place == 1)); then",
        f'    known="{_joined(grammar.commands)} --help --version"',
        "elif ((place == 2)) && [[ $kind == train ]]; then",
        f'    known="{_joined(grammar.options)} --help"',
        f'elif ((place == 2)) && [[ $command == "{" ".join(grammar.taking("shell"))}" ]]; then',
        f'    known="{_joined(SHELLS)} --help"',
        "else",
        "    # Options of a command come before those of all that train.",
        '    case "$command:$kind:$before:$algorithm" in',
    ]
    lines += [f"        {line}" for line in _patterns(grammar)]
    lines += ["    esac", "    if [[ $takes == option ]]; then", "        case $command in"]
    for name in training:
        own = _joined(option.flag for option in grammar.commands[name].options)
        lines.append(f'            {name}) known="$known {own}" ;;')
    lines += ["        esac", "    fi", "fi"]
    return "\n".join(f"    {line}" for line in lines)


def _patterns(grammar: Grammar) -> Iterator[str]:
    for name, command in grammar.commands.items():
        yield from _after(command.options, f"{name}:*")
    for algorithm, presets in grammar.presets.items():
        yield f'*:train:--preset:{algorithm}) known="{_joined(presets)}" ;;'
    yield from _after(grammar.shared(), "*:train")
    for algorithm, options in grammar.options.items():
        yield f'*:train:*:{algorithm}) known="--preset {_joined(o.flag for o in options)}"; takes=option ;;'
    for name, command in grammar.commands.items():
        takes = "; takes=run" if command.takes == "run" else ""
        yield f'{name}:*) known="{_joined(option.flag for option in command.options)}"{takes} ;;'


def _after(options: Iterable[Option], where: str) -> Iterator[str]:
    """What may follow an option with a value."""
    unique = {option.flag: option for option in options if option.takes != "nothing"}
    for flag, option in unique.items():
        if option.choices:
            yield f'{where}:{flag}:*) known="{_joined(option.choices)}" ;;'
    for takes, then in (("file", "takes=file"), ("value", "")):
        same = [flag for flag, option in unique.items() if option.takes == takes and not option.choices]
        if same:
            yield f"{' | '.join(f'{where}:{flag}:*' for flag in same)}) {then or ':'} ;;"


def _fish_lines(grammar: Grammar) -> Iterator[str]:
    yield f"complete -c hpcrl -n '__hpcrl_place 1' -a '{_joined(grammar.commands)}'"
    training = _joined(grammar.taking("algorithm"))
    yield f"complete -c hpcrl -n '__hpcrl_place 2; and {_seen(training)}' -a '{_joined(grammar.options)}'"
    shells = _seen(_joined(grammar.taking("shell")))
    yield f"complete -c hpcrl -n '__hpcrl_place 2; and {shells}' -a '{_joined(SHELLS)}'"
    yield f"complete -c hpcrl -n '{_seen(_joined(grammar.taking('run')))}' -a '(__hpcrl_runs)'"
    for algorithm, presets in grammar.presets.items():
        where = f"{_seen(training)}; and {_seen(algorithm)}"
        yield f"complete -c hpcrl -n '{where}' -l preset -x -a '{_joined(presets)}'"
    for option, algorithms in grammar.shared().items():
        yield _fish_option(f"{_seen(training)}; and {_seen(_joined(algorithms))}", option)
    for name, command in grammar.commands.items():
        for option in command.options:
            yield _fish_option(_seen(name), option)


def _seen(words: str) -> str:
    return f"__fish_seen_subcommand_from {words}"


def _fish_option(where: str, option: Option) -> str:
    name = option.flag.lstrip("-")
    line = f"complete -c hpcrl -n '{where}' {'-l' if option.flag.startswith('--') else '-s'} {name}"
    if option.takes != "nothing":
        line += " -rF" if option.takes == "file" else " -x"
    if option.choices:
        line += f" -a '{_joined(option.choices)}'"
    if option.help:
        said = option.help.replace("\\", "\\\\").replace("'", "\\'")
        line += f" -d '{said}'"
    return line


def _joined(words: Iterable[str]) -> str:
    return " ".join(words)
