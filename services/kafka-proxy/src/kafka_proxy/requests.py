"""What a request asks for: its header and, where they can be read, the topics it names.

A request that cannot be read has a reason instead of a body. Whether that matters is for `deciding`
to say; nothing here raises for what a client sends but a header that is none.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from cilium_core.policy.kafka_keys import API_KEYS

from kafka_proxy.encoding import Reader, Value, read
from kafka_proxy.errors import ProtocolError
from kafka_proxy.schemas import ENVELOPE, PRODUCE, Struct, kio_name, request_struct

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAMES: Final = {number: name for name, number in API_KEYS.items()}
_HEADER = struct.Struct(">hhi")
_CONTROLLED_SHUTDOWN: Final = 7
_ACKS = struct.Struct(">h")

_OPAQUE: Final = frozenset({ENVELOPE})
"""Requests that carry other requests, which are not looked into."""

_LONGEST_TOPIC: Final = 255


class Header(NamedTuple):
    """The header of a request."""

    key: int
    version: int
    correlation_id: int
    client_id: str | None
    size: int
    """Bytes before the body, or before the tagged fields of a flexible header."""

    @property
    def name(self) -> str:
        """Name of the kind of request, in lower case."""
        return _NAMES.get(self.key) or kio_name(self.key)


@dataclass(frozen=True, slots=True)
class Body:
    """A request that was read."""

    form: Struct
    value: Value
    topics: tuple[str, ...]
    """Names of topics, each once, in order."""

    unnamed: bool
    """Whether it means topics that it does not name, such as by id."""

    start: int
    """Bytes of the request before the body."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request. Exactly one of `body` and `unreadable` is set."""

    header: Header
    body: Body | None = None
    unreadable: str = ""
    """Why it cannot be read."""

    @property
    def topics(self) -> tuple[str, ...]:
        """Topics it names, as far as is known."""
        return self.body.topics if self.body is not None else ()

    @property
    def answered(self) -> bool | None:
        """Whether the broker answers it; None when that cannot be known."""
        if self.header.key != PRODUCE:
            return True
        if self.body is None:
            return None
        return bool(self.body.value["acks"] != 0)


def parse(frame: bytes) -> Request:
    """Read a request without its length. Raises ProtocolError when it has no header."""
    header = parse_header(frame)
    form = request_struct(header.key, header.version)
    if form is None:
        return Request(header, unreadable=f"{header.name} version {header.version} is not known")
    if header.key in _OPAQUE:
        return Request(header, unreadable=f"{header.name} carries another request")
    view = memoryview(frame)
    try:
        reader = Reader(view, header.size)
        if form.flexible_header:
            reader.tags(None, {})
        start = reader.at
        value = read(form, view, start)
    except ProtocolError as error:
        return Request(header, unreadable=str(error))
    except RecursionError:
        return Request(header, unreadable="the message is nested too deeply")
    return Request(header, _body(form, value, start))


def parse_header(frame: bytes) -> Header:
    """Read the header of a request. Raises ProtocolError."""
    if len(frame) < _HEADER.size:
        raise ProtocolError(f"a request of {len(frame)} bytes has no header")
    key, version, correlation_id = _HEADER.unpack_from(frame)
    if key < 0 or version < 0:
        raise ProtocolError(f"a request of kind {key} in version {version}")
    if key == _CONTROLLED_SHUTDOWN and version == 0:
        return Header(key, version, correlation_id, None, _HEADER.size)
    reader = Reader(memoryview(frame), _HEADER.size)
    client_id = reader.text(flexible=False)
    return Header(key, version, correlation_id, client_id, reader.at)


def _body(form: Struct, value: Value, start: int) -> Body:
    topics: dict[str, None] = {}
    unnamed = False
    for name in _topics(form, value):
        if not name or len(name) > _LONGEST_TOPIC:
            unnamed = True
        else:
            topics[name] = None
    return Body(form, value, tuple(topics), unnamed, start)


def _topics(form: Struct, value: Value) -> Iterator[str]:
    """Names of topics anywhere in a message; an empty one for each that is meant by its id."""
    names = ids = False
    for field in (*form.fields, *form.tagged.values()):
        found = value.get(field.name)
        if field.is_topic:
            for name in (found or ()) if field.array else (found,):
                if name:
                    names = True
                    yield name
                elif not _has_id(form):
                    yield ""
        elif field.is_topic_id:
            ids = ids or (found is not None and any(found))
        elif field.struct is not None and found is not None and mentions_topics(field.struct):
            for item in found if field.array else (found,):
                if item is not None:
                    yield from _topics(field.struct, item)
    if ids or (not names and _has_id(form)):
        yield ""


def _has_id(form: Struct) -> bool:
    return any(field.is_topic_id for field in form.fields)


@functools.cache
def mentions_topics(form: Struct) -> bool:
    """Whether a message of this kind may name topics."""
    return any(
        field.is_topic
        or field.is_topic_id
        or (field.struct is not None and mentions_topics(field.struct))
        for field in (*form.fields, *form.tagged.values())
    )
