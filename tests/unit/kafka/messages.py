"""Requests and responses for tests, written with the proxy's own encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from kafka_proxy.encoding import read, write
from kafka_proxy.refusing import frame
from kafka_proxy.schemas import known_versions, request_struct, response_struct
from kio.schema.index import api_key_map

if TYPE_CHECKING:
    from kafka_proxy.encoding import Value
    from kafka_proxy.schemas import Field, Struct

PRODUCE, FETCH, METADATA, OFFSET_FETCH, FIND_COORDINATOR = 0, 1, 3, 9, 10
JOIN_GROUP, SASL_HANDSHAKE, API_VERSIONS, DELETE_TOPICS, ENVELOPE = 11, 17, 18, 20, 58

VERSIONS = [
    (key, version)
    for key in sorted(api_key_map)
    for lowest, highest in [known_versions(key) or (0, -1)]
    for version in range(lowest, highest + 1)
]
"""Every request there is, in every version."""

_BOUNDS = {
    "int8": 7,
    "int16": 15,
    "int32": 31,
    "int64": 63,
    "error_code": 0,
    "timedelta_i32": 31,
    "timedelta_i64": 40,
    "datetime_i64": 40,
}
_UNSIGNED = {"uint8": 8, "uint16": 16, "uint32": 32, "uint64": 64}
_TEXTS = st.text("ab.é", max_size=5)


def request_form(key: int, version: int) -> Struct:
    form = request_struct(key, version)
    assert form is not None
    return form


def response_form(key: int, version: int) -> Struct:
    form = response_struct(key, version)
    assert form is not None
    return form


def nothing(form: Struct) -> Value:
    """A message of a kind with empty fields."""
    value: Value = {}
    for field in form.fields:
        if field.array:
            value[field.name] = []
        elif field.struct is not None:
            value[field.name] = None if field.nullable else nothing(field.struct)
        elif field.kind == "string":
            value[field.name] = ""
        elif field.kind == "uuid":
            value[field.name] = bytes(16)
        else:
            value[field.name] = b"" if field.kind in ("bytes", "records") else 0
    return value


def filled(form: Struct, value: Value) -> Value:
    """A message whose missing fields are empty, at any depth."""
    whole = {**nothing(form), **value}
    for field in form.fields:
        if field.struct is None or whole[field.name] is None:
            continue
        if field.array:
            whole[field.name] = [filled(field.struct, one) for one in whole[field.name]]
        else:
            whole[field.name] = filled(field.struct, whole[field.name])
    return whole


def request(
    key: int, version: int, correlation_id: int = 1, /, client_id: str | None = "me", **value: Any
) -> bytes:
    """A request without its length; fields that are not given are empty."""
    form = request_form(key, version)
    head = key.to_bytes(2, "big") + version.to_bytes(2, "big")
    head += correlation_id.to_bytes(4, "big", signed=True)
    told = b"" if client_id is None else client_id.encode()
    head += (len(told) if client_id is not None else -1).to_bytes(2, "big", signed=True) + told
    tags = b"\0" if form.flexible_header else b""
    return head + tags + write(form, filled(form, value))


def framed(content: bytes) -> bytes:
    """A frame: length and content."""
    return len(content).to_bytes(4, "big") + content


def response(key: int, version: int, correlation_id: int = 1, /, **value: Any) -> bytes:
    """A response with its length; fields that are not given are empty."""
    form = response_form(key, version)
    return frame(correlation_id, form, filled(form, value))


def parse_response(key: int, version: int, whole: bytes) -> tuple[int, Value]:
    """Correlation id and content of a response with its length."""
    form = response_form(key, version)
    assert int.from_bytes(whole[:4], "big") == len(whole) - 4
    correlation_id = int.from_bytes(whole[4:8], "big", signed=True)
    return correlation_id, read(form, memoryview(whole), 8 + form.flexible_header)


def produce(*topics: str, correlation_id: int = 1, version: int = 9, acks: int = 1) -> bytes:
    """A request to write one batch to the first partition of topics."""
    data = [{"name": t, "partition_data": [{"index": 0, "records": b"xyz"}]} for t in topics]
    return request(PRODUCE, version, correlation_id, acks=acks, topic_data=data)


def metadata(*topics: str, correlation_id: int = 1, version: int = 9) -> bytes:
    """A request for what is known about topics."""
    asked = [{"name": topic} for topic in topics]
    return request(METADATA, version, correlation_id, topics=asked)


def values(form: Struct, depth: int = 0) -> st.SearchStrategy[Value]:
    """Messages of a kind with anything in them."""
    every = (*form.fields, *form.tagged.values())
    required = {field.name: _values(field, depth) for field in form.fields}
    tagged = {field.name: _values(field, depth) for field in every[len(form.fields) :]}
    return st.fixed_dictionaries(required, optional=tagged)


def _values(field: Field, depth: int) -> st.SearchStrategy[Any]:
    one = _one(field, depth)
    if field.array:
        one = st.lists(one, max_size=2 if depth < 2 else 1)
    can_be_null = field.array or field.kind in ("string", "bytes", "records", "struct")
    return st.none() | one if field.nullable and can_be_null else one


def _one(field: Field, depth: int) -> st.SearchStrategy[Any]:
    if field.struct is not None:
        return values(field.struct, depth + 1)
    if field.kind in _BOUNDS:
        top = (1 << _BOUNDS[field.kind]) - 1
        return st.integers(0, top)
    if field.kind in _UNSIGNED:
        return st.integers(0, (1 << _UNSIGNED[field.kind]) - 1)
    return {
        "string": _TEXTS,
        "bool": st.booleans(),
        "uuid": st.binary(min_size=16, max_size=16),
        "float64": st.floats(0, 1),
    }.get(field.kind, st.binary(max_size=5))
