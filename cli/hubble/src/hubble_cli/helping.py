"""Help texts, made from the tables of commands and flags."""

from __future__ import annotations

import shutil
import textwrap
from typing import TYPE_CHECKING

from hubble_cli import times

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubble_cli.arguments import Command, Flag, Section

_ABSENT = """\
Port forwarding to a relay in Kubernetes (--port-forward) is not part of this program: forward the
port with kubectl and point --server at it.
"""
_MOST_CHOICES = 12
_VALUE_NAMES = {
    "string": "TEXT",
    "uint": "N",
    "duration": "DURATION",
    "list": "A,B",
    "array": "JSON",
    "filter": "VALUE",
}


def render(path: Sequence[Command]) -> str:
    """Help for the last command of the path."""
    command = path[-1]
    name = " ".join(one.name for one in path)
    parts = [f"{command.summary}\n"]
    if command.text:
        parts.append(command.text)
    parts.append(f"Usage:\n{_usages(command, name)}")
    visible = [one for one in command.commands if not one.hidden]
    if visible:
        width = max(len(one.name) for one in visible) + 2
        listed = "".join(f"  {one.name:<{width}}{one.summary}\n" for one in visible)
        parts.append(f"Commands:\n{listed}")
    sections = list(command.sections)
    if len(path) > 1:
        sections += [section for section in path[0].sections if section.title == "Global"]
    parts += [_section(section) for section in sections]
    if any(section.title == "Server" for section in sections):
        parts.append(_ABSENT)
    if visible:
        parts.append(f'"{name} COMMAND --help" tells more about a command.\n')
    return "\n".join(parts)


def _usages(command: Command, name: str) -> str:
    lines = []
    if command.commands:
        lines.append(f"  {name} COMMAND [flags]\n")
    if command.run is not None and (not command.commands or command.text):
        lines.append(f"  {name} {command.usage}\n")
    return "".join(lines)


def _section(section: Section) -> str:
    width = shutil.get_terminal_size((100, 24)).columns
    heads = [_head(flag) for flag in section.flags]
    column = min(max(map(len, heads)) + 3, 34)
    lines = [f"{section.title} flags:\n"]
    for head, flag in zip(heads, section.flags, strict=True):
        text = flag.help + _choices(flag) + _default(flag)
        wrapped = textwrap.wrap(text, max(width - column - 1, 30))
        first = head.ljust(column)
        if len(head) > column - 2:
            lines.append(f"{head}\n")
            first = " " * column
        lines.append(f"{first}{wrapped[0]}\n")
        lines += [f"{' ' * column}{line}\n" for line in wrapped[1:]]
    return "".join(lines)


def _head(flag: Flag) -> str:
    short = f"-{flag.short}, " if flag.short else "    "
    value = f" {_VALUE_NAMES[flag.kind]}" if flag.implied is None else ""
    return f"  {short}--{flag.name}{value}"


def _choices(flag: Flag) -> str:
    """The values of a flag, unless they are many or its text names them already."""
    if not 0 < len(flag.choices) <= _MOST_CHOICES or flag.choices[0] in flag.help:
        return ""
    return f" ({', '.join(flag.choices)})"


def _default(flag: Flag) -> str:
    if not flag.default:
        return ""
    if flag.kind == "duration":
        return f" (default {times.format_duration_ns(int(flag.default))})"  # type: ignore[arg-type]
    return f" (default {str(flag.default).lower() if flag.kind == 'bool' else flag.default})"
