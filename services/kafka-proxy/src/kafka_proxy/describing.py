"""Questions about topics that are refused: the brokers of the cluster are told all the same.

Clients learn from one kind of response both about topics and which brokers there are, and leave
brokers that a response does not name. So when topics are refused, the question goes on without
them, if it may, and what the broker says is given back with an error for each topic.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from kafka_proxy.encoding import Reader, write
from kafka_proxy.refusing import frame, refused_value
from kafka_proxy.requests import Request
from kafka_proxy.schemas import METADATA, response_struct

_NO_TOPICS_SINCE: Final = 1
"""Version from which a question that names no topics is not about all of them."""

_WORD: Final = 4


def about_brokers(request: Request) -> Request | None:
    """The same question about no topics; None when there is no such question."""
    header, body = request.header, request.body
    if header.key != METADATA or header.version < _NO_TOPICS_SINCE or body is None:
        return None
    if not body.topics and not body.unnamed:
        return None
    value = {**body.value, "topics": []}
    return Request(header, dataclasses.replace(body, value=value, topics=(), unnamed=False))


def encode(request: Request, original: bytes) -> bytes:
    """A changed request, without its length, with the header that it came with."""
    body = request.body
    if body is None:
        return original
    return original[: body.start] + write(body.form, body.value)


def with_refusals(request: Request, response: bytes) -> bytes:
    """What a broker said of no topics, with an error for each that `request` names; whole frame.

    `response` has no length. Raises ProtocolError when it cannot be read.
    """
    header, form = request.header, response_struct(request.header.key, request.header.version)
    if form is None or request.body is None:
        return len(response).to_bytes(_WORD, "big") + response
    reader = Reader(memoryview(response), _WORD)
    if form.flexible_header:
        reader.tags(None, {})
    value = reader.struct(form)
    value["topics"] = refused_value(form, request.body)["topics"]
    return frame(header.correlation_id, form, value)
