"""The grammar of the command line: commands, flags and their values.

Why not click: scripts written for Hubble's public client rely on things that its parser does and
click's does not, such as flags whose value is optional (`--encrypted`, `-4`), `--not`, which turns
the *next* flag around and so needs the order in which different flags were written, lists split at
commas, `--flag=false`, and the texts of the errors. A table of flags and one loop do that, and
`hubble` starts faster without more imports.

Everything here is a function of its arguments; nothing reads the environment.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hubble_cli import times
from hubble_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Value = bool | int | str | list[str]

_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})


@dataclass(frozen=True)
class Flag:
    """One flag: `kind` is bool, string, uint, duration (ns), list (with commas), array or filter.

    `implied` is the value of a flag written without one; None means that a value must follow.
    """

    name: str
    kind: str
    help: str
    short: str = ""
    default: Value = ""
    implied: str | None = None
    choices: tuple[str, ...] = ()

    @property
    def spelled(self) -> str:
        """How an error names it."""
        return f"-{self.short}, --{self.name}" if self.short else f"--{self.name}"


@dataclass(frozen=True)
class Section:
    """Flags shown under one heading."""

    title: str
    flags: tuple[Flag, ...]
    shared: bool = True
    """Whether commands below the one that has it take these flags as well."""


@dataclass(frozen=True)
class Command:
    """A command or a group of commands."""

    name: str
    summary: str
    run: Callable[[Parsed], None] | None = None
    sections: tuple[Section, ...] = ()
    commands: tuple[Command, ...] = ()
    aliases: tuple[str, ...] = ()
    hidden: bool = False
    usage: str = "[flags]"
    text: str = ""
    operands: tuple[int, int] = (0, 0)
    unchecked: bool = False
    """Runs without a look at the settings, so that wrong ones can be mended with it."""

    def find(self, word: str) -> Command | None:
        """The subcommand with that name or alias."""
        return next((c for c in self.commands if word == c.name or word in c.aliases), None)


@dataclass
class Parsed:
    """A command line, understood."""

    path: tuple[Command, ...]
    values: dict[str, Value] = field(default_factory=dict)
    filters: list[tuple[Flag, str]] = field(default_factory=list)
    operands: list[str] = field(default_factory=list)
    help: bool = False

    @property
    def command(self) -> Command:
        """The command to run."""
        return self.path[-1]


HELP = Flag("help", "bool", "help for this command", short="h", default=False, implied="true")


def flags_of(path: Sequence[Command]) -> list[Flag]:
    """Flags that the last command of the path accepts: its own and those of the root."""
    shared = [section for section in path[0].sections if section.shared]
    found = {flag.name: flag for section in shared for flag in section.flags}
    for section in path[-1].sections:
        found.update({flag.name: flag for flag in section.flags})
    return [*found.values(), HELP]


def parse(root: Command, words: Sequence[str], collect: Callable[[Flag, str], None]) -> Parsed:
    """Understand a command line, without the program's name.

    `collect` takes each filter flag as it comes. Raises UsageError.
    """
    path, rest = _descend(root, list(words))
    parsed = Parsed(path)
    flags = flags_of(path)
    by_name = {flag.name: flag for flag in flags}
    by_short = {flag.short: flag for flag in flags if flag.short}
    position = 0
    while position < len(rest):
        word = rest[position]
        position += 1
        if word == "--":
            parsed.operands += rest[position:]
            break
        if not word.startswith("-") or word == "-":
            parsed.operands.append(word)
            continue
        for flag, value in _read(word, by_name, by_short):
            if value is None:
                if position >= len(rest):
                    raise UsageError(_lacking(word, flag))
                value = rest[position]  # noqa: PLW2901  the value follows as a word of its own
                position += 1
            _store(parsed, flag, value, collect)
    least, most = parsed.command.operands
    if not least <= len(parsed.operands) <= most and not parsed.help:
        raise UsageError(_operand_error(parsed))
    return parsed


def _descend(root: Command, words: list[str]) -> tuple[tuple[Command, ...], list[str]]:
    """The command that is meant, and the words left when its names are taken out."""
    path: tuple[Command, ...] = (root,)
    rest: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        if word == "--":
            break
        if word.startswith("-") and word != "-":
            rest.append(word)
            if _takes_next(word, flags_of(path)) and position + 1 < len(words):
                position += 1
                rest.append(words[position])
        elif not path[-1].commands:
            break
        elif (found := path[-1].find(word)) is not None:
            path = (*path, found)
        else:
            # A group's own operand: there is none, the check of operands tells so.
            break
        position += 1
    return path, rest + words[position:]


def _takes_next(word: str, flags: list[Flag]) -> bool:
    if "=" in word:
        return False
    if word.startswith("--"):
        known = next((flag for flag in flags if flag.name == word[2:]), None)
        return known is not None and known.implied is None
    for offset, letter in enumerate(word[1:], start=1):
        known = next((flag for flag in flags if flag.short == letter), None)
        if known is None:
            return False
        if known.implied is None:
            return offset == len(word) - 1
    return False


def _read(
    word: str, by_name: dict[str, Flag], by_short: dict[str, Flag]
) -> Iterator[tuple[Flag, str | None]]:
    """Flags in one word with their values; None when the value is the next word."""
    if word.startswith("--"):
        name, equals, value = word[2:].partition("=")
        if not name or name.startswith("-"):
            raise UsageError(f"bad flag syntax: {word}")
        if name not in by_name:
            raise UsageError(f"unknown flag: --{name}")
        flag = by_name[name]
        yield flag, value if equals else flag.implied
        return
    letters = word[1:]
    while letters:
        if letters[0] not in by_short:
            raise UsageError(f"unknown shorthand flag: '{letters[0]}' in -{word[1:]}")
        flag = by_short[letters[0]]
        letters = letters[1:]
        if letters.startswith("="):
            yield flag, letters[1:]
            return
        if flag.implied is not None:
            yield flag, flag.implied
            continue
        yield flag, letters or None
        return


def _lacking(word: str, flag: Flag) -> str:
    if word.startswith("--"):
        return f"flag needs an argument: {word}"
    return f"flag needs an argument: '{flag.short}' in {word}"


def _store(parsed: Parsed, flag: Flag, text: str, collect: Callable[[Flag, str], None]) -> None:
    if flag is HELP:
        parsed.help = True
        return
    try:
        if flag.kind == "filter":
            collect(flag, text)
            parsed.filters.append((flag, text))
            return
        value = convert(flag.kind, text)
    except (UsageError, ValueError) as error:
        raise UsageError(f'invalid argument "{text}" for "{flag.spelled}" flag: {error}') from error
    if isinstance(value, list) and flag.name in parsed.values:
        before = parsed.values[flag.name]
        value = [*before, *value] if isinstance(before, list) else value
    parsed.values[flag.name] = value


def convert(kind: str, text: str) -> Value:
    """A flag's value from its text; durations become nanoseconds. Raises ValueError."""
    if kind == "bool":
        if text not in _TRUE | _FALSE:
            raise ValueError(f'strconv.ParseBool: parsing "{text}": invalid syntax')
        return text in _TRUE
    if kind == "uint":
        if not re.fullmatch(r"0[xX][0-9a-fA-F_]+|0[bB][01_]+|0[oO]?[0-7_]+|0|[1-9][\d_]*", text):
            raise ValueError(f'strconv.ParseUint: parsing "{text}": invalid syntax')
        octal = re.fullmatch(r"0([0-7_]+)", text)
        number = int(octal[1].lstrip("_"), 8) if octal else int(text, 0)
        if number >= 1 << 64:
            raise ValueError(f'strconv.ParseUint: parsing "{text}": value out of range')
        return number
    if kind == "duration":
        return times.parse_duration_ns(text)
    if kind == "list":
        try:
            return next(csv.reader([text]), []) if text else []
        except csv.Error as error:
            raise ValueError(f'"{text}" is no list: {error}') from error
    if kind == "array":
        return [text]
    return text


def _operand_error(parsed: Parsed) -> str:
    path = " ".join(command.name for command in parsed.path)
    command = parsed.command
    if command.operands == (0, 0):
        return f'unknown command "{parsed.operands[0]}" for "{path}"'
    least, most = command.operands
    wanted = "or".join(f" {count} " for count in range(least, most + 1))
    return (
        f"invalid arguments: {command.name} requires exactly{wanted}argument(s):"
        f" got '{' '.join(parsed.operands)}'"
    )
