"""The options of a printer, and the two streams it writes to."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from hubble_cli import tables
from hubble_cli.errors import UsageError
from hubble_cli.terminals import Painter

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

DICT_SEPARATOR = "------------"
_NODE_NAMES_LENGTH = 50


class Format(Enum):
    """Ways to print."""

    COMPACT = "compact"
    DICT = "dict"
    JSON = "json"
    LEGACY_JSON = "legacy-json"
    TABLE = "table"


def choose(name: str, *, legacy_json: bool = False) -> Format:
    """The format of an `--output` value. Raises UsageError."""
    known = {
        "compact": Format.COMPACT,
        "dict": Format.DICT,
        "json": Format.LEGACY_JSON if legacy_json else Format.JSON,
        "JSON": Format.LEGACY_JSON if legacy_json else Format.JSON,
        "jsonpb": Format.JSON,
        "tab": Format.TABLE,
        "table": Format.TABLE,
    }
    if name not in known:
        raise UsageError(f"invalid output format: {name}")
    return known[name]


@dataclass(frozen=True)
class Options:
    """How to print."""

    output: Format = Format.COMPACT
    time_format: str = "StampMilli"
    ip_translation: bool = True
    node_name: bool = False
    policy_names: bool = False
    wide: bool = False
    """Also packets, bytes, and where in the eBPF sources a flow was dropped."""
    debug: bool = False
    silent: bool = False
    colour: bool = False


class Sink(Protocol):
    """Where text goes."""

    def write(self, text: str, /) -> object:
        """Take text in."""

    def flush(self) -> object:
        """Bring what was taken in to its reader."""


class Streams:
    """Standard output and error with escaping, and the table that is aligned when all is there.

    Text is gathered and written at flush(), so that thousands of lines cost a few system calls.
    """

    def __init__(self, options: Options, out: Sink | None = None, err: Sink | None = None) -> None:
        # Colour codes would count as width in a table.
        self.painter = Painter(options.colour and options.output is not Format.TABLE)
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        self._silent = options.silent
        self._lines: list[str] = []
        self._table: list[str] = []
        self._started = False

    def print(self, text: str) -> None:
        """Text for people, on standard output."""
        self._lines.append(self.painter.escape(text))

    def print_raw(self, text: str) -> None:
        """Text that escapes by itself, such as JSON, on standard output."""
        self._lines.append(text)

    def row(self, cells: Iterable[str]) -> None:
        """A row of the table."""
        self._table.append(self.painter.escape("\t".join(cells)) + "\n")

    def warn(self, text: str, *, raw: bool = False) -> None:
        """Text on standard error, unless errors are silenced."""
        if not self._silent:
            self.flush()
            self._err.write(text if raw else self.painter.escape(text))
            self._err.flush()

    def flush(self) -> None:
        """Write what was gathered."""
        if self._lines:
            self._out.write("".join(self._lines))
            self._lines.clear()
        self._out.flush()

    def close(self) -> None:
        """Write everything, the table included."""
        if self._table:
            self._lines.append(tables.align("".join(self._table)))
            self._table.clear()
        self.flush()


def enum_name(enum: EnumTypeWrapper, number: int) -> str:
    """Name of an enum's value; one that this program does not know is told by its number."""
    value = enum.DESCRIPTOR.values_by_number.get(number)
    return value.name if value is not None else str(number)


def join_cut(names: list[str]) -> str:
    """Names joined by commas, cut after about 50 characters, but never before the first."""
    length = 0
    end = len(names)
    for index, name in enumerate(names):
        length += len(name.encode()) + 2
        if length > _NODE_NAMES_LENGTH and index > 0:
            end = index
            break
    joined = ", ".join(names[:end])
    return joined if end == len(names) else f"{joined} (and {len(names) - end} more)"


def quote(text: str) -> str:
    """The text in double quotes with Go's escapes, safe for a terminal."""
    parts = ['"']
    named = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    named |= {"\v": "\\v", '"': '\\"', "\\": "\\\\"}
    for letter in text:
        if letter in named:
            parts.append(named[letter])
        elif letter == " " or (letter.isprintable() and not letter.isspace()):
            parts.append(letter)
        elif (code := ord(letter)) < 0x80:
            parts.append(f"\\x{code:02x}")
        else:
            parts.append(f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return "".join([*parts, '"'])
