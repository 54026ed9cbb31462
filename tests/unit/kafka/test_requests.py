"""What a request asks for: names of topics, wherever they are, and what is not named."""

from __future__ import annotations

import re

import pytest
from kafka_proxy.errors import ProtocolError
from kafka_proxy.requests import parse, parse_header

from tests.unit.kafka.messages import (
    API_VERSIONS,
    DELETE_TOPICS,
    ENVELOPE,
    FETCH,
    FIND_COORDINATOR,
    JOIN_GROUP,
    METADATA,
    OFFSET_FETCH,
    PRODUCE,
    metadata,
    produce,
    request,
)

ID = bytes(range(16))


def topics_of(whole: bytes) -> tuple[tuple[str, ...], bool]:
    body = parse(whole).body
    assert body is not None, parse(whole).unreadable
    return body.topics, body.unnamed


@pytest.mark.parametrize("version", range(3, 13))
def test_a_write_names_its_topics_once_and_in_order(version: int) -> None:
    whole = produce("b", "a", "b", version=version)
    assert topics_of(whole) == (("b", "a"), False)


@pytest.mark.parametrize("version", range(13))
def test_a_question_for_metadata_names_its_topics(version: int) -> None:
    asked = [{"name": "a", "topic_id": bytes(16)}]
    assert topics_of(request(METADATA, version, topics=asked)) == (("a",), False)


@pytest.mark.parametrize("topics", [[], None])
def test_a_question_for_all_topics_names_none(topics: list[object] | None) -> None:
    assert topics_of(request(METADATA, 9, topics=topics)) == ((), False)


@pytest.mark.parametrize(
    "whole",
    [
        request(METADATA, 12, topics=[{"name": None, "topic_id": ID}]),
        request(METADATA, 12, topics=[{"name": "a", "topic_id": ID}]),
        request(METADATA, 12, topics=[{"name": None, "topic_id": bytes(16)}]),
        request(FETCH, 13, topics=[{"topic_id": ID, "partitions": []}]),
        request(FETCH, 13, topics=[{"topic_id": bytes(16), "partitions": []}]),
        request(PRODUCE, 13, topic_data=[{"topic_id": ID, "partition_data": []}]),
        request(DELETE_TOPICS, 6, topics=[{"name": None, "topic_id": ID}]),
        request(METADATA, 9, topics=[{"name": ""}]),
        request(METADATA, 9, topics=[{"name": "a" * 256}]),
    ],
)
def test_topics_that_are_not_named_are_noticed(whole: bytes) -> None:
    assert topics_of(whole)[1]


def test_topics_are_found_at_any_depth() -> None:
    group = {
        "group_id": "g",
        "member_id": None,
        "member_epoch": -1,
        "topics": [{"name": "deep", "partition_indexes": [1]}],
    }
    whole = request(OFFSET_FETCH, 9, groups=[group], require_stable=False)
    assert topics_of(whole) == (("deep",), False)


def test_bare_names_and_forgotten_topics_are_found_too() -> None:
    assert topics_of(request(DELETE_TOPICS, 4, topic_names=["a", "b"])) == (("a", "b"), False)
    forgotten = [{"topic": "old", "partitions": [0]}]
    assert topics_of(request(FETCH, 12, forgotten_topics_data=forgotten)) == (("old",), False)


@pytest.mark.parametrize("key", [FIND_COORDINATOR, JOIN_GROUP, API_VERSIONS])
def test_requests_without_topics_name_none(key: int) -> None:
    assert topics_of(request(key, 3)) == ((), False)


def test_a_header_says_who_asks_what() -> None:
    header = parse_header(request(METADATA, 9, 77, client_id="shop"))
    assert (*header[:4], header.name) == (3, 9, 77, "shop", "metadata")
    assert parse_header(request(METADATA, 9, client_id=None)).client_id is None
    assert parse_header(request(METADATA, 9, client_id="")).client_id == ""


def test_newer_requests_have_a_name_as_well_and_unknown_ones_their_number() -> None:
    assert parse_header(request(ENVELOPE, 0)).name == "envelope"
    assert parse_header(request(36, 2)).name == "saslauthenticate"
    assert parse_header(b"\x03\xe7\0\1\0\0\0\1\xff\xff").name == "999"


@pytest.mark.parametrize(
    "frame",
    [b"", b"\0\3\0\1\0\0\0", b"\0\3\0\1\0\0\0\1", b"\0\3\0\1\0\0\0\1\0\5ab",
     b"\0\3\0\1\0\0\0\1\0\2\xff\xfe", b"\xff\xff\0\1\0\0\0\1\xff\xff", b"GET / HTTP/1.1\r\n"],
)  # fmt: skip
def test_bytes_without_a_header_are_no_request(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse(frame)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"\0\3\0\x63\0\0\0\1\xff\xff", "metadata version 99 is not known"),
        (b"\0\0\0\2\0\0\0\1\xff\xff", "produce version 2 is not known"),
        (b"\0\4\0\0\0\0\0\1\xff\xff", "leaderandisr version 0 is not known"),
        (b"\0\7\0\0\0\0\0\1\0\0\0\1", "controlledshutdown version 0 is not known"),
        (request(ENVELOPE, 0), "envelope carries another request"),
        (metadata("a") + b"\0", "follow the end"),
        (metadata("a")[:-2], "are left|ends within"),
    ],
)
def test_a_request_that_cannot_be_read_says_why(frame: bytes, reason: str) -> None:
    parsed = parse(frame)
    assert parsed.body is None
    assert re.search(reason, parsed.unreadable)


def test_only_a_write_without_acknowledgement_is_not_answered() -> None:
    assert parse(produce("a", acks=1)).answered
    assert parse(produce("a", acks=-1)).answered
    assert parse(produce("a", acks=0)).answered is False
    assert parse(b"\0\0\0\2\0\0\0\1\xff\xff").answered is None
    assert parse(metadata("a")).answered
