# SPDX-License-Identifier: Apache-2.0
"""Prints answers: aligned columns for people, JSON and YAML for programs.

On a terminal tables get a bold header and coloured states through rich; into a pipe goes plain
text with nothing but blanks between columns, so that `awk` works on it.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from click.shell_completion import CompletionItem
    from google.protobuf.descriptor import EnumDescriptor
    from google.protobuf.message import Message

FORMATS = ("table", "json", "yaml")
JSONPATH = "jsonpath="
"""Begins a format that picks parts of the document; see `jsonpaths`."""

_COLOURS = {
    "Ok": "green",
    "OK": "green",
    "ready": "green",
    "running": "green",
    "Enabled": "yellow",
    "Failure": "bold red",
    "Warning": "yellow",
    "dead": "bold red",
    "not ready": "yellow",
    "Deny": "red",
    "Allow": "green",
}


def output_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `-o`; the command receives the chosen format as `output`."""
    return click.option(
        "-o",
        "--output",
        type=_Format(),
        default="table",
        show_default=True,
        help="How to print: table, json, yaml, or jsonpath='{.some.field}'.",
    )(command)


class _Format(click.ParamType[str]):
    """One of FORMATS, or a JSONPath template that can be read."""

    name = "format"

    def get_metavar(self, *_: Any, **__: Any) -> str:
        """Tell the formats in a usage line."""
        return f"[{'|'.join(FORMATS)}|{JSONPATH}TEMPLATE]"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the format."""
        if value.startswith(JSONPATH):
            from cilium_cli.jsonpaths import TemplateError, parse

            try:
                parse(value.removeprefix(JSONPATH))
            except TemplateError as error:
                self.fail(str(error), param, ctx)
        elif value not in FORMATS:
            formats = ", ".join(FORMATS)
            self.fail(f"{value!r} is none of {formats} and {JSONPATH}TEMPLATE", param, ctx)
        return value

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Complete the names."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(one) for one in (*FORMATS, JSONPATH) if one.startswith(incomplete)]


def emit(output: str, document: Any, render: Callable[[], None]) -> None:
    """Print the document as JSON or YAML, or parts of it; or call `render` for people."""
    if output == "json":
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    elif output == "yaml":
        import yaml

        click.echo(
            yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100), nl=False
        )
    elif output.startswith(JSONPATH):
        from cilium_cli.jsonpaths import evaluate, parse

        click.echo(evaluate(parse(output.removeprefix(JSONPATH)), document))
    else:
        render()


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under headers. A cell may have several lines; a header may have two."""
    cells = [[str(cell).split("\n") for cell in row] for row in [headers, *rows]]
    widths = [
        max(len(line) for row in cells for line in row[column]) for column in range(len(headers))
    ]
    lines = [
        (index == 0, [cell[height] if height < len(cell) else "" for cell in row])
        for index, row in enumerate(cells)
        for height in range(max(len(cell) for cell in row))
    ]
    if sys.stdout.isatty():
        _print_coloured(lines, widths)
        return
    for _, texts in lines:
        padded = "   ".join(text.ljust(width) for text, width in zip(texts, widths, strict=True))
        click.echo(padded.rstrip())


def _print_coloured(lines: list[tuple[bool, list[str]]], widths: list[int]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for is_header, texts in lines:
        line = Text()
        for text, width in zip(texts, widths, strict=True):
            style = "bold" if is_header else _COLOURS.get(text, "")
            line.append(text.ljust(width), style=style).append("   ")
        line.rstrip()
        console.print(line)


def status_line(label: str, state: str, rest: str = "", width: int = 24) -> None:
    """Print `Label:   State   rest` with the state coloured on a terminal."""
    text = f"{label + ':':<{width}} "
    if not sys.stdout.isatty():
        click.echo(f"{text}{state}{'   ' if state and rest else ''}{rest}".rstrip())
        return
    colour = _COLOURS.get(state, "").removeprefix("bold ") or None
    shown = click.style(state, fg=colour) if state else ""
    click.echo(f"{text}{shown}{'   ' if state and rest else ''}{rest}".rstrip())


def plain(message: Message) -> dict[str, Any]:
    """Turn a message into what JSON and YAML print: every field, numbers as numbers.

    Names are in camel case; times are RFC 3339; enum values lose their type's prefix.
    """
    document: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.containing_oneof is not None and not message.HasField(field.name):
            continue
        document[field.json_name] = _plain_field(message, field)
    return document


def _plain_field(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {str(key): value[key] for key in sorted(value)}
    if field.is_repeated:
        return [_plain_value(item, field) for item in value]
    if field.message_type is not None and not message.HasField(field.name):
        return None
    return _plain_value(value, field)


def _plain_value(value: Any, field: Any) -> Any:
    if field.message_type is not None:
        if field.message_type.full_name == "google.protobuf.Timestamp":
            return value.ToJsonString()
        return plain(value)
    if field.enum_type is not None:
        return enum_text(field.enum_type, value)
    return value


def enum_text(kind: EnumDescriptor, number: int) -> str:
    """Return `enabled` for ENFORCEMENT_ENABLED of the enum Enforcement."""
    if number not in kind.values_by_number:
        return str(number)
    name: str = kind.values_by_number[number].name
    prefix = "".join(f"_{c}" if c.isupper() else c.upper() for c in kind.name).lstrip("_") + "_"
    return name.removeprefix(prefix).lower().replace("_", "-")
