"""Reads and writes Kafka's messages as dictionaries. Pure functions of bytes.

Values are plain: numbers for all numbers, times and error codes, 16 bytes for UUIDs, a view of the
buffer for bytes and records. Tagged fields that are not known are kept, so that a message that is
read and written again loses nothing.

Reading is bounded: a length never exceeds the bytes that are left, and a message has at most
`MAX_ELEMENTS` array elements, so that neither time nor memory grows beyond what was received.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

from cilium_core.varints import varint

from kafka_proxy.errors import ProtocolError

if TYPE_CHECKING:
    from kafka_proxy.schemas import Field, Struct

Value = dict[str, Any]
"""A message or a part of one: values by names of fields."""

MAX_ELEMENTS: Final = 20_000
"""Most elements of all arrays of a message together."""

UNKNOWN_TAGS: Final = "?"
"""Name under which tagged fields that are not known are kept, as numbers and bytes."""

_NUMBERS: Final = {
    "int8": struct.Struct(">b"),
    "int16": struct.Struct(">h"),
    "int32": struct.Struct(">i"),
    "int64": struct.Struct(">q"),
    "uint8": struct.Struct(">B"),
    "uint16": struct.Struct(">H"),
    "uint32": struct.Struct(">I"),
    "uint64": struct.Struct(">Q"),
    "float64": struct.Struct(">d"),
    "bool": struct.Struct(">?"),
    "error_code": struct.Struct(">h"),
    "timedelta_i32": struct.Struct(">i"),
    "timedelta_i64": struct.Struct(">q"),
    "datetime_i64": struct.Struct(">q"),
}
_UUID_BYTES: Final = 16
_VARINT_BYTES: Final = 5


class Reader:
    """A position in a message. All methods raise ProtocolError for bytes that make no sense."""

    __slots__ = ("_elements", "at", "data", "end")

    def __init__(self, data: memoryview, at: int = 0) -> None:
        self.data = data
        self.at = at
        self.end = len(data)
        self._elements = 0

    def take(self, count: int) -> memoryview:
        """The next bytes."""
        start = self.at
        if count < 0 or count > self.end - start:
            raise ProtocolError(f"a field of {count} bytes where {self.end - start} are left")
        self.at = start + count
        return self.data[start : start + count]

    def number(self, kind: str) -> Any:
        """The next number of a kind."""
        form = _NUMBERS[kind]
        start = self.at
        if form.size > self.end - start:
            raise ProtocolError(f"the message ends within a field of type {kind}")
        self.at = start + form.size
        return form.unpack_from(self.data, start)[0]

    def varint(self) -> int:
        """The next unsigned number of variable length, at most 32 bits."""
        value = 0
        for shift in range(0, 7 * _VARINT_BYTES, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        else:
            raise ProtocolError("a number of variable length does not end")
        if value >= 1 << 32:
            raise ProtocolError("a number of variable length exceeds 32 bits")
        return value

    def text(self, *, flexible: bool) -> str | None:
        """The next string; None for null."""
        size = self.varint() - 1 if flexible else self.number("int16")
        if size == -1:
            return None
        try:
            return str(self.take(size), "utf-8")
        except UnicodeDecodeError as error:
            raise ProtocolError("a string is not valid UTF-8") from error

    def struct(self, form: Struct) -> Value:
        """The next struct."""
        value: Value = {field.name: self._field(field, form.flexible) for field in form.fields}
        if form.flexible:
            self.tags(form, value)
        return value

    def tags(self, form: Struct | None, value: Value) -> None:
        """Tagged fields, put into `value`."""
        for _ in range(self._count(self.varint())):
            tag, size = self.varint(), self.varint()
            content = self.take(size)
            field = form.tagged.get(tag) if form is not None else None
            if field is None:
                value.setdefault(UNKNOWN_TAGS, []).append((tag, bytes(content)))
                continue
            inner = Reader(content)
            inner._elements = self._elements
            value[field.name] = inner._field(field, True)
            self._elements = inner._elements

    def _field(self, field: Field, flexible: bool) -> Any:
        if not field.array:
            return self._one(field, flexible)
        length = self.varint() - 1 if flexible else self.number("int32")
        if length == -1:
            return None
        return [self._item(field, flexible) for _ in range(self._count(length))]

    def _count(self, length: int) -> int:
        self._elements += max(0, length)
        if length < 0 or length > self.end - self.at or self._elements > MAX_ELEMENTS:
            raise ProtocolError(
                f"an array of {length} elements in {self.end - self.at} bytes; a message may have "
                f"{MAX_ELEMENTS}"
            )
        return length

    def _item(self, field: Field, flexible: bool) -> Any:
        if field.struct is not None:
            return self.struct(field.struct)
        return self._scalar(field.kind, flexible)

    def _one(self, field: Field, flexible: bool) -> Any:
        if field.struct is None:
            return self._scalar(field.kind, flexible)
        if field.nullable and self.number("int8") < 0:
            return None
        return self.struct(field.struct)

    def _scalar(self, kind: str, flexible: bool) -> Any:
        if kind in _NUMBERS:
            return self.number(kind)
        if kind == "string":
            return self.text(flexible=flexible)
        if kind == "uuid":
            return bytes(self.take(_UUID_BYTES))
        size = self.varint() - 1 if flexible else self.number("int32")
        return None if size == -1 else self.take(size)


def read(form: Struct, data: memoryview, at: int = 0) -> Value:
    """Read a message that fills the rest of `data`. Raises ProtocolError."""
    reader = Reader(data, at)
    value = reader.struct(form)
    if reader.at != reader.end:
        raise ProtocolError(f"{reader.end - reader.at} bytes follow the end of the message")
    return value


def write(form: Struct, value: Value) -> bytes:
    """Write a message. Fields of `value` have to be as they are when read."""
    out = bytearray()
    _write_struct(out, form, value)
    return bytes(out)


def _write_struct(out: bytearray, form: Struct, value: Value) -> None:
    for field in form.fields:
        _write_field(out, field, value[field.name], form.flexible)
    if form.flexible:
        _write_tags(out, form, value)


def _write_tags(out: bytearray, form: Struct, value: Value) -> None:
    tags: dict[int, bytes] = dict(value.get(UNKNOWN_TAGS, ()))
    for tag, field in form.tagged.items():
        if field.name in value:
            content = bytearray()
            _write_field(content, field, value[field.name], True)
            tags[tag] = bytes(content)
    out += varint(len(tags))
    for tag, tagged in sorted(tags.items()):
        out += varint(tag) + varint(len(tagged)) + tagged


def _write_field(out: bytearray, field: Field, value: Any, flexible: bool) -> None:
    if not field.array:
        if field.struct is not None and field.nullable:
            out += _NUMBERS["int8"].pack(-1 if value is None else 1)
            if value is None:
                return
        _write_one(out, field, value, flexible)
        return
    _write_length(out, value, "int32", flexible)
    for item in value or ():
        _write_one(out, field, item, flexible)


def _write_one(out: bytearray, field: Field, value: Any, flexible: bool) -> None:
    if field.struct is not None:
        _write_struct(out, field.struct, value)
    elif field.kind in _NUMBERS:
        out += _NUMBERS[field.kind].pack(value)
    elif field.kind == "uuid":
        out += value
    elif field.kind == "string":
        encoded = None if value is None else value.encode()
        _write_length(out, encoded, "int16", flexible)
        out += encoded or b""
    else:
        _write_length(out, value, "int32", flexible)
        out += value or b""


def _write_length(out: bytearray, value: Any, kind: str, flexible: bool) -> None:
    length = -1 if value is None else len(value)
    out += varint(length + 1) if flexible else _NUMBERS[kind].pack(length)
