"""Protobuf messages as one line of JSON, byte for byte what Hubble clients print.

That is canonical proto3 JSON with original field names, defaults left out and 64-bit integers as
strings, but with keys in the order of *declaration* (google.protobuf.json_format orders by number)
and with `<`, `>`, `&` and the two Unicode line separators escaped, as in any JSON that may end up
in a web page. One encoder per message type is built from its descriptor on first use.
"""

from __future__ import annotations

import base64
import re
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor import FieldDescriptor

from hubble_cli import times

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

    # Descriptors come from C, and the published types of the two kinds do not fit together.
    Descriptor = Any
    Encode = Callable[[Any], str]

_UNSAFE = re.compile("[<>&\u2028\u2029]")
WRAPPERS = frozenset(
    f"google.protobuf.{kind}Value"
    for kind in ("Bool", "Int32", "UInt32", "Int64", "UInt64", "Float", "Double", "String", "Bytes")
)
_REPEATING = frozenset(
    f"flow.{name}"
    for name in (
        "CiliumEventType", "Emitter", "Endpoint", "Ethernet", "NetworkInterface", "Service",
        "TCPFlags",
    )
)  # fmt: skip
"""Messages that are the same in many flows, so that their text is kept."""

_MOST_KEPT = 4096
_encoders: dict[str, Encode] = {}


def encode(message: Message) -> str:
    """The message as one line without its newline."""
    descriptor = message.DESCRIPTOR
    return (_encoders.get(descriptor.full_name) or _message(descriptor))(message)


def _text(value: str) -> str:
    quoted = encode_basestring(value)
    if _UNSAFE.search(quoted) is None:
        return quoted
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", quoted)


def _number(value: float) -> str:
    if value != value or value in (float("inf"), float("-inf")):
        return {"inf": '"Infinity"', "-inf": '"-Infinity"'}.get(str(value), '"NaN"')
    magnitude = abs(value)
    if magnitude == int(magnitude) and magnitude < 1e21:
        return str(int(value))
    text = repr(value)
    if "e" in text and 1e-6 <= magnitude < 1e21:
        return f"{value:.30f}".rstrip("0")
    if "e" not in text and magnitude < 1e-6:
        mantissa, exponent = f"{value:e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return re.sub(r"e([-+])0*", r"e\1", text)


def _enum(field: Any) -> Encode:
    names = {value.number: f'"{value.name}"' for value in field.enum_type.values}
    return lambda number: names.get(number) or str(number)


def _scalar(field: Any) -> Encode:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return lambda value: f'"{base64.b64encode(value).decode()}"'
        return _text
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return lambda value: "true" if value else "false"
    if kind in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64):
        return lambda value: f'"{value}"'
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return _number
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return _enum(field)
    return str


def _value(field: Any) -> Encode:
    if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        return _encoders.get(field.message_type.full_name) or _message(field.message_type)
    return _scalar(field)


def _repeated(one: Encode) -> Encode:
    return lambda values: f"[{','.join(map(one, values))}]"


def _message(descriptor: Descriptor) -> Encode:
    """Build and remember the encoder of a message type."""
    special = _special(descriptor)
    if special is not None:
        _encoders[descriptor.full_name] = special
        return special
    parts: dict[int, tuple[int, str, Encode]] = {}

    def encode_message(message: Any) -> str:
        found = [(parts[field.number], value) for field, value in message.ListFields()]
        found.sort(key=_by_declaration)
        return "{" + ",".join([key + one(value) for (_, key, one), value in found]) + "}"

    encoder: Encode = encode_message
    if descriptor.full_name in _REPEATING:
        encoder = _remembering(encode_message)
    # Known before its fields are looked at, so that recursive messages end.
    _encoders[descriptor.full_name] = encoder
    for field in descriptor.fields:
        one = _value(field)
        if field.is_repeated:
            one = _repeated(one)
        parts[field.number] = (field.index, f'"{field.name}":', one)
    return encoder


def _remembering(encode_message: Encode) -> Encode:
    known: dict[bytes, str] = {}

    def encode_known(message: Any) -> str:
        key = message.SerializeToString()
        text = known.get(key)
        if text is None:
            if len(known) >= _MOST_KEPT:
                known.clear()
            text = known[key] = encode_message(message)
        return text

    return encode_known


def _by_declaration(found: tuple[tuple[int, str, Encode], Any]) -> int:
    return found[0][0]


def _special(descriptor: Descriptor) -> Encode | None:
    name = descriptor.full_name
    if name == "google.protobuf.Timestamp":
        return lambda value: f'"{times.rfc3339(value)}"'
    if name in WRAPPERS:
        inner = _scalar(descriptor.fields_by_name["value"])
        return lambda value: inner(value.value)
    if name == "google.protobuf.FieldMask":
        return _field_mask
    if name == "google.protobuf.Any":
        return _remembering(_any)
    if name == "google.protobuf.Struct":
        return _struct
    if name == "google.protobuf.ListValue":
        return lambda listed: f"[{','.join(map(_json_value, listed.values))}]"
    if name == "google.protobuf.Value":
        return _json_value
    return None


def _struct(message: Any) -> str:
    """An object of any JSON, its keys in order as in other clients."""
    fields = sorted(message.fields.items())
    return "{" + ",".join([f"{_text(key)}:{_json_value(value)}" for key, value in fields]) + "}"


def _json_value(message: Any) -> str:
    match message.WhichOneof("kind"):
        case "number_value":
            return _number(message.number_value)
        case "string_value":
            return _text(message.string_value)
        case "bool_value":
            return "true" if message.bool_value else "false"
        case "struct_value":
            return _struct(message.struct_value)
        case "list_value":
            return f"[{','.join(map(_json_value, message.list_value.values))}]"
        case _:
            return "null"


def _field_mask(mask: Any) -> str:
    """Paths in lowerCamel; paths that cannot be written so stay as they are."""
    paths = []
    for path in mask.paths:
        camel = re.sub(r"_([a-z])", lambda found: found[1].upper(), path)
        paths.append(camel if path == path.lower() else path)
    return _text(",".join(paths))


def _any(packed: Any) -> str:
    """An embedded message if its type is known here, else its type and raw bytes."""
    from google.protobuf import duration_pb2, struct_pb2, symbol_database  # noqa: F401  known now

    name = packed.type_url.rpartition("/")[2]
    try:
        message = symbol_database.Default().GetSymbol(name)()
        message.ParseFromString(packed.value)
    except Exception:
        raw = base64.b64encode(packed.value).decode()
        return f'{{"@type":{_text(packed.type_url)},"value":"{raw}"}}'
    body = encode(message)
    if not body.startswith("{") or name.startswith("google.protobuf."):
        return f'{{"@type":{_text(packed.type_url)},"value":{body}}}'
    return f'{{"@type":{_text(packed.type_url)}{"," if body != "{}" else ""}{body[1:]}'
