"""The answer to a request that may not pass: the response that a broker would give, with errors.

A response repeats what the request names (topics, partitions, groups, …), each with error 29, so
that clients tell their users which topic it was. That works for every kind of request alike: what
lists of the request and of the response have in common are the names of the fields that identify
their elements.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from kafka_proxy.encoding import Value, write
from kafka_proxy.schemas import API_VERSIONS, Field, Struct, known_versions, response_struct

if TYPE_CHECKING:
    from kafka_proxy.requests import Body, Header, Request

TOPIC_AUTHORIZATION_FAILED: Final = 29
UNSUPPORTED_VERSION: Final = 35

_SAME: Final = {
    "topic_name": "name",
    "topic": "name",
    "partition_index": "partition",
    "partition_id": "partition",
    "index": "partition",
}
"""Names that mean the same in different messages."""

_NOT_IDENTIFYING: Final = frozenset({"error_code", "timedelta_i32", "bytes", "records"})
_UUID_ZERO: Final = bytes(16)
_WORD: Final = 4


def refusal(request: Request) -> bytes | None:
    """The whole frame of the answer; None when there is no form for one."""
    header = request.header
    form = response_struct(header.key, header.version)
    if header.key == API_VERSIONS and form is None:
        return _unsupported(header)
    if request.body is None or form is None:
        return None
    return frame(header.correlation_id, form, refused_value(form, request.body))


def refused_value(form: Struct, body: Body) -> Value:
    """The content of the answer to a request that is refused."""
    return _fill(form, body.value, body.form)[0]


def frame(correlation_id: int, form: Struct, value: Value) -> bytes:
    """A response with its header and length."""
    head = correlation_id.to_bytes(_WORD, "big", signed=True)
    content = head + (b"\0" if form.flexible_header else b"") + write(form, value)
    return len(content).to_bytes(_WORD, "big") + content


def _unsupported(header: Header) -> bytes | None:
    """What brokers say to a client that asks for versions in a version they do not know."""
    versions, form = known_versions(API_VERSIONS), response_struct(API_VERSIONS, 0)
    if versions is None or form is None:
        return None
    own = {"api_key": API_VERSIONS, "min_version": versions[0], "max_version": versions[1]}
    return frame(
        header.correlation_id, form, {"error_code": UNSUPPORTED_VERSION, "api_keys": [own]}
    )


def _fill(form: Struct, source: Value, source_form: Struct) -> tuple[Value, bool]:
    """A part of a response to a part of a request, and whether an error is in it."""
    value: Value = {}
    errors: list[str] = []
    told = False
    for field in form.fields:
        if field.array:
            value[field.name], found = _list(field, source, source_form)
            told = told or found
        elif field.kind == "error_code":
            errors.append(field.name)
        elif field.struct is not None:
            inner = None if field.nullable else _fill(field.struct, {}, field.struct)[0]
            value[field.name] = inner
        else:
            value[field.name] = _copied(field, source, source_form)
    for name in errors:
        value[name] = 0 if told else TOPIC_AUTHORIZATION_FAILED
    return value, told or bool(errors)


def _list(field: Field, source: Value, source_form: Struct) -> tuple[list[Any] | None, bool]:
    if field.struct is None:
        return (None if field.nullable else []), False
    items, told = [], False
    for item, form in _counterparts(field.struct, source, source_form):
        value, found = _fill(field.struct, item, form)
        items.append(value)
        told = told or found
    return items, told


def _counterparts(wanted: Struct, source: Value, form: Struct) -> list[tuple[Value, Struct]]:
    """Elements of a request that elements of a response correspond to, with their forms."""
    names = _identifying(wanted)
    lists = [(field, source.get(field.name) or []) for field in form.fields if field.array]
    for field, items in lists:
        if field.struct is not None and names & _identifying(field.struct):
            return [(item, field.struct) for item in items]
    for field, items in lists:
        named = _named_by(wanted, field)
        if field.struct is None and named is not None:
            one = Struct((named,), {}, wanted.flexible, wanted.flexible_header)
            return [({named.name: item}, one) for item in items]
    whole = any(field.kind == "error_code" for field in wanted.fields)
    found: list[tuple[Value, Struct]] = []
    for field, items in lists:
        if field.struct is not None:
            for item in items:
                # one result for each element, or else for what is named within it
                found += (
                    [(item, field.struct)] if whole else _counterparts(wanted, item, field.struct)
                )
    return found


def _identifying(form: Struct) -> set[str]:
    return {
        _SAME.get(field.name, field.name)
        for field in form.fields
        if not field.array and field.struct is None and field.kind not in _NOT_IDENTIFYING
    }


def _named_by(wanted: Struct, listed: Field) -> Field | None:
    """The field of a response's element that the bare elements of a request's list go into."""
    first = next((f for f in wanted.fields if f.kind != "error_code" and not f.array), None)
    return first if first is not None and first.kind == listed.kind else None


def _copied(field: Field, source: Value, source_form: Struct) -> Any:
    """The value of the field that means the same in the request, or one that means nothing."""
    name = _SAME.get(field.name, field.name)
    for other in source_form.fields:
        if (
            _SAME.get(other.name, other.name) == name
            and other.kind == field.kind
            and not other.array
            and other.name in source
            and (source[other.name] is not None or field.nullable)
        ):
            return source[other.name]
    return _nothing(field)


def _nothing(field: Field) -> Any:
    if field.kind == "uuid":
        return _UUID_ZERO
    if field.kind in ("string", "bytes", "records"):
        empty: str | bytes = "" if field.kind == "string" else b""
        return None if field.nullable else empty
    if field.kind == "bool":
        return False
    if field.kind == "datetime_i64":
        return -1 if field.nullable else 0
    return -1 if "offset" in field.name or "leader" in field.name else 0
