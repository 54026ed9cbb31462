"""Protobuf messages from JSON, fast enough to read a file of a million flows.

google.protobuf.json_format sets field by field in Python; here JSON values are only put into the
shape that a message's constructor takes (nested dictionaries, enums by name), and the constructor
does the rest in C. Both original and lowerCamel names are understood. Unknown fields are left out
and remembered.
"""

from __future__ import annotations

import base64
import re
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from google.protobuf.descriptor import FieldDescriptor

from hubble_cli.jsonlines import WRAPPERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

    # Descriptors come from C, and the published types of the two kinds do not fit together.
    Descriptor = Any
    Convert = Callable[[Any], Any]

M = TypeVar("M", bound="Message")

_RFC3339 = re.compile(r"(\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2})(?:\.(\d{1,9}))?(Z|[-+]\d{2}:\d{2})")
_INTEGERS = frozenset(
    {
        FieldDescriptor.CPPTYPE_INT32,
        FieldDescriptor.CPPTYPE_UINT32,
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT64,
    }
)


class ParseError(ValueError):
    """JSON that does not fit the message."""


class Parser(Generic[M]):
    """Makes messages of one type."""

    def __init__(self, make: type[M]) -> None:
        self._make = make
        self._converters: dict[str, dict[str, tuple[str, Convert | None]]] = {}
        self.unknown = ""
        """Name of the first field met that the type does not have."""

    def parse(self, value: Any) -> M:
        """A message from decoded JSON. Raises ParseError."""
        try:
            return self._make(**self._shape(self._make.DESCRIPTOR, value))
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise ParseError(str(error)) from error

    def _shape(self, descriptor: Descriptor, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ParseError(f"{descriptor.full_name}: unexpected value {value!r}")
        fields = self._converters.get(descriptor.full_name) or self._fields(descriptor)
        shaped = {}
        for key, content in value.items():
            if content is None:
                continue
            known = fields.get(key)
            if known is None:
                self.unknown = self.unknown or key
                continue
            name, convert = known
            shaped[name] = content if convert is None else convert(content)
        return shaped

    def _fields(self, descriptor: Descriptor) -> dict[str, tuple[str, Convert | None]]:
        fields: dict[str, tuple[str, Convert | None]] = {}
        for field in descriptor.fields:
            convert = self._converter(field)
            if field.is_repeated:
                convert = _each(convert)
            fields[field.name] = fields[field.json_name] = (field.name, convert)
        self._converters[descriptor.full_name] = fields
        return fields

    def _converter(self, field: Any) -> Convert | None:
        if field.cpp_type in _INTEGERS:
            return _integer
        if field.type == FieldDescriptor.TYPE_BYTES:
            return base64.b64decode
        if field.cpp_type != FieldDescriptor.CPPTYPE_MESSAGE:
            return None
        inner = field.message_type
        if inner.full_name == "google.protobuf.Timestamp":
            return _timestamp
        if inner.full_name in WRAPPERS:
            content = self._converter(inner.fields_by_name["value"])
            return lambda value: {"value": content(value) if content else value}
        if inner.full_name in ("google.protobuf.Any", "google.protobuf.FieldMask"):
            return lambda value: _by_library(inner, value)
        return lambda value: self._shape(inner, value)


def _each(convert: Convert | None) -> Convert:
    def all_of(values: Any) -> list[Any]:
        if not isinstance(values, list):
            raise ParseError(f"expected a list, not {values!r}")
        return values if convert is None else [convert(value) for value in values]

    return all_of


def _integer(value: Any) -> int:
    if type(value) is int:
        return value
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ParseError(f"expected an integer, not {value!r}")
    return int(value)


@lru_cache(maxsize=256)
def _seconds(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


def _timestamp(value: Any) -> dict[str, int]:
    found = _RFC3339.fullmatch(value)
    if found is None:
        raise ParseError(f"invalid timestamp {value!r}")
    seconds = _seconds(found[1] + ("+00:00" if found[3] == "Z" else found[3]))
    return {"seconds": seconds, "nanos": int((found[2] or "").ljust(9, "0"))}


def _by_library(descriptor: Descriptor, value: Any) -> Message:
    # types that may be embedded are known once they are imported
    from google.protobuf import (  # noqa: F401
        duration_pb2,
        json_format,
        message_factory,
        struct_pb2,
    )

    message = message_factory.GetMessageClass(descriptor)()
    try:
        return json_format.ParseDict(value, message)
    except json_format.ParseError as error:
        raise ParseError(str(error)) from error
